"""The families that Cutaway reads and writes, one file of tables each. To add one: `CONTRIBUTING.md`."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from cutaway.errors import CutawayError
from cutaway.models.families import (
    albert,
    bart,
    bert,
    bloom,
    deberta,
    deepseek_v2,
    deepseek_v3,
    electra,
    gemma2,
    gemma3,
    gpt2,
    gpt_oss,
    llama,
    mistral,
    mixtral,
    modernbert,
    mt5,
    opt,
    phi3,
    qwen2,
    qwen2_moe,
    qwen3,
    qwen3_moe,
    roberta,
    t5,
    xlm_roberta,
)
from cutaway.models.families.nearest import nearest
from cutaway.models.families.table import Config, Family

Tensors = Callable[[], Iterable[str]]
"""Gives the names of a checkpoint's tensors, if it comes to that."""

FAMILIES: dict[str, Family] = {
    module.FAMILY.name: module.FAMILY
    for module in (
        gpt2,
        opt,
        bloom,
        llama,
        mistral,
        mixtral,
        qwen2,
        qwen2_moe,
        qwen3,
        qwen3_moe,
        gemma2,
        gemma3,
        phi3,
        deepseek_v2,
        deepseek_v3,
        gpt_oss,
        bert,
        roberta,
        xlm_roberta,
        electra,
        albert,
        deberta,
        modernbert,
        t5,
        mt5,
        bart,
    )
}


def family_of_architecture(
    names: list[str], where: str, config: Config | None = None, tensors: Tensors = tuple
) -> Family:
    """By the class name in config.json's `architectures`. Errors: unknown, naming what comes nearest and differs."""
    known = {a: f for f in FAMILIES.values() for a in f.architectures}
    found = next((known[n] for n in names if n in known), None)
    return found or _unknown(", ".join(names), known, where, config or {}, tensors)


def family_of_gguf(name: str, where: str, tensors: Tensors = tuple) -> Family:
    """By `general.architecture` of a GGUF file. Errors: unknown, naming what comes nearest."""
    of_name = [f for f in FAMILIES.values() if f.gguf == name and name]
    marked = [f for f in of_name if f.gguf_mark and any(tensor.endswith(f.gguf_mark) for tensor in tensors())]
    found = next(iter(marked), None) or next((f for f in of_name if not f.gguf_mark), None)
    return found or _unknown(name, {f.gguf: f for f in FAMILIES.values() if f.gguf}, where, {}, tensors)


def _unknown(name: str, known: dict[str, Family], where: str, config: Config, tensors: Tensors) -> Family:
    near = nearest(known, name, config, tensors())
    hint = f"nearest: {', '.join(map(str, near))}; " if near else ""
    raise CutawayError(f"unknown architecture {name!r}", where, f"{hint}`cutaway families` lists those known")
