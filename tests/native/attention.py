"""Attention over pages, asked of the kernels and of `nn.attention`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cutaway.native.tape import Kind, Rows, Tape, batch_of
from cutaway.nn.attention import Question, attend
from native.tapes import quantized

PAGE = 32
Span = tuple[int, int, int]  # which text, from where, how many


@dataclass
class Texts:
    """Queries, keys and values of whole texts, and the keys and values in pages, in an order of no meaning.

    q: [L, H, E] of each text, keys and values [L, G, E], as exact as pages keep them. coded: in codes of 8 bits.
    What no text has written is not a number.
    """

    question: Question
    q: list[Tensor]
    k: list[Tensor]
    v: list[Tensor]
    keys: Tensor
    values: Tensor
    tables: Tensor
    coded: bool

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
                values=self.values, quantize=1, coded=int(self.coded),
            )  # fmt: skip
        tables = self.tables[[i for i, _, _ in spans]].tolist()
        tape.run(batch_of(range(len(q)), [span[1:] for span in spans], tables, [0], torch.zeros(scratch)), threads)
        return out


def empty(pages: int, kv_heads: int, E: int, coded: bool) -> Tensor:
    """Pages of keys or of values, uint8 [P, G, bytes], in which no number and no scale is one."""
    return torch.full((pages, kv_heads, E * (34 if coded else 64)), 255, dtype=torch.uint8)


def opened(pages_PGB: Tensor, E: int, value: bool, coded: bool) -> tuple[Tensor, Tensor | None]:
    """What such pages hold, as views: keys [P, G, E, 32] or values [P, G, 32, E]; scales [P, G, E / 32, 32]."""
    shape = (PAGE, E) if value else (E, PAGE)
    if not coded:
        return pages_PGB.view(torch.float16).unflatten(2, shape), None
    codes, scales = pages_PGB[..., : E * PAGE].view(torch.int8), pages_PGB[..., E * PAGE :].view(torch.float16)
    return codes.unflatten(2, shape), scales.unflatten(2, (-1, PAGE))


def place(page_T: Tensor, slot_T: Tensor, value: bool) -> tuple[Tensor | slice, ...]:
    """Where tokens lie in what `opened` gives; their numbers there are [T, G, E]."""
    every = slice(None)
    return (page_T, every, slot_T) if value else (page_T, every, every, slot_T)


def write(kept: tuple[Tensor, Tensor | None], page_T: Tensor, slot_T: Tensor, x_TGE: Tensor, value: bool) -> None:
    """Tokens into pages that `opened` gave."""
    numbers, scales = kept
    if scales is None:
        numbers[place(page_T, slot_T, value)] = x_TGE.half()
    else:
        numbers[place(page_T, slot_T, value)], scales[page_T, :, :, slot_T] = codes_of(x_TGE)


def codes_of(x_LGE: Tensor) -> tuple[Tensor, Tensor]:
    """int8 [L, G, E], and a float16 scale for every 32 of them, [L, G, E / 32]."""
    codes, steps = quantized(x_LGE.flatten(1))
    return codes.view(x_LGE.shape), steps.half().view(*x_LGE.shape[:2], -1)


def rounded(x_LGE: Tensor, coded: bool) -> Tensor:
    """As pages keep it."""
    if not coded:
        return x_LGE.half()
    codes, scales = codes_of(x_LGE)
    return codes.float() * scales.float().repeat_interleave(32, -1)


def texts(
    lengths: Sequence[int], heads: tuple[int, int], E: int, question: Question, *, seed: int = 0, coded: bool = False
) -> Texts:  # fmt: skip
    """Random ones. heads: of queries, of keys and values. coded: see `Texts`."""
    kv_heads, made = heads[1], torch.Generator().manual_seed(seed)

    def draw(length: int, heads: int) -> Tensor:
        return torch.randn(length, heads, E, generator=made) * torch.linspace(0.2, 2, E)

    q = [torch.randn(length, heads[0], E, generator=made) * 3 for length in lengths]
    k, v = ([draw(length, kv_heads) for length in lengths] for _ in range(2))
    counts = [-(-length // PAGE) for length in lengths]
    order = torch.randperm(sum(counts) + 3, generator=made).int()
    tables = torch.zeros(len(lengths), max(counts), dtype=torch.int32)
    keys, values = (empty(len(order), kv_heads, E, coded) for _ in range(2))
    for i, pages in enumerate(order[: sum(counts)].split(counts)):
        tables[i, : counts[i]] = pages
        at = torch.arange(lengths[i])
        for kept, x_LGE, value in ((keys, k[i], False), (values, v[i], True)):
            write(opened(kept, E, value, coded), pages[at // PAGE].long(), at % PAGE, x_LGE, value)
    k, v = ([rounded(some, coded) for some in parts] for parts in (k, v))
    return Texts(question, q, k, v, keys, values, tables, coded)
