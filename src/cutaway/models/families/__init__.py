"""The families that Cutaway reads and writes, one file of tables each. To add one: `CONTRIBUTING.md`."""

from __future__ import annotations

import difflib

from cutaway.errors import CutawayError
from cutaway.models.families import (
    albert,
    bart,
    bert,
    bloom,
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
from cutaway.models.families.table import Family

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
        t5,
        mt5,
        bart,
    )
}


def family_of_architecture(names: list[str], where: str) -> Family:
    """By the class name in config.json's `architectures`. Errors: unknown, naming the nearest."""
    known = {a: f for f in FAMILIES.values() for a in f.architectures}
    return next((known[n] for n in names if n in known), None) or _unknown(", ".join(names), list(known), where)


def family_of_gguf(name: str, where: str) -> Family:
    """By `general.architecture` of a GGUF file. Errors: unknown, naming the nearest."""
    known = {f.gguf: f for f in FAMILIES.values() if f.gguf}
    return known.get(name) or _unknown(name, list(known), where)


def _unknown(name: str, known: list[str], where: str) -> Family:
    near = difflib.get_close_matches(name, known, n=2, cutoff=0.4)
    hint = f"nearest: {', '.join(near)}; " if near else ""
    raise CutawayError(f"unknown architecture {name!r}", where, f"{hint}known: {', '.join(known)}")
