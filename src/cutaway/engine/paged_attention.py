"""Attention over pages for a whole batch at once: one Triton kernel for spans of every length.

A tile is a few successive tokens of one sequence; a program answers a tile for all heads that share a key/value head.
It goes through the sequence's pages in blocks of keys and keeps a running maximum and sum, so that scores are never
written out (Milakov and Gimelshein 2018, arXiv:1805.02867; FlashAttention, Dao et al. 2022, arXiv:2205.14135; pages:
Kwon et al. 2023, arXiv:2309.06180). A token to decode is a tile of one, a long prompt many tiles: there are no phases.

Blocks begin at multiples of their size whatever the tile, and one that a token does not see leaves its sums as they
are; so what a token comes to depends neither on the batch nor on how its text was cut into spans, to the bit.
One program goes through all keys of its tile. Splitting long texts over programs, in parts of a fixed size merged in a
fixed order, would keep that and fill a GPU that has few sequences to serve; it is not done.
"""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from cutaway.models.spec import LayerSpec, Spec
from cutaway.nn.attention import AttentionSpec, Question

ROWS = 64  # queries of a tile: tokens times the heads that share keys
BLOCK = 1 << 14  # bytes of a block of keys
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
WIDEST = 256


def available(device: torch.device) -> bool:
    """Whether the kernel can run there."""
    return device.type == "cuda" and find_spec("triton") is not None


def plain(layer: LayerSpec) -> bool:
    """Whether all that a layer asks can be answered here, if its numbers are of `DTYPES`."""
    a = layer.attention
    known = isinstance(a, AttentionSpec) and a.causal and not a.anchors and a.position_bias is None
    return known and a.head_dim <= WIDEST and layer.cross is None


def answers(question: Question, q_THK: Tensor) -> bool:
    """Whether the kernel knows how: causal, without bias or anchors, values of their own."""
    known = question.causal and question.bias is None and not question.anchors and question.values is None
    return known and q_THK.dtype in DTYPES and q_THK.shape[-1] <= WIDEST


def tokens_of_tile(spec: Spec) -> int:
    """So many that they make `ROWS` queries where most heads share keys."""
    shared = [a.heads // a.kv_heads for layer in spec.layers if isinstance(a := layer.attention, AttentionSpec)]
    return max(1, ROWS // _power(max(shared, default=1)))


def paged_attention(
    q_THK: Tensor, k_SGK: Tensor, v_SGK: Tensor, tiles_N4: Tensor, tables_BP: Tensor, *, size: int, tile: int,
    question: Question,
) -> Tensor:  # fmt: skip
    """Out_THK. k_SGK, v_SGK: a slot for every token of every page; those of the batch are written already.

    tiles_N4: of each tile the first row of q, how many rows (at most `tile`), the position of the first, and which row
    of tables_BP has its sequence's pages, of `size` tokens, in order. A row in no tile is not written.
    """
    (_, heads, width), kv_heads, sinks_H = q_THK.shape, k_SGK.shape[1], question.sinks_H
    q_THK, wide = q_THK.contiguous(), max(16, _power(width))
    out_THK = torch.empty_like(q_THK)
    kernel()[(len(tiles_N4), kv_heads)](
        q_THK, k_SGK, v_SGK, out_THK, tiles_N4, tables_BP, q_THK if sinks_H is None else sinks_H,
        question.scale, question.softcap or 0.0, question.window or 1 << 30, tables_BP.shape[1],
        SIZE=size, HEADS=heads, KV_HEADS=kv_heads, WIDTH=width, WIDE=wide,
        TOKENS=tile, SHARED=max(_power(heads // kv_heads), 16 // tile),
        KEYS=max(16, min(64, BLOCK // (wide * q_THK.element_size()))),
        CAPPED=question.softcap is not None, SINKS=sinks_H is not None,
        num_warps=4 if wide <= 128 else 8, num_stages=2,
    )  # fmt: skip
    return out_THK


@cache
def kernel() -> Any:
    """`paged_kernel.paged` made ready by Triton, which is imported when it is first needed."""
    import triton

    from cutaway.engine.paged_kernel import paged

    return triton.jit(paged, do_not_specialize=["window", "pages"], do_not_specialize_on_alignment=["tiles", "tables"])


def _power(n: int) -> int:
    """The smallest power of two that is not less."""
    return 1 << (n - 1).bit_length()
