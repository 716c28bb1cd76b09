"""The Triton kernel of `paged_attention`, where its arguments are explained: one program a tile and key/value head.

M: a tile's tokens times the heads that share keys. E: a head's coordinates. N: the keys of a block.
"""

from __future__ import annotations

from contextlib import suppress

with suppress(ImportError):  # who has no GPU needs none of it
    import triton.language as tl


def paged(  # type: ignore[no-untyped-def]  # noqa: PLR0917  # Triton reads annotations
    q, k, v, out, tiles, tables, sinks, scale, softcap, window, pages,
    SIZE: tl.constexpr, HEADS: tl.constexpr, KV_HEADS: tl.constexpr, WIDTH: tl.constexpr, WIDE: tl.constexpr,
    TOKENS: tl.constexpr, SHARED: tl.constexpr, KEYS: tl.constexpr, CAPPED: tl.constexpr, SINKS: tl.constexpr,
):  # fmt: skip
    """WIDE, SHARED: powers of two that hold a head's coordinates, and the heads of a program."""
    at, g = tiles + 4 * tl.program_id(0), tl.program_id(1)
    row, count, first, owner = tl.load(at), tl.load(at + 1), tl.load(at + 2), tl.load(at + 3)
    m_M, e_E = tl.arange(0, TOKENS * SHARED), tl.arange(0, WIDE)
    token_M, head_M = m_M // SHARED, g * (HEADS // KV_HEADS) + m_M % SHARED
    live_M, position_M = (token_M < count) & (m_M % SHARED < HEADS // KV_HEADS), first + token_M
    live_ME, inside_E = live_M[:, None] & (e_E < WIDTH)[None, :], e_E < WIDTH
    at_ME = ((row + token_M) * HEADS + head_M)[:, None] * WIDTH + e_E[None, :]
    q_ME = tl.load(q + at_ME, mask=live_ME, other=0.0)
    if SINKS:  # a key whose score is known and whose value is zero
        most_M = tl.load(sinks + head_M, mask=live_M, other=0.0).to(tl.float32)
        sum_M = tl.full([TOKENS * SHARED], 1.0, tl.float32)
    else:
        most_M = tl.full([TOKENS * SHARED], float("-inf"), tl.float32)
        sum_M = tl.full([TOKENS * SHARED], 0.0, tl.float32)
    made_ME = tl.full([TOKENS * SHARED, WIDE], 0.0, tl.float32)
    for begin in range(tl.maximum(first - window + 1, 0) // KEYS * KEYS, first + count, KEYS):
        j_N = begin + tl.arange(0, KEYS)
        real_N = j_N < first + count  # beyond lies what other sequences left behind
        page_N = tl.load(tables + owner * pages + j_N // SIZE, mask=real_N, other=0)
        at_N = ((page_N * SIZE + j_N % SIZE) * KV_HEADS + g) * WIDTH
        k_EN = tl.load(k + at_N[None, :] + e_E[:, None], mask=real_N[None, :] & inside_E[:, None], other=0.0)
        v_NE = tl.load(v + at_N[:, None] + e_E[None, :], mask=real_N[:, None] & inside_E[None, :], other=0.0)
        score_MN = tl.dot(q_ME, k_EN, input_precision="ieee") * scale
        if CAPPED:  # softcap * tanh(score / softcap)
            score_MN = softcap * (1 - 2 / (tl.exp(2 / softcap * score_MN) + 1))
        seen_MN = (j_N[None, :] <= position_M[:, None]) & (j_N[None, :] > position_M[:, None] - window)
        score_MN = tl.where(seen_MN, score_MN, float("-inf"))
        more_M = tl.maximum(most_M, tl.max(score_MN, 1))
        base_M = tl.where(more_M == float("-inf"), 0.0, more_M)  # where nothing was seen yet
        weight_MN, shrink_M = tl.exp(score_MN - base_M[:, None]), tl.exp(most_M - base_M)
        sum_M = sum_M * shrink_M + tl.sum(weight_MN, 1)
        made_ME = made_ME * shrink_M[:, None] + tl.dot(weight_MN.to(v_NE.dtype), v_NE, input_precision="ieee")
        most_M = more_M
    made_ME = made_ME / tl.where(live_M, sum_M, 1.0)[:, None]
    tl.store(out + at_ME, made_ME.to(out.dtype.element_ty), mask=live_ME)
