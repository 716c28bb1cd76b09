"""The kernel for GPUs in Triton's interpreter against the definition, alone and in company; and padded steps on it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from cutaway.engine.cache import Pool
from cutaway.engine.paged_attention import tokens_of_tile
from cutaway.engine.replay import Replay
from cutaway.models.block import positions_of
from cutaway.nn.attention import BlockDiagonal
from engine.paging import CASES, agrees, interpreted, same_bits
from engine.tiny import decoder


@torch.inference_mode()
def replayed() -> None:
    """Padded steps, on pages, give the logits of each text computed whole, without pages."""
    model, texts, got = decoder(window=7), ([1, 2, 3, 4, 5, 6, 7], [30, 31, 32, 33, 34]), []
    pool, tables = Pool(model.spec, model.dtype, model.device, pages=6, size=4), ([3, 0], [4, 1])
    step = Replay(model, pool, 8, 3, tokens_of_tile(model.spec))
    for spans in (((0, 3), (0, 4)), ((3, 3), (4, 1)), ((6, 1),)):
        ids = [token for text, (start, n) in zip(texts, spans, strict=False) for token in text[start : start + n]]
        pieces = [(start, n, table, 9) for table, (start, n) in zip(tables, spans, strict=False)]
        logits_RV = step(ids, pieces, [*range(len(ids))]).clone()
        got.append(logits_RV.split([n for _, n in spans]))
    for i, text in enumerate(texts):
        hidden_TD = model(torch.tensor(text), positions_of([len(text)]), BlockDiagonal([len(text)]))
        ours_TV, expected_TV = torch.cat([parts[i] for parts in got if len(parts) > i]), model.logits(hidden_TD)
        worst = float((ours_TV - expected_TV).abs().max())
        assert worst < 1e-4, f"text {i} is off by {worst:.1e}"


def _interpreted(proof: Callable[[], None]) -> None:
    with interpreted():
        proof()


PROOFS = {
    **{f"paged {name}": partial(_interpreted, partial(agrees, case)) for name, case in CASES.items()},
    "paged to the bit": partial(_interpreted, partial(same_bits, CASES["window"])),
    "replayed": partial(_interpreted, replayed),
}
