"""A checkpoint from one format to the other: GGUF or safetensors in, safetensors or GGUF out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from cutaway.errors import CutawayError
from cutaway.models.decoder import Decoder
from cutaway.models.encoder import Encoder
from cutaway.weights import checkpoint, save, sources
from cutaway.weights.contents import is_wanted

PLAIN = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}  # narrowest first
TYPES = {"safetensors": tuple(PLAIN), "gguf": save.GGUF_TYPES}

Progress = Callable[[str, int, int], None]
"""Called with what is being done ("reading", "writing"), how many tensors are done and how many there are."""


@dataclass(frozen=True)
class Converted:
    """What was made of what. bytes: of weights and everything beside them."""

    source: Path
    path: Path
    format: str
    type: str
    parameters: int
    bytes_before: int
    bytes_after: int


def convert(
    source: str,
    destination: str | Path,
    *,
    format: str | None = None,
    type: str | None = None,
    force: bool = False,
    progress: Progress = lambda doing, done, total: None,
) -> Converted:
    """Write the model that `source` names to `destination`, whole or not at all.

    format: "gguf" or "safetensors", by default what the destination's name says. type: of the matrices, by
    default the narrowest plain one that loses nothing. force: replace what is there, if it is a model.
    Errors: see `Checkpoint`, `save_directory` and `save_gguf`; a destination that exists.
    """
    found, target = sources.resolve(source), Path(destination).expanduser()
    format = format or ("gguf" if target.suffix == ".gguf" else "safetensors")
    _check_request(target, format, type)
    _check_place(found, target, force)
    opened = checkpoint.open_checkpoint(found)
    tokenizer = opened.read_tokenizer()
    model = opened.model(each=lambda done, total: progress("reading", done, total))
    type = type or narrowest(model)
    if format == "gguf":
        name = checkpoint.display_name(source)
        save.save_gguf(model, tokenizer, target, type, name=name, each=_writing(progress))
    else:
        save.save_directory(model, tokenizer, target, PLAIN[type], each=_writing(progress))
    parameters = model.cost.parameters
    return Converted(found, target, format, type, parameters, bytes_of(found), bytes_of(target))


def narrowest(model: Decoder | Encoder) -> str:
    """The first of `PLAIN` that holds every weight of the model as it is."""
    for name, dtype in PLAIN.items():
        if all(torch.equal(t, t.to(dtype).to(t.dtype)) for t in model.state_dict().values()):
            return name
    return "F32"


def bytes_of(path: Path) -> int:
    """Of a file, or of all files under a directory."""
    return sum(p.stat().st_size for p in (path.rglob("*") if path.is_dir() else [path]) if p.is_file())


def _writing(progress: Progress) -> checkpoint.Each:
    return lambda done, total: progress("writing", done, total)


def _check_request(target: Path, format: str, type: str | None) -> None:
    if format not in TYPES:
        raise CutawayError(f"unknown format {format!r}", "format", f"known: {', '.join(TYPES)}")
    if type is not None and type not in TYPES[format]:
        known = ", ".join(TYPES[format])
        raise CutawayError(f"{format} is not written as {type!r}", "type", f"known: {known}")
    if (format == "gguf") != (target.suffix == ".gguf"):
        hint = "a GGUF file's name ends in .gguf, a safetensors model is a directory"
        raise CutawayError(f"is no name for {format}", str(target), hint)


def _check_place(source: Path, target: Path, force: bool) -> None:
    """Nothing is replaced unless asked for, and then only by its like: never a folder of other things."""
    if not target.exists():
        return
    if target.resolve() == source.resolve() or target.resolve() in source.resolve().parents:
        raise CutawayError("is, or holds, the model to convert", str(target), "choose another place")
    if not force:
        raise CutawayError("exists already", str(target), "choose another place, or replace it with --force")
    if not _replaceable(target):
        raise CutawayError("is not a model that could be replaced", str(target), "choose another place")


KEPT_BY_OTHERS = ("README.md", ".gitattributes", "data_config.json")  # what publishers lay beside a model


def _replaceable(target: Path) -> bool:
    if target.suffix == ".gguf":
        return target.is_file()
    if not target.is_dir() or target.is_symlink():
        return False
    names = [path.relative_to(target).as_posix() for path in target.rglob("*") if not path.is_dir()]
    return all(is_wanted(name) or name in KEPT_BY_OTHERS for name in names)
