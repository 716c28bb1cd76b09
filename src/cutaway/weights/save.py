"""Our models back into the formats of others: a directory for transformers, a GGUF file for llama.cpp."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cutaway.errors import CutawayError
from cutaway.files import atomic
from cutaway.models.decoder import Decoder
from cutaway.models.encoder import Encoder
from cutaway.models.families import FAMILIES, rope_gguf
from cutaway.models.families.table import (
    Binding,
    Family,
    Row,
    config_of,
    config_of_gguf,
    gguf_of_config,
    kept_in,
    rows_of,
    spec_of,
)
from cutaway.models.spec import PoolingSpec, Spec
from cutaway.text.tokenizer import Tokenizer
from cutaway.weights import blocks, gguf, safetensors
from cutaway.weights.checkpoint import Each, silent

# llama.cpp's number for a file that is mostly of one type (`general.file_type`).
FILE_TYPES = {"F32": 0, "F16": 1, "BF16": 32, "Q8_0": 7, "Q4_0": 2}
GGUF_TYPES = tuple(FILE_TYPES)
EXACT = (  # what llama.cpp wants in float32: rows that it adds, and what chooses among experts
    "position_embd.weight",
    "token_types.weight",
    "ffn_gate_inp.weight",
)


def save_directory(
    model: Decoder | Encoder, tokenizer: Tokenizer, path: Path, dtype: torch.dtype, each: Each = silent
) -> None:
    """config.json, safetensors and tokenizer files that transformers loads unchanged, whole or not at all.

    each: called after every tensor. Errors: a spec that the family's configuration cannot express.
    """
    family = FAMILIES[model.spec.family]
    config = {**config_of(family, model.spec), "dtype": str(dtype).removeprefix("torch.")}
    config |= {key: id for key, id in _token_ids(tokenizer).items() if config.get(key) is None}
    pooling = config.pop("cutaway_pooling", None)
    rows, state = _rows(family.rows, model), model.state_dict()
    try:
        with atomic(path) as folder:
            folder.mkdir()
            safetensors.write(folder, _converted(rows, state, model.spec, dtype, each))
            _write_json(folder / "config.json", config)
            if pooling is None:
                _write_json(folder / "generation_config.json", _generation(tokenizer))
            elif _is_told(model.spec):
                _save_pooling(folder, model.spec, pooling)
            tokenizer.save(folder)
    except OSError as error:
        what = f"cannot be written: {error.strerror or error}"
        raise CutawayError(what, str(path), "check the place and its free space") from None


def save_gguf(
    model: Decoder | Encoder,
    tokenizer: Tokenizer,
    path: Path,
    kind: str,
    *,
    name: str = "",
    each: Each = silent,
) -> None:
    """A GGUF file whose matrices are of type `kind`; vectors are F32, and so are rows no block divides F16.

    each: called after every tensor. Errors: an unknown type, a spec or a tokenizer that GGUF cannot express.
    """
    if kind not in GGUF_TYPES:
        raise CutawayError(f"cannot write type {kind!r}", "type", f"known: {', '.join(GGUF_TYPES)}")
    family, spec = FAMILIES[model.spec.family], model.spec
    if not family.gguf:
        raise CutawayError(f"llama.cpp has no {family.name} models", "GGUF", "write safetensors")
    rows, state = _rows(family.gguf_rows, model), model.state_dict()
    light = {ours: tensor.to("meta") for ours, tensor in state.items()}
    shapes = {row.theirs[0]: tuple(_only(row, light, spec).shape) for row in rows}
    stated, tensors = rope_gguf.kept(spec)
    scaling = [(name, tuple(tensor.shape), "F32", tensor) for name, tensor in tensors.items()]
    metadata = gguf_of_config(family, config_of(family, spec), spec)
    metadata |= {f"{family.gguf}.{key}": value for key, value in stated.items()}
    _check_expressed(family, spec, metadata, shapes)

    def source(i: int) -> Tensor:
        each(i + 1, len(rows))
        return _only(rows[i], state, spec).float()

    entries = [
        (name, shapes[name], _type(name, shapes[name], kind), partial(source, i)) for i, name in enumerate(shapes)
    ]
    general = {"general.name": name or path.stem, "general.file_type": FILE_TYPES[kind]}
    general |= {"general.type": "model", "general.quantization_version": 2}
    gguf.write(path, {**metadata, **general, **tokenizer.to_gguf(spec.vocab)}, [*entries, *scaling])


def _rows(rows: tuple[Row, ...], model: Decoder | Encoder) -> list[Binding]:
    """Those rows of a table whose parameters the model has."""
    names = {name for name, _ in model.named_parameters()}
    return [row for row in rows_of(rows, model.spec) if set(row.ours) <= names]


def _only(row: Binding, state: Mapping[str, Tensor], spec: Spec) -> Tensor:
    """The tensor of a row of a GGUF table, where experts are one tensor already."""
    (tensor,) = row.save(state, spec).values()
    return tensor


def _converted(
    rows: list[Binding], state: Mapping[str, Tensor], spec: Spec, dtype: torch.dtype, each: Each
) -> Iterator[tuple[str, Tensor]]:
    for i, row in enumerate(rows):
        for name, wide in row.save(state, spec).items():
            narrow = wide.to(kept_in(row.ours[0], dtype)).contiguous()
            if not torch.equal(wide.isinf(), narrow.isinf()):
                raise CutawayError(f"a weight is too large for {dtype}", name, "write F32 or BF16")
            yield name, narrow
        each(i + 1, len(rows))


def _type(name: str, shape: tuple[int, ...], kind: str) -> str:
    if len(shape) < 2 or name.endswith(EXACT):
        return "F32"
    return kind if shape[-1] % blocks.FORMATS[kind].elements == 0 else "F16"


def _check_expressed(
    family: Family, spec: Spec, metadata: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]
) -> None:
    """Refuse to write what would be read as another architecture. `rope_gguf.kept` answers for the scaling itself."""
    said = rope_gguf.read(family.gguf, metadata, {}, dict[str, Tensor]().__getitem__)
    back = spec_of(family, rope_gguf.scaled(config_of_gguf(family, metadata, shapes), said))
    ours, theirs = _comparable(spec.to_dict()), _comparable(back.to_dict())
    differing = (path for path in ours.keys() | theirs.keys() if ours.get(path) != theirs.get(path))
    wrong = sorted(differing, key=lambda path: (path not in ours, path))
    if wrong:
        what = f"GGUF cannot express {wrong[0]} = {ours.get(wrong[0])} of a {family.name} model"
        raise CutawayError(what, "GGUF", "write safetensors")


def _comparable(nested: Any, path: str = "") -> dict[str, Any]:
    """A spec's leaves by path; floats as GGUF keeps them, without what it keeps elsewhere or not at all."""
    if isinstance(nested, float):
        return {path: float(np.float32(nested))}
    if not isinstance(nested, dict | list | tuple):
        return {path: nested}
    items = nested.items() if isinstance(nested, dict) else list(enumerate(nested))
    kept = [(f"{path}.{key}".lstrip("."), value) for key, value in items if key not in ("scaling", "dense")]
    return {leaf: found for at, value in kept for leaf, found in _comparable(value, at).items()}


def _token_ids(tokenizer: Tokenizer) -> dict[str, Any]:
    ids = {"bos": tokenizer.bos_id, "eos": tokenizer.eos_id, "pad": tokenizer.pad_id}
    return {f"{role}_token_id": id for role, id in ids.items() if id is not None}


def _generation(tokenizer: Tokenizer) -> dict[str, Any]:
    """What transformers' `generate` goes by: every token that ends a reply."""
    return {**_token_ids(tokenizer), "eos_token_id": sorted(tokenizer.stop_ids)}


def _is_told(spec: Spec) -> bool:
    """Must it be written how sentence vectors are made? Not of a model with another purpose, if it is as usual."""
    return not (spec.head or spec.task) or replace(spec.pooling or PoolingSpec(), dense=False) != PoolingSpec()


def _save_pooling(folder: Path, spec: Spec, pooling: dict[str, Any]) -> None:
    """The files by which sentence-transformers knows how to make a vector of the hidden states."""
    names = ("Transformer", "Pooling", "Normalize")[: 3 if pooling["normalize"] else 2]
    steps = [
        {
            "idx": i,
            "name": str(i),
            "path": f"{i}_{name}" if i else "",
            "type": f"sentence_transformers.models.{name}",
        }
        for i, name in enumerate(names)
    ]
    (folder / "1_Pooling").mkdir()
    (folder / "modules.json").write_text(json.dumps(steps, indent=2))
    _write_json(folder / "sentence_bert_config.json", {"max_seq_length": spec.context, "do_lower_case": False})
    _write_json(
        folder / "1_Pooling" / "config.json",
        {
            "word_embedding_dimension": spec.width,
            "pooling_mode_mean_tokens": pooling["kind"] == "mean",
            "pooling_mode_cls_token": pooling["kind"] == "cls",
        },
    )


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", "utf-8")
