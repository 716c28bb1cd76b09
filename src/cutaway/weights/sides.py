"""The two sides of a comparison: checkpoints of any format run by us, or by transformers as an independent witness.

A side tells everything about itself in our terms: spec, tensors by our parameter names, traces by our module names.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cutaway.errors import CutawayError
from cutaway.models.block import positions_of
from cutaway.models.compare import Trace, modules_of, trace
from cutaway.models.decoder import Decoder, EncoderDecoder
from cutaway.models.encoder import Encoder
from cutaway.models.families.table import Binding, rows_of
from cutaway.models.spec import Spec
from cutaway.nn.attention import BlockDiagonal
from cutaway.weights import sources
from cutaway.weights.checkpoint import Checkpoint, display_name, load, open_checkpoint


@dataclass(frozen=True)
class Answer:
    """What a model makes of a sequence. result_TN: logits, labels or hidden states; one row of labels for them all."""

    traces: Mapping[str, Trace]
    result_TN: Tensor


@dataclass(frozen=True)
class Ours:
    """A checkpoint run by Cutaway, in float32."""

    name: str
    checkpoint: Checkpoint
    model: Decoder | Encoder

    @property
    def spec(self) -> Spec:
        return self.model.spec

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        """By our parameter names."""
        return self.model.state_dict()

    def stored_type(self, parameter: str) -> str:
        """The type on disk."""
        return self.checkpoint.stored_type(parameter)

    def answer(self, ids: list[int]) -> Answer:
        """Run one sequence and write down what every module did."""
        results: list[Tensor] = []

        def run() -> None:
            tokens_T, lengths = torch.tensor(ids), [len(ids)]
            hidden_TD = self.model(tokens_T, positions_of(lengths), self._context(tokens_T, lengths))
            if self.model.task is not None:
                results.append(self.model.task(hidden_TD, [len(ids)]))
            else:
                results.append(self.model.logits(hidden_TD) if self.model.head else hidden_TD)

        traces = trace(self.model, run, len(ids))
        return Answer(traces, results[0])

    def _context(self, tokens_T: Tensor, lengths: list[int]) -> BlockDiagonal:
        """The sequence alone; an encoder-decoder reads it as its source, too."""
        if not isinstance(self.model, EncoderDecoder):
            return BlockDiagonal(lengths)
        return BlockDiagonal(lengths, memory_MD=self.model.encode(tokens_T, lengths), sources=lengths)


@dataclass(frozen=True)
class Witness:
    """A checkpoint run by transformers with its plainest attention, in float32."""

    name: str
    checkpoint: Checkpoint
    model: Any

    @property
    def spec(self) -> Spec:
        return self.checkpoint.spec

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        """By our parameter names, translated from what transformers loaded."""
        state = _as_saved(self.model)
        translated: dict[str, Tensor] = {}
        for row in self._rows():
            parts = row.load(lambda name: state[self._inside(name, state)], self.spec)
            translated.update(zip(row.ours, parts, strict=True))
        return translated

    def stored_type(self, parameter: str) -> str:
        """The type on disk."""
        return self.checkpoint.stored_type(parameter)

    def answer(self, ids: list[int]) -> Answer:
        """Run one sequence; modules that transformers fuses are told apart by the widths of ours."""
        results: list[Tensor] = []
        modules = dict(self.model.named_modules())
        fused = modules_of(self.checkpoint.family.rows, self.spec)
        names = {own: theirs for theirs in fused if (own := self._inside(theirs, modules)) in modules}
        traces = trace(self.model, lambda: results.append(self._result(ids)), len(ids), names)
        parts = (part for name, whole in traces.items() for part in fused[name].split(whole, self.spec))
        return Answer(dict(parts), results[0])

    def _result(self, ids: list[int]) -> Tensor:
        """What it gives, in the shape of ours: transformers parts the two numbers of a span."""
        inputs = {"input_ids": torch.tensor([ids])}
        source = {"decoder_input_ids": inputs["input_ids"]} if self.spec.encoder else {}
        output = self.model(**inputs, **source)
        if "start_logits" in output:
            return torch.stack([output.start_logits[0], output.end_logits[0]], -1)
        task = self.spec.task
        return output[0][0].reshape(len(ids) if task is None or task.each else 1, -1)

    def _rows(self) -> Iterator[Binding]:
        wanted = set(self.checkpoint.bindings)
        return (r for r in rows_of(self.checkpoint.family.rows, self.spec) if set(r.ours) <= wanted)

    def _inside(self, name: str, known: Mapping[str, Any]) -> str:
        """A name in this model's class, which may be the bare base model, or call a module otherwise than its file."""
        names = (name, name.removeprefix(self.checkpoint.family.prefix), name.replace(".block_sparse_moe", ".mlp"))
        return next((n for n in names if n in known), name)


def _as_saved(model: Any) -> dict[str, Tensor]:
    """The tensors by their names on disk, where experts, which transformers fuses in memory, are apart."""
    from transformers.core_model_loading import revert_weight_conversion

    return revert_weight_conversion(model, model.state_dict())


Side = Ours | Witness


def ours(source: str) -> tuple[Ours, Any]:
    """The side that `source` names, and its tokenizer. Errors: see `weights.checkpoint.load`."""
    loaded = load(source)
    return Ours(source, loaded.checkpoint, loaded.model), loaded.tokenizer


def witness(source: str) -> Witness:
    """transformers' view of `source`. Errors: transformers is not installed, or does not load it."""
    try:
        import transformers
    except ImportError:
        raise CutawayError("transformers is not installed", "--reference", "pip install transformers") from None
    path = sources.resolve(source)
    checkpoint = open_checkpoint(path)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    return Witness(f"{source} in transformers", checkpoint, _load_theirs(transformers, checkpoint, path))


def _load_theirs(transformers: Any, checkpoint: Checkpoint, path: Path) -> nn.Module:
    named = next(iter(checkpoint.config.get("architectures") or ()), "AutoModel")
    plain = checkpoint.spec.pooling is None and checkpoint.spec.encoder is None
    kind = transformers.AutoModelForCausalLM if plain else getattr(transformers, named)
    file = {"gguf_file": path.name} if path.is_file() else {}
    folder = path.parent if path.is_file() else path
    try:
        model = kind.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager", **file)
    except Exception as error:  # whatever transformers says of a checkpoint that it does not accept
        raise CutawayError(f"transformers does not load it: {error}", display_name(str(path))) from error
    return model.eval()
