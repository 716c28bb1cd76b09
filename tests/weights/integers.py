"""Random matrices of integers with scales, packed one number at a time as the layouts' definitions say."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # which of eight outputs lies in which place of a word, from the lowest bits


@dataclass(frozen=True)
class Drawn:
    """Codes [n][k], zeros [n][s], scales [N, S], the group of each input, bits of a code."""

    codes: list[list[int]]
    zeros: list[list[int]]
    scales: Tensor
    groups: list[int]
    bits: int

    @property
    def dense(self) -> Tensor:
        """float64 [N, K]: scale times code less zero."""
        scales = self.scales.double().tolist()
        rows = zip(self.codes, self.zeros, scales, strict=True)
        return torch.tensor(
            [[s[g] * (code - z[g]) for code, g in zip(row, self.groups, strict=True)] for row, z, s in rows],
            dtype=torch.float64,
        )

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.codes), len(self.groups)


def draw(
    n: int,
    k: int,
    bits: int = 4,
    size: int = 32,
    *,
    seed: int = 0,
    least: int = 0,
    even: bool = False,
    shuffled: bool = False,
    dtype: torch.dtype = torch.float16,
) -> Drawn:
    """least: of the zeros. even: every zero is half of the range, as symmetric quantization leaves it. shuffled: inputs
    in any group."""
    generator = torch.Generator().manual_seed(seed)
    top, half = 2**bits, 2 ** (bits - 1)
    codes = torch.randint(top, (n, k), generator=generator).tolist()
    zeros = torch.randint(least, top + least, (n, k // size), generator=generator)
    scales = (torch.rand(n, k // size, generator=generator) + 0.5) / top / k**0.5
    groups = [i // size for i in range(k)]
    if shuffled:
        groups = [groups[i] for i in torch.randperm(k, generator=generator).tolist()]
    return Drawn(codes, [[half] * (k // size)] * n if even else zeros.tolist(), scales.to(dtype), groups, bits)


def word(numbers: list[int], bits: int) -> int:
    """The first number lowest, as a signed integer of 32 bits."""
    total = sum(number << (bits * place) for place, number in enumerate(numbers))
    return total - 2**32 if total >= 2**31 else total


def runs(numbers: list[int], bits: int) -> Iterator[list[int]]:
    """What goes into each word."""
    for at in range(0, len(numbers), 32 // bits):
        yield numbers[at : at + 32 // bits]


def column(table: list[list[int]], at: int) -> list[int]:
    return [row[at] for row in table]


def int32(rows: list[list[int]]) -> Tensor:
    return torch.tensor(rows, dtype=torch.int32)


def gptq(m: Drawn, less: int = 1, indexed: bool = True) -> dict[str, Tensor]:
    """less: 1 in format v1, 0 in v2."""
    groups = range(m.scales.shape[1])
    words = [[word(run, m.bits) for run in runs(row, m.bits)] for row in m.codes]
    stored = [[word([z - less for z in run], m.bits) for run in runs(column(m.zeros, g), m.bits)] for g in groups]
    parts = {".qweight": int32(words).T.contiguous(), ".qzeros": int32(stored), ".scales": m.scales.T.contiguous()}
    return parts | ({".g_idx": torch.tensor(m.groups, dtype=torch.int32)} if indexed else {})


def awq(m: Drawn) -> dict[str, Tensor]:
    def interleaved(numbers: list[int]) -> list[int]:
        return [word([run[place] for place in AWQ_ORDER], 4) for run in runs(numbers, 4)]

    words = [interleaved(column(m.codes, i)) for i in range(len(m.groups))]
    stored = [interleaved(column(m.zeros, g)) for g in range(m.scales.shape[1])]
    return {".qweight": int32(words), ".qzeros": int32(stored), ".scales": m.scales.T.contiguous()}


def packed(m: Drawn, zeros: str = "packed") -> dict[str, Tensor]:
    """compressed-tensors, "pack-quantized". zeros: packed, signed, or none, which says that all are half."""
    words = [[word(run, m.bits) for run in runs(row, m.bits)] for row in m.codes]
    parts = {"_packed": int32(words), "_scale": m.scales, "_shape": torch.tensor(m.shape)}
    if m.groups != sorted(m.groups):
        parts["_g_idx"] = torch.tensor(m.groups, dtype=torch.int32)
    if zeros == "packed":
        stored = [[word(run, m.bits) for run in runs(column(m.zeros, g), m.bits)] for g in range(m.scales.shape[1])]
        parts["_zero_point"] = int32(stored).T.contiguous()
    if zeros == "signed":
        parts["_zero_point"] = _signed(m.zeros, 2 ** (m.bits - 1))
    return {f".weight{end}": part for end, part in parts.items()}


def plain(m: Drawn, zeros: bool = False) -> dict[str, Tensor]:
    """compressed-tensors, "int-quantized"."""
    parts = {".weight": _signed(m.codes, 128), ".weight_scale": m.scales}
    return parts | ({".weight_zero_point": _signed(m.zeros, 128)} if zeros else {})


def _signed(numbers: list[list[int]], half: int) -> Tensor:
    return torch.tensor([[number - half for number in row] for row in numbers], dtype=torch.int8)


def named(stem: str, parts: dict[str, Tensor]) -> dict[str, Tensor]:
    return {stem + end: part.contiguous() for end, part in parts.items()}


def scheme(bits: int, form: str = "pack-quantized", **more: object) -> dict[str, object]:
    """A quantization_config of compressed-tensors."""
    weights = {"num_bits": bits, "type": "int", "strategy": "group", "group_size": 32, "symmetric": False}
    group = {"targets": ["Linear"], "weights": weights, "input_activations": None, "output_activations": None}
    return {"quant_method": "compressed-tensors", "format": form, "config_groups": {"group_0": group | more}}
