"""A checkpoint on disk, whatever its format, as a model of ours: find the family, translate, check, load.

    config.json + *.safetensors ─┐                       ┌─ Spec ── build ─┐
                                 ├─ Checkpoint ── tables ─┤                 ├─ Decoder | Encoder
    *.gguf ──────────────────────┘                       └─ tensors ───────┘
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cutaway.errors import CutawayError
from cutaway.models.build import build
from cutaway.models.decoder import Decoder
from cutaway.models.encoder import Encoder
from cutaway.models.families import family_of_architecture, family_of_gguf
from cutaway.models.families.llama import scaling_of_factors
from cutaway.models.families.table import Family, Row, config_of_gguf, rows_of, spec_of
from cutaway.models.spec import Spec
from cutaway.text.tokenizer import Tokenizer
from cutaway.weights import gguf, safetensors, sources

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}
ROPE_FACTORS = "rope_freqs.weight"


@dataclass(frozen=True)
class Checkpoint:
    """An opened checkpoint: what it is, and a way to its tensors, none of which is loaded yet.

    shapes, stored: of the foreign tensors, by foreign name; stored is the type on disk ("Q4_1", "BF16").
    """

    path: Path
    family: Family
    spec: Spec
    config: Mapping[str, Any]
    rows: tuple[Row, ...]
    shapes: Mapping[str, tuple[int, ...]]
    stored: Mapping[str, str]
    read: Callable[[str], Tensor]
    read_tokenizer: Callable[[], Tokenizer]

    @cached_property
    def bindings(self) -> dict[str, Row]:
        """The row behind each of our parameters. Errors: tensors that the file lacks or the family does not know."""
        wanted = set(build(self.spec, "meta").state_dict())
        rows = [r for r in rows_of(self.rows, len(self.spec.layers)) if set(r.ours) <= wanted]
        rows = [r._replace(theirs=self._stored_name(r.theirs)) for r in rows]
        known = {r.theirs for r in rows}
        unknown = [n for n in self.shapes if n not in known and not self._ignored(n)]
        if unknown:
            raise CutawayError(
                f"holds {len(unknown)} tensors that {self.family.name} does not have, such as {unknown[0]!r}",
                str(self.path),
                "it may be of a variant that is not implemented",
            )
        return {ours: row for row in rows for ours in row.ours}

    def model(self, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu") -> Decoder | Encoder:
        """The model with its weights. Errors: a tensor that is missing or of the wrong shape, by name."""
        model = build(self.spec, "meta")
        state = dict(self._tensors(dtype, device, {k: v.shape for k, v in model.state_dict().items()}))
        model.load_state_dict(state, assign=True)
        return model.eval()

    def stored_type(self, ours: str) -> str:
        """The type on disk of the tensor behind one of our parameters."""
        return self.stored[self.bindings[ours].theirs]

    def _tensors(
        self, dtype: torch.dtype, device: str | torch.device, shapes: Mapping[str, torch.Size]
    ) -> Iterator[tuple[str, Tensor]]:
        missing = set(shapes) - set(self.bindings)
        if missing:
            raise CutawayError(f"no tensor for {', '.join(sorted(missing)[:3])}", f"family {self.family.name}")
        for row in dict.fromkeys(self.bindings.values()):
            theirs = self.read(row.theirs)
            parts = (theirs,) if row.via is None else row.via.load(theirs, self.spec)
            for ours, part in zip(row.ours, parts, strict=True):
                self._check_shape(row.theirs, tuple(part.shape), tuple(shapes[ours]))
                yield ours, part.to(device, dtype).requires_grad_(True)

    def _stored_name(self, canonical: str) -> str:
        """The name in this file: base-model checkpoints leave out the family's prefix."""
        name = canonical if canonical in self.shapes else canonical.removeprefix(self.family.prefix)
        name = name if name in self.shapes else self.family.prefix + canonical
        if name not in self.shapes:
            raise CutawayError(f"tensor {canonical!r} is missing", str(self.path), "the file is incomplete")
        return name

    def _ignored(self, name: str) -> bool:
        return name == ROPE_FACTORS or any(re.fullmatch(pattern, name) for pattern in self.family.ignored)

    def _check_shape(self, name: str, found: tuple[int, ...], expected: tuple[int, ...]) -> None:
        if found != expected:
            raise CutawayError(
                f"tensor {name!r} gives shape {list(found)}, its configuration asks for {list(expected)}",
                str(self.path),
                "configuration and weights do not belong together",
            )


@dataclass(frozen=True)
class Loaded:
    """A model ready to run, with the tokenizer it was trained with."""

    name: str
    model: Decoder | Encoder
    tokenizer: Tokenizer
    checkpoint: Checkpoint


def load(source: str, dtype: str = "float32", device: str = "cpu") -> Loaded:
    """The model that `source` names: a path, or anything that was pulled. Errors: see `Checkpoint`."""
    if dtype not in DTYPES:
        raise CutawayError(f"unknown dtype {dtype!r}", "dtype", f"known: {', '.join(DTYPES)}")
    checkpoint = open_checkpoint(sources.resolve(source))
    model = checkpoint.model(DTYPES[dtype], device)
    return Loaded(display_name(source), model, checkpoint.read_tokenizer(), checkpoint)


def display_name(source: str) -> str:
    """What a server calls the model: the catalogue's name or the file's."""
    return Path(source.removeprefix("hf:").removeprefix("pypi:").rstrip("/")).name.removesuffix(".gguf")


def open_checkpoint(path: Path) -> Checkpoint:
    """Read headers and configuration only. Errors: no such file, unknown format, unknown architecture, bad config."""
    if path.is_dir():
        ggufs = sorted(path.glob("*.gguf"))
        if (path / "config.json").exists():
            return _open_directory(path)
        if len(ggufs) == 1:
            return _open_gguf(ggufs[0])
        raise CutawayError("holds neither config.json nor a single .gguf", str(path), "name a model directory or file")
    if not path.exists():
        raise CutawayError("no such file", str(path), "check the path, or `cutaway models` for names")
    if path.suffix != ".gguf":
        raise CutawayError("is not a .gguf file", str(path), "for safetensors name the directory with config.json")
    return _open_gguf(path)


def _open_gguf(path: Path) -> Checkpoint:
    file = gguf.read(path)
    family = family_of_gguf(str(file.metadata.get("general.architecture", "")), str(path))
    shapes = {name: info.shape for name, info in file.tensors.items()}
    config = _located(path, lambda: config_of_gguf(family, file.metadata, shapes))
    if ROPE_FACTORS in shapes:
        dim = int(file.metadata[f"{family.gguf}.rope.dimension_count"])
        config |= scaling_of_factors(file.load(ROPE_FACTORS), float(config["rope_theta"]), dim)
    return Checkpoint(
        path=path,
        family=family,
        spec=_located(path, lambda: spec_of(family, config)),
        config=config,
        rows=family.gguf_rows,
        shapes=shapes,
        stored={name: info.type for name, info in file.tensors.items()},
        read=file.load,
        read_tokenizer=lambda: Tokenizer.from_gguf(file.metadata),
    )


def _open_directory(path: Path) -> Checkpoint:
    config = read_json(path / "config.json")
    family = family_of_architecture(config.get("architectures") or [], str(path / "config.json"))
    tensors = safetensors.read(path)
    if family.name == "bert":
        dense = any(name.endswith("pooler.dense.weight") for name in tensors.shapes)
        config = {**config, "cutaway_pooling": {**_pooling(path), "dense": dense}}
    return Checkpoint(
        path=path,
        family=family,
        spec=_located(path, lambda: spec_of(family, config)),
        config=config,
        rows=family.rows,
        shapes=tensors.shapes,
        stored=tensors.dtypes,
        read=tensors.__getitem__,
        read_tokenizer=lambda: Tokenizer.from_dir(path),
    )


def _pooling(path: Path) -> dict[str, Any]:
    """What sentence-transformers keeps beside the weights; the mean, normalized, where it says nothing."""
    pooling, modules = path / "1_Pooling" / "config.json", path / "modules.json"
    if not pooling.exists():
        return {"kind": "mean", "normalize": True}
    modes = read_json(pooling)
    kinds = [kind for kind, key in [("mean", "mean_tokens"), ("cls", "cls_token")] if modes.get(f"pooling_mode_{key}")]
    if len(kinds) != 1:
        raise CutawayError("names a pooling other than mean or cls", str(pooling), "it is not implemented")
    steps = json.loads(modules.read_text()) if modules.exists() else []
    return {"kind": kinds[0], "normalize": any(step["type"].endswith("Normalize") for step in steps)}


def read_json(path: Path) -> dict[str, Any]:
    """Errors: not JSON, not UTF-8, not an object."""
    try:
        value = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise CutawayError(f"cannot be read: {error}", str(path), "the file is damaged") from None
    if not isinstance(value, dict):
        raise CutawayError("is not a JSON object", str(path), "the file is damaged")
    return value


def _located(path: Path, read: Callable[[], Any]) -> Any:
    """Say in which file a configuration is wrong; a missing or oddly typed key is a fault of the file, not ours."""
    try:
        return read()
    except CutawayError as error:
        raise CutawayError(f"{error.where}: {error.what}".strip(": "), str(path), error.hint) from None
    except (KeyError, TypeError, ValueError, ZeroDivisionError, OverflowError) as error:
        raise CutawayError(f"has a bad configuration: {error!r}", str(path), "the file is damaged") from None
