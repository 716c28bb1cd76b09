"""Small checkpoints on disk, whole ones and others with one thing wrong."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as Theirs

from cutaway.models.build import build
from cutaway.models.decoder import Decoder
from cutaway.models.encoder import Encoder
from cutaway.models.families import FAMILIES
from cutaway.models.families.table import spec_of
from cutaway.text.tokenizer import Tokenizer
from cutaway.weights.save import save_directory

CONFIG: dict[str, Any] = {
    "vocab_size": 260,  # one more than there are tokens
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "tie_word_embeddings": True,
}
END = "<|im_end|>"
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@cache
def tokenizer(template: str | None = TEMPLATE) -> Tokenizer:
    """A token per byte, cut into words as GPT-2 does, and three control tokens."""
    made = Theirs(
        models.BPE(vocab={letter: i for i, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}, merges=[])
    )
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(
        [AddedToken(t, special=True, normalized=False) for t in ("<|endoftext|>", "<|im_start|>", END)]
    )
    with TemporaryDirectory() as folder:
        made.save(f"{folder}/tokenizer.json")
        config = {"eos_token": END, "chat_template": template, "tokenizer_class": "GPT2Tokenizer"}
        Path(folder, "tokenizer_config.json").write_text(json.dumps(config))
        return Tokenizer.from_dir(folder)


def model(family: str = "llama", seed: int = 0, **config: Any) -> Decoder | Encoder:
    """Weights drawn anew and rounded to bfloat16, so that narrowing them loses nothing."""
    made = build(spec_of(FAMILIES[family], CONFIG | config)).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in made.parameters():
            fan_in = parameter.shape[-1] if parameter.dim() > 1 else 1
            parameter.copy_((torch.randn(parameter.shape, generator=generator) * 2 / fan_in**0.5).bfloat16())
    return made


def directory(path: Path, family: str = "llama", template: str | None = TEMPLATE, **config: Any) -> Path:
    """A whole checkpoint, as `cutaway convert` leaves it."""
    save_directory(model(family, **config), tokenizer(template), path, torch.float32)
    return path


def configure(folder: Path, **changes: Any) -> None:
    """Change config.json; None takes an entry out."""
    path = folder / "config.json"
    config = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))


def retensor(folder: Path, **changes: Any) -> None:
    """Change tensors by name ("." written "__"): a function of the tensor, or None to take it out."""
    path = folder / "model.safetensors"
    tensors = load_file(path)
    for name, change in changes.items():
        theirs = name.replace("__", ".")
        tensor = tensors.pop(theirs, torch.zeros(1))
        if change is not None:
            tensors[theirs] = change(tensor)
    save_file(tensors, path, {"format": "pt"})
