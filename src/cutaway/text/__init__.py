"""Text ↔ token ids: tokenizers from tokenizer.json and GGUF, chat templates, streaming back to text."""

from cutaway.text.stream import Detokenizer
from cutaway.text.tokenizer import Tokenizer

__all__ = ["Detokenizer", "Tokenizer"]
