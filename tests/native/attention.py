"""Attention over pages, asked of the kernels and of `nn.attention`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cutaway.native.tape import Kind, Rows, Tape, batch_of
from cutaway.nn.attention import Question, attend

PAGE = 32
Span = tuple[int, int, int]  # which text, from where, how many


@dataclass
class Texts:
    """Queries, keys and values of whole texts, and the keys and values in pages, in an order of no meaning.

    q: [L, H, E] of each text, keys and values [L, G, E]. What no text has written is not a number.
    """

    question: Question
    q: list[Tensor]
    k: list[Tensor]
    v: list[Tensor]
    keys: Tensor
    values: Tensor
    tables: Tensor

    def wanted(self) -> list[Tensor]:
        """[L, H * E] of each text in float64."""
        return [self._wanted(*parts) for parts in zip(self.q, self.k, self.v, strict=True)]

    def _wanted(self, *parts: Tensor) -> Tensor:
        q, k, v = (part.double().transpose(0, 1)[None] for part in parts)
        return attend(q, k, v, self.question)[0].transpose(0, 1).flatten(1)

    def asked(self, spans: Sequence[Span], march: str = "native", threads: int = 1, scratch: int = 1 << 20) -> Rows:
        """What the kernels make of the tokens of the spans, end to end; without scratch long texts are not cut."""
        q = torch.cat([self.q[i][start : start + n].flatten(1) for i, start, n in spans])
        heads, kv_heads, E = self.q[0].shape[1], self.k[0].shape[1], self.q[0].shape[2]
        given, out = Rows.of(len(q), q.shape[1]), Rows.of(len(q), q.shape[1])
        given.floats[:] = q
        tape, question = Tape(march), self.question
        for kind in (Kind.ATTEND, Kind.MERGE):
            tape.add(
                kind, heads=heads, kv_heads=kv_heads, head_dim=E, window=question.window or 0, scale=question.scale,
                softcap=question.softcap or 0.0, sinks=question.sinks_H, in_=given, out=out, keys=self.keys,
                values=self.values, quantize=1,
            )  # fmt: skip
        tables = self.tables[[i for i, _, _ in spans]].contiguous()
        tape.run(batch_of(range(len(q)), [span[1:] for span in spans], tables, [0], torch.zeros(scratch)), threads)
        return out


def texts(lengths: Sequence[int], heads: tuple[int, int], E: int, question: Question, seed: int = 0) -> Texts:
    """Random ones. heads: of queries, of keys and values."""
    kv_heads, made = heads[1], torch.Generator().manual_seed(seed)

    def draw(length: int, heads: int) -> Tensor:
        return torch.randn(length, heads, E, generator=made)

    q = [draw(length, heads[0]) * 3 for length in lengths]
    k, v = ([draw(length, kv_heads).half() for length in lengths] for _ in range(2))
    counts = [-(-length // PAGE) for length in lengths]
    order = torch.randperm(sum(counts) + 3, generator=made).int()
    tables = torch.zeros(len(lengths), max(counts), dtype=torch.int32)
    keys = torch.full((len(order), kv_heads, E, PAGE), torch.nan, dtype=torch.float16)
    values = torch.full((len(order), kv_heads, PAGE, E), torch.nan, dtype=torch.float16)
    for i, pages in enumerate(order[: sum(counts)].split(counts)):
        tables[i, : counts[i]] = pages
        for at, page in enumerate(pages.tolist()):
            part = slice(at * PAGE, (at + 1) * PAGE)
            count = len(k[i][part])
            keys[page, :, :, :count] = k[i][part].permute(1, 2, 0)
            values[page, :, :count] = v[i][part].transpose(0, 1)
    return Texts(question, q, k, v, keys, values, tables)
