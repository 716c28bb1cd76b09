"""A checkpoint on disk, whatever its format, as a model of ours: find the family, translate, check, load.

config.json + *.safetensors ─┐                       ┌─ Spec ── build ─┐
                             ├─ Checkpoint ── tables ─┤                 ├─ Decoder | Encoder
*.gguf ──────────────────────┘                       └─ tensors ───────┘
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cutaway.errors import CutawayError
from cutaway.models.build import build
from cutaway.models.decoder import Decoder
from cutaway.models.encoder import Encoder
from cutaway.models.families import family_of_architecture, family_of_gguf, rope_gguf
from cutaway.models.families.table import Binding, Family, Row, config_of_gguf, kept_in, rows_of, spec_of
from cutaway.models.spec import Spec
from cutaway.text.tokenizer import Tokenizer
from cutaway.weights import gguf, safetensors, sources
from cutaway.weights.packed import Unpacked
from cutaway.weights.quantization import packings_of

DTYPES = {name: getattr(torch, name) for name in ("float32", "bfloat16", "float16", "float64")}
STORED = "stored"
DAMAGED = "the file is damaged"

Each = Callable[[int, int], None]
"""Called with how many tensors are done and how many there are."""


def silent(done: int, total: int) -> None:
    """Report to nobody."""


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
    raw: Callable[[str], tuple[Tensor, str] | None] = lambda name: None  # a tensor of blocks: its bytes, their format
    idle: Callable[[str], bool] = lambda name: False  # whether a tensor is one that may be left out

    @cached_property
    def bindings(self) -> dict[str, Binding]:
        """What is behind each of our parameters. Errors: tensors that are missing, or that are too many."""
        every = list(rows_of(self.rows, self.spec))
        wanted = [b for b in every if all(ours in self._shapes for ours in b.ours)]
        rows = [b._replace(theirs=tuple(map(self._stored_name, b.theirs))) for b in wanted]
        known = {name for b in rows for name in b.theirs} | self._spare(every)
        unknown = [n for n in self.shapes if n not in known and not self._ignored(n)]
        if unknown:
            raise CutawayError(
                f"holds {len(unknown)} tensors that {self.family.name} does not have, such as {unknown[0]!r}",
                str(self.path),
                "it may be of a variant that is not implemented",
            )
        return {ours: row for row in rows for ours in row.ours}

    def model(
        self, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu", each: Each = silent
    ) -> Decoder | Encoder:
        """The model with its weights. Errors: a tensor that is missing or of the wrong shape, by name.

        each: called after every tensor with how many are read and how many there are.
        """
        rows = list(dict.fromkeys(self.bindings.values()))
        missing = sorted(set(self._shapes) - set(self.bindings))
        if missing:
            raise CutawayError(f"no tensor for {', '.join(missing[:3])}", f"family {self.family.name}")
        state: dict[str, Tensor] = {}
        for i, row in enumerate(rows):
            for ours, part in self._parts(row):
                state[ours] = part.to(device, kept_in(ours, dtype)).requires_grad_(True)
            each(i + 1, len(rows))
        model = build(self.spec, "meta")
        model.load_state_dict(state, assign=True, strict=False)  # a shared tensor has one name here, two there
        return model.eval()

    def tensor(self, ours: str) -> Tensor:
        """One of our parameters, in the numbers that the file has or decodes to."""
        return dict(self._parts(self.bindings[ours]))[ours]

    def stored_rows(self, ours: str) -> tuple[Tensor, Tensor, str] | None:
        """One of our matrices as it is stored: the file's rows, uint8 [N, bytes], which of them each of ours is, [N],
        and their format.

        None where rows of ours are not rows of the file's. The table moves rows; where each comes from is found by
        letting it move their numbers.
        """
        row, shape = self.bindings[ours], self._shapes[ours]
        if len(row.theirs) > 1 or len(shape) != 2:
            return None
        count = self.shapes[row.theirs[0]][0]
        numbers = torch.arange(count)[:, None]
        moved = dict(zip(row.ours, row.via.load(numbers, self.spec) if row.via else (numbers,), strict=True))[ours]
        if moved.shape != (shape[0], 1) or (found := self.raw(row.theirs[0])) is None:
            return None
        return found[0].view(count, -1), moved[:, 0], found[1]

    def stored_type(self, ours: str) -> str:
        """The type on disk of the tensor behind one of our parameters."""
        return self.stored[self.bindings[ours].theirs[0]]

    @cached_property
    def _shapes(self) -> dict[str, tuple[int, ...]]:
        """Our parameters and their shapes."""
        try:
            return {name: tuple(t.shape) for name, t in build(self.spec, "meta").named_parameters()}
        except RuntimeError:  # sizes whose product overflows
            raise CutawayError("describes an absurdly large model", str(self.path), DAMAGED) from None

    def _parts(self, row: Binding) -> Iterator[tuple[str, Tensor]]:
        """Our tensors from theirs, shapes checked."""
        expected = [self._shapes[ours] for ours in row.ours]
        try:
            parts = row.load(self.read, self.spec)
        except RuntimeError:  # the rows of a head, or a fused matrix, do not come out even
            parts = ()
        if [tuple(part.shape) for part in parts] != expected:
            shapes = " and ".join(str(list(shape)) for shape in expected)
            raise CutawayError(
                f"tensor {row.theirs[0]!r} of shape {list(self.shapes[row.theirs[0]])} does not give {shapes}",
                str(self.path),
                "configuration and weights do not belong together",
            )
        yield from zip(row.ours, parts, strict=True)

    def _spare(self, rows: list[Binding]) -> set[str]:
        """A head that is stored although it is tied: the embedding's copy."""
        tied = self.spec.head is not None and self.spec.head.tied
        return {row.theirs[0] for row in rows if tied and row.ours == ("head.weight",)}

    def _stored_name(self, canonical: str) -> str:
        """The name in this file: with or without the family's prefix, and in the spelling of TensorFlow's norms."""
        spellings = [canonical, canonical.removeprefix(self.family.prefix), self.family.prefix + canonical]
        spellings += [_of_tensorflow(name) for name in spellings]
        name = next((name for name in spellings if name in self.shapes), None)
        if name is None:
            raise CutawayError(f"tensor {canonical!r} is missing", str(self.path), "the file is incomplete")
        return name

    def _ignored(self, name: str) -> bool:
        known = any(re.fullmatch(pattern, name) for pattern in self.family.ignored)
        return known or name in rope_gguf.TENSORS or self.idle(name)


def _of_tensorflow(name: str) -> str:
    """BERT's first checkpoints call a norm's weight and bias gamma and beta, and kept that when they were converted."""
    return name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")


@dataclass(frozen=True, eq=False)
class Loaded:
    """A model ready to run, with the tokenizer it was trained with.

    make: reads the weights, when `model` is first asked for. stored: run the file's own numbers where that is possible.
    """

    name: str
    spec: Spec
    tokenizer: Tokenizer
    checkpoint: Checkpoint
    make: Callable[[], Decoder | Encoder]
    stored: bool = False

    @cached_property
    def model(self) -> Decoder | Encoder:
        """Its modules, every weight a number."""
        return self.make()


def load(source: str, dtype: str = "float32", device: str = "cpu") -> Loaded:
    """The model that `source` names: a path, or anything that was pulled. Errors: see `Checkpoint`.

    dtype: of the modules' weights, read at once; `STORED` leaves them in the file until somebody wants them.
    """
    if dtype not in (STORED, *DTYPES):
        raise CutawayError(f"unknown dtype {dtype!r}", "dtype", f"known: {', '.join((STORED, *DTYPES))}")
    _check_device(device)
    checkpoint, stored = open_checkpoint(sources.resolve(source)), dtype == STORED and device == "cpu"
    tokenizer = checkpoint.read_tokenizer()  # first: it is what a folder lacks most often, and it is quick
    numbers = DTYPES.get(dtype, torch.float32)
    loaded = Loaded(
        display_name(source), checkpoint.spec, tokenizer, checkpoint, lambda: checkpoint.model(numbers, device), stored
    )
    assert checkpoint.bindings if stored else loaded.model
    return loaded


def _check_device(name: str) -> None:
    try:
        torch.empty(1, device=name).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # unknown, not built in, or "meta"
        what = f"{name!r} cannot be used: {str(error).splitlines()[0]}"
        raise CutawayError(what, "device", 'try "cpu"') from None


def display_name(source: str) -> str:
    """What a server calls the model: the catalogue's name or the file's."""
    return Path(source.removeprefix("hf:").removeprefix("pypi:").rstrip("/")).name.removesuffix(".gguf")


def open_checkpoint(path: Path) -> Checkpoint:
    """Read headers and configuration only.

    Errors: no such file, unknown format, unknown architecture, bad configuration.
    """
    if path.is_dir():
        ggufs = sorted(path.glob("*.gguf"))
        if (path / "config.json").exists():
            return _open_directory(path)
        if len(ggufs) == 1:
            return _open_gguf(ggufs[0])
        found = f"{len(ggufs)} .gguf files" if ggufs else "no .gguf"
        raise CutawayError(f"holds no config.json and {found}", str(path), "name a model directory or a file")
    if not path.exists():
        raise CutawayError("no such file", str(path), "check the path, or `cutaway models` for names")
    if path.suffix != ".gguf":
        raise CutawayError("is not a .gguf file", str(path), "for safetensors name the directory")
    return _open_gguf(path)


def _open_gguf(path: Path) -> Checkpoint:
    file = gguf.read(path)
    family = family_of_gguf(str(file.metadata.get("general.architecture", "")), str(path), lambda: file.tensors)
    shapes = {name: info.shape for name, info in file.tensors.items()}
    config = _located(path, lambda: _gguf_config(file, family, shapes))
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
        raw=lambda name: (file.raw(name), file.tensors[name].type),
    )


def _gguf_config(file: gguf.GGUF, family: Family, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """What config.json would say. GGUF keeps float32: 9.9999997e-06 becomes the 1e-05 that was meant."""
    config = config_of_gguf(family, file.metadata, shapes)
    config = {k: float(str(np.float32(v))) if isinstance(v, float) else v for k, v in config.items()}
    return rope_gguf.scaled(config, rope_gguf.read(family.gguf, file.metadata, shapes, file.load))


def _open_directory(path: Path) -> Checkpoint:
    config = read_json(path / "config.json")
    where, names = path / "config.json", lambda: _tensor_names(path)
    family = family_of_architecture(_architectures(config, where), str(where), config, names)
    tensors = Unpacked(safetensors.read(path), packings_of(config, str(where)))
    config = {**config, **family.observed(config, tensors.shapes)}
    if family.pools:
        config["cutaway_pooling"] = {**_located(path, lambda: _pooling(path)), **config["cutaway_pooling"]}
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
        raw=tensors.blocks,
        idle=tensors.idle,
    )


def _tensor_names(path: Path) -> Iterable[str]:
    """To say what an unknown model is like; nothing if they cannot be read."""
    try:
        return safetensors.read(path).shapes
    except CutawayError:
        return ()


def _architectures(config: Mapping[str, Any], where: Path) -> list[str]:
    names = config.get("architectures")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        what = f"architectures should be a list of class names, not {names!r:.80}"
        raise CutawayError(what, str(where), "name the model's class, as transformers does")
    return names


def _pooling(path: Path) -> dict[str, Any]:
    """What sentence-transformers keeps beside the weights; the mean, normalized, where it says nothing."""
    pooling, modules = path / "1_Pooling" / "config.json", path / "modules.json"
    listed = read_json(modules, list) if modules.exists() else []
    steps = [str(step["type"]).rpartition(".")[2] for step in listed]
    if others := sorted({*steps} - {"Transformer", "Pooling", "Normalize"}):
        raise CutawayError(f"has a {others[0]} step", str(modules), "it is not implemented")
    if not pooling.exists():
        return {"kind": "mean", "normalize": True}
    kinds = _pooling_modes(read_json(pooling))
    if kinds not in (["mean"], ["cls"]):
        raise CutawayError("names a pooling other than mean or cls", str(pooling), "it is not implemented")
    return {"kind": kinds[0], "normalize": "Normalize" in steps}


def _pooling_modes(config: Mapping[str, Any]) -> list[str]:
    """`pooling_mode` in the files of sentence-transformers today, a flag per mode in older ones."""
    if stated := config.get("pooling_mode"):
        return [stated] if isinstance(stated, str) else list(stated)
    names = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls"}
    return [names.get(key, key) for key, on in config.items() if key.startswith("pooling_mode_") and on]


def read_json(path: Path, kind: type = dict) -> Any:
    """Errors: not JSON, not UTF-8, not of that kind (an object, or a list)."""
    try:
        value = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CutawayError(f"cannot be read: {error}", str(path), DAMAGED) from None
    if not isinstance(value, kind):
        raise CutawayError(f"should hold a JSON {'object' if kind is dict else 'list'}", str(path), DAMAGED)
    return value


def _located(path: Path, read: Callable[[], Any]) -> Any:
    """Say in which file a configuration is wrong; a missing or odd key is a fault of the file, not ours."""
    try:
        return read()
    except CutawayError as error:
        raise CutawayError(f"{error.where}: {error.what}".strip(": "), str(path), error.hint) from None
    except (KeyError, TypeError, ValueError, ZeroDivisionError, OverflowError) as error:
        raise CutawayError(f"has a bad configuration: {error!r}", str(path), DAMAGED) from None
