"""Our models back into the formats of others: a directory for transformers, a GGUF file for llama.cpp."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cutaway.errors import CutawayError
from cutaway.files import atomic
from cutaway.models.decoder import Decoder
from cutaway.models.encoder import Encoder
from cutaway.models.families import FAMILIES
from cutaway.models.families.llama import rope_factors
from cutaway.models.families.table import Row, config_of, gguf_of_config, rows_of
from cutaway.models.spec import Spec
from cutaway.text.tokenizer import Tokenizer
from cutaway.weights import blocks, gguf, safetensors

GGUF_TYPES = ("F32", "F16", "BF16", "Q8_0", "Q4_0")
# llama.cpp's number for a file that is mostly of one type (`general.file_type`).
FILE_TYPES = {"F32": 0, "F16": 1, "Q4_0": 2, "Q8_0": 7, "BF16": 32}


def save_directory(model: Decoder | Encoder, tokenizer: Tokenizer, path: Path, dtype: torch.dtype) -> None:
    """config.json, safetensors and tokenizer files that transformers loads unchanged. Written whole or not at all."""
    family = FAMILIES[model.spec.family]
    config = {**config_of(family, model.spec), "dtype": str(dtype).removeprefix("torch."), **_token_ids(tokenizer)}
    pooling = config.pop("cutaway_pooling", None)
    tensors = {row.theirs: tensor().to(dtype).contiguous() for row, tensor in _foreign(model, family.rows)}
    with atomic(path) as folder:
        folder.mkdir()
        safetensors.write(folder, tensors)
        _write_json(folder / "config.json", config)
        if pooling:
            _save_pooling(folder, model.spec, pooling)
        tokenizer.save(folder)


def save_gguf(model: Decoder | Encoder, tokenizer: Tokenizer, path: Path, kind: str, name: str = "") -> None:
    """A GGUF file whose matrices are of type `kind`; vectors, and rows that blocks do not divide, stay as F32 or F16."""
    if kind not in GGUF_TYPES:
        raise CutawayError(f"cannot write type {kind!r}", "type", f"known: {', '.join(GGUF_TYPES)}")
    family, spec = FAMILIES[model.spec.family], model.spec
    metadata = {
        **gguf_of_config(family, config_of(family, spec), spec),
        "general.name": name or path.stem,
        "general.file_type": FILE_TYPES[kind],
        "general.quantization_version": 2,
        **tokenizer.to_gguf(),
    }
    entries = [
        (row.theirs, *_shape_and_type(tensor(), kind), partial(_as_float32, tensor))
        for row, tensor in _foreign(model, family.gguf_rows)
    ]
    gguf.write(path, metadata, [*entries, *_rope_tensor(spec)])


def _as_float32(tensor: Any) -> Tensor:
    return tensor().detach().float()


def _foreign(model: Decoder | Encoder, rows: tuple[Row, ...]) -> Iterator[tuple[Row, Any]]:
    """(row, function that makes their tensor) for every row whose parameters the model has."""
    state = model.state_dict()
    for row in rows_of(rows, len(model.spec.layers)):
        if all(ours in state for ours in row.ours):
            yield row, partial(_save_row, row, tuple(state[ours] for ours in row.ours), model.spec)


def _save_row(row: Row, parts: tuple[Tensor, ...], spec: Spec) -> Tensor:
    return parts[0] if row.via is None else row.via.save(parts, spec)


def _shape_and_type(tensor: Tensor, kind: str) -> tuple[tuple[int, ...], str]:
    if tensor.dim() < 2:
        return tuple(tensor.shape), "F32"
    fits = tensor.shape[-1] % blocks.FORMATS[kind].elements == 0
    return tuple(tensor.shape), kind if fits else "F16"


def _rope_tensor(spec: Spec) -> list[tuple[str, tuple[int, ...], str, Tensor]]:
    """llama.cpp reads Llama 3's scaling from a tensor of factors."""
    a = spec.layers[0].attention
    if a.rope is None or a.rope.scaling is None:
        return []
    if a.rope.scaling.kind != "llama3":
        raise CutawayError(f"rope scaling {a.rope.scaling.kind!r} cannot be written", "GGUF", "write safetensors")
    factors = rope_factors(a.rope, a.head_dim)
    return [("rope_freqs.weight", tuple(factors.shape), "F32", factors)]


def _token_ids(tokenizer: Tokenizer) -> dict[str, Any]:
    ids = {"bos_token_id": tokenizer.bos_id, "eos_token_id": tokenizer.eos_id, "pad_token_id": tokenizer.pad_id}
    return {key: value for key, value in ids.items() if value is not None}


def _save_pooling(folder: Path, spec: Spec, pooling: dict[str, Any]) -> None:
    """The files by which sentence-transformers knows how to make a vector of the hidden states."""
    modules = ["Transformer", "Pooling", *(["Normalize"] if pooling["normalize"] else [])]
    paths = ["", "1_Pooling", "2_Normalize"]
    kinds = [f"sentence_transformers.models.{name}" for name in modules]
    steps = [{"idx": i, "name": str(i), "path": p, "type": k} for i, (p, k) in enumerate(zip(paths, kinds, strict=False))]
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
