"""The tokenizer as everything else sees it: text ↔ ids, whatever file it came from.

text ─► added tokens cut out ─► normalizer ─► pre-tokens ─► algorithm ─► ids ─► BOS, EOS
         (added.py)              (pieces.py)                 (bpe.py, unigram.py, wordpiece.py)
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from cutaway.errors import CutawayError
from cutaway.text import decoding, gguf_reader, gguf_writer, huggingface, pieces, sandbox
from cutaway.text.added import Finder
from cutaway.text.alphabet import to_letters
from cutaway.text.chat import PROMPT, Guard, check, sign_for
from cutaway.text.explain import Step, explain
from cutaway.text.frame import Slot, pair_slots, template_ids
from cutaway.text.recipe import END_TOKENS, Recipe, blaming, build_model
from cutaway.text.stream import Detokenizer

CACHED_WORDS = 1 << 16
LONGEST_CACHED = 128  # characters; longer pre-tokens hardly ever repeat

_SIGNS = {" ": "␣", "\n": "⏎", "\t": "⇥", "\r": "␍"}


@dataclass(frozen=True)
class Stretch:
    """Part of a text on its way: an added token (`id`), or normalized text with its pre-tokens."""

    text: str
    id: int | None = None
    source: str = ""
    words: Sequence[str] = ()


class Tokenizer:
    """Encodes and decodes with one vocabulary. Safe to share between threads.

    vocab_size: one more than the largest id. special_ids: the control tokens. stop_ids: those that end
    generation.
    """

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.model = build_model(recipe)
        self._normalize = pieces.normalizer(recipe.normalizer)
        self._pre_tokenizer = pieces.pre_tokenizer(recipe.pre_tokenizer)
        self._decoder = decoding.decoder(recipe.decoder)
        self._before, self._after = template_ids(recipe.post_processor)
        later = [t for t in recipe.added if t.normalized and not t.special]
        self._raw = Finder(t for t in recipe.added if t not in later)
        self._normalized = Finder(replace(t, content=self._normalize(t.content)) for t in later)
        self._tokens = recipe.tokens()
        self._added = frozenset(t.id for t in recipe.added)
        self.vocab_size = max(self._tokens, default=-1) + 1
        self.special_ids = frozenset(t.id for t in recipe.added if t.special)
        self._remembered = lru_cache(CACHED_WORDS)(self._word)
        self._known_bytes: dict[int, bytes] = {}

    @classmethod
    def from_dir(cls, path: str | Path) -> Tokenizer:
        """The tokenizer of a Hugging Face model directory; CutawayError if it has none or a broken one."""
        with blaming(str(path)):
            return cls(huggingface.read(path))

    @classmethod
    def from_gguf(cls, metadata: Mapping[str, Any]) -> Tokenizer:
        """That of a GGUF file's metadata (a plain dict); CutawayError if it has none that is known."""
        with blaming("tokenizer.ggml"):
            return cls(gguf_reader.read(metadata))

    def save(self, directory: str | Path) -> None:
        """Write tokenizer.json, tokenizer_config.json and the chat template; AutoTokenizer loads them."""
        huggingface.write(self.recipe, directory)

    def to_gguf(self, rows: int = 0) -> dict[str, Any]:
        """The metadata that holds it in a GGUF file; CutawayError if GGUF has no way to say it.

        rows: how many rows the model's embedding has; rows beyond the vocabulary are listed as unused tokens.
        """
        return gguf_writer.write(self.recipe, rows)

    # Encoding

    def encode(self, text: str, *, add_special: bool = True, parse_special: bool = True) -> list[int]:
        """Ids of a text.

        add_special: put BOS, EOS … where the model wants them. parse_special: the name of a control token in
        the text stands for that token; if not, it is plain text, and no text yields a control token.
        """
        ids = self._ids(self.stretches(text, parse_special))
        return [*self._before, *ids, *self._after] if add_special else ids

    def encode_pair(self, first: str, second: str, *, parse_special: bool = True) -> tuple[list[int], list[int]]:
        """Ids of two texts packed into one sequence as the model wants them, and each id's type: 0 or 1 (BERT)."""
        texts = [self._ids(self.stretches(text, parse_special)) for text in (first, second)]
        parts = [(slot.ids if slot.text is None else texts[slot.text], slot.type) for slot in self._pair]
        return [i for ids, _ in parts for i in ids], [type for ids, type in parts for _ in ids]

    @cached_property
    def _pair(self) -> list[Slot]:
        return pair_slots(self.recipe.post_processor)

    def stretches(self, text: str, parse_special: bool = True, sign: str = "") -> Iterator[Stretch]:
        """A text, cut as far as pre-tokens. Names with `sign` in them match nothing; it is then dropped."""
        for segment in self._raw.split(_checked(text), parse_special):
            if segment.token:
                yield Stretch(segment.text, segment.token.id)
                continue
            source = segment.text.replace(sign, "") if sign else segment.text
            for part in self._normalized.split(self._normalize(source)):
                if part.token:
                    yield Stretch(part.text, part.token.id)
                else:
                    words = self._pre_tokenizer.split(part.text, segment.start == part.start == 0)
                    yield Stretch(part.text, None, source, words)

    def spelled(self, word: str) -> str:
        """A pre-token as the algorithm reads it: in the byte-level alphabet where the model uses that."""
        return to_letters(word) if self._pre_tokenizer.letters else word

    def _ids(self, stretches: Iterable[Stretch]) -> list[int]:
        ids: list[int] = []
        for stretch in stretches:
            if stretch.id is not None:
                ids.append(stretch.id)
            for word in stretch.words:
                ids += self._remembered(word) if len(word) <= LONGEST_CACHED else self._word(word)
        return ids

    def _word(self, word: str) -> tuple[int, ...]:
        return tuple(self.model.ids(self.spelled(word)))

    def explain(self, text: str, *, parse_special: bool = True) -> list[Step]:
        """How `text` becomes ids, step by step (see `cutaway.text.explain`)."""
        return explain(self, text, parse_special)

    # Decoding

    def decode(self, ids: Iterable[int], *, skip_special: bool = True) -> str:
        """The text of ids. Bytes that are not UTF-8 become U+FFFD; ids beyond the vocabulary add nothing."""
        stream = self.stream(skip_special)
        return "".join([*map(stream.push, ids), stream.flush()])

    def stream(self, skip_special: bool = True, *, continuing: bool = False) -> Detokenizer:
        """Decode ids as they come. continuing: they go on from an earlier text, so a first space stays."""
        skip = self.special_ids if skip_special else ()
        return Detokenizer(self.token_bytes, skip, 0 if continuing else self._decoder.trim)

    def token_bytes(self, id: int) -> bytes:
        """What the token contributes to a text; nothing for an id that no token has."""
        if id not in self._known_bytes:
            token = self._tokens.get(id, "")
            literal = id not in self._tokens or (id in self._added and self._decoder.letters)
            self._known_bytes[id] = token.encode() if literal else self._decoder.bytes_of(token)
        return self._known_bytes[id]

    def display(self, id: int) -> str:
        """The token for the eye, always printable: a space is ␣, a line feed ⏎, a lone byte ⟨E4⟩."""
        text = self.token_bytes(id).decode("utf-8", "surrogateescape")
        return "".join(map(_visible, text)) or f"⟨{self._tokens.get(id, f'#{id}')}⟩"

    # Roles

    @property
    def bos_id(self) -> int | None:
        """The token that begins a text."""
        return self.recipe.roles.get("bos")

    @property
    def eos_id(self) -> int | None:
        """The token that ends a text."""
        return self.recipe.roles.get("eos")

    @property
    def unk_id(self) -> int | None:
        """The token for what the vocabulary lacks."""
        return self.recipe.roles.get("unk")

    @property
    def pad_id(self) -> int | None:
        """The token that fills up batches elsewhere; Cutaway never pads."""
        return self.recipe.roles.get("pad")

    @cached_property
    def stop_ids(self) -> frozenset[int]:
        """What ends generation: EOS, what the files name, and known names among the control tokens."""
        known = {t.id for t in self.recipe.added if t.special and t.content in END_TOKENS}
        eos = set() if self.eos_id is None else {self.eos_id}
        return frozenset(known | eos | self.recipe.stop)

    # Chat

    @property
    def chat_template(self) -> str | None:
        """The Jinja template that turns messages into a prompt; None for a base model."""
        return self.recipe.chat_template

    def render_chat(
        self, messages: Any, *, add_generation_prompt: bool = True, tools: Any = None, **variables: Any
    ) -> str:
        """The prompt that the template makes of the messages, as text. Errors: see `chat`."""
        return self._render(check(messages), tools, add_generation_prompt, variables)

    def chat(
        self, messages: Any, *, add_generation_prompt: bool = True, tools: Any = None, **variables: Any
    ) -> list[int]:
        """The ids of that prompt, where control tokens' names inside messages stay plain text (`chat.py`).

        messages: [{"role": …, "content": a string or [{"type": "text", "text": …} …]} …].
        CutawayError: no template, no or malformed messages, or the template's own refusal.
        """
        checked = check(messages)
        sign = sign_for(checked, tools, variables, self.chat_template)
        guarded = [self._guard.apply(value, sign) for value in (checked, tools, variables)]
        prompt = self._render(guarded[0], guarded[1], add_generation_prompt, guarded[2])
        return self._ids(self.stretches(prompt, sign=sign))

    def chat_variables(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """`given`, to be handed to `chat`: what the template may be told, such as Qwen3's enable_thinking.

        Errors: it does not ask for one of them, or takes it from elsewhere. Nothing is silently ignored.
        """
        names = sandbox.variables(self.chat_template) if self.chat_template and given else ()
        known = {*names} - {*PROMPT, *(f"{role}_token" for role in self.recipe.roles)}
        for name in given:
            if name not in known:
                hint = f"it has {', '.join(sorted(known))}" if known else "leave it out"
                raise CutawayError(f"the chat template has no variable {name!r}", "chat_template_kwargs", hint)
        return {**given}

    @cached_property
    def _guard(self) -> Guard:
        return Guard(self.recipe.added)

    def _render(self, messages: Any, tools: Any, add_generation_prompt: bool, variables: Any) -> str:
        if self.recipe.chat_template is None:
            hint = "this is a base model: use completions, which continue a text"
            raise CutawayError("the model has no chat template", "chat_template", hint)
        names = {f"{role}_token": self._tokens[i] for role, i in self.recipe.roles.items()}
        given = {"messages": messages, "tools": tools, "add_generation_prompt": add_generation_prompt}
        return sandbox.render(self.recipe.chat_template, {"documents": None, **names, **given, **variables})


def _checked(text: str) -> str:
    """Text must be Unicode proper: a lone surrogate has no UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise CutawayError(f"the text holds a lone surrogate at character {error.start}", "text") from None
    except AttributeError:
        raise CutawayError(f"text should be a string, not {type(text).__name__}", "text") from None
    return text


def _visible(letter: str) -> str:
    if 0xDC80 <= ord(letter) <= 0xDCFF:  # a byte that is no character of its own
        return f"⟨{ord(letter) - 0xDC00:02X}⟩"
    return _SIGNS.get(letter) or (letter if letter.isprintable() else f"⟨U+{ord(letter):04X}⟩")
