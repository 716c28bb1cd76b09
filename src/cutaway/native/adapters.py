"""Low-rank updates of a tape's products: sequences of one batch may each have another, and they change between steps.

    u_R = A x         an operation of its own (SHRINK), for the rows of sequences with an adapter
    y_N = W x + B u   added where the product is finished, before bias and activation go on with it

A product may join several matrices (q, k and v; gate and up in turn), each with ranks of its own. Of every panel of 16
outputs it is known whose rows they are, and so which of the ranks they read.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from itertools import accumulate

import numpy as np
import torch
from torch import Tensor

from cutaway.native.packing import LANES, pack_floats
from cutaway.native.tape import Batch, Matrix, Update

Change = tuple[Tensor, Tensor]  # a_RK, and b_NR with the scale in it
Panel = tuple[str, int]  # a parameter, and its row that is the first of 16


class Adapted:
    """An adapter as the kernels read it: one of `updates` for each of `targets`.

    targets: what the panels of each product are. changes: by parameter. width: the most ranks of a product.
    """

    def __init__(self, targets: list[list[Panel]], changes: Mapping[str, Change]) -> None:
        self.updates, self.width, self._kept = (Update * len(targets))(), 0, list[object]()
        for update, panels in zip(self.updates, targets, strict=True):
            names = dict.fromkeys(name for name, _ in panels if name in changes)
            if names:
                self._fill(update, panels, {name: changes[name] for name in names})

    def _fill(self, update: Update, panels: list[Panel], changes: dict[str, Change]) -> None:
        """A of all parameters one below the other; of B what each panel reads, [R, 16]."""
        a = Matrix.of(pack_floats(torch.cat([a_RK for a_RK, _ in changes.values()])))
        ends = dict(zip(changes, accumulate(len(a_RK) for a_RK, _ in changes.values()), strict=True))
        blocks, shares, at = [], [], 0
        for name, row in panels:
            b_LR = changes[name][1][row : row + LANES] if name in changes else torch.zeros(LANES, 0)
            rank = b_LR.shape[1]
            shares.append((ends.get(name, 0) - rank, rank, at))
            blocks.append(b_LR.T.float())
            at += rank
        b, shares_P3 = torch.cat(blocks), torch.tensor(shares, dtype=torch.int32)
        update.a, update.b, update.shares = ctypes.pointer(a), b.data_ptr(), shares_P3.data_ptr()
        self.width = max(self.width, -(-a.n // LANES) * LANES)
        self._kept += [a, b, shares_P3]


def adapt(batch: Batch, adapters: list[Adapted | None]) -> None:
    """Give each sequence of a batch its adapter, or None. Without any, nothing is computed for them."""
    if not any(adapters):
        return
    places = [ctypes.addressof(made.updates) if made else None for made in adapters]
    rows = (ctypes.c_void_p * len(adapters))(*places)  # type: ignore[arg-type]
    width = max(made.width for made in adapters if made)
    shrunk = np.empty((batch.tokens, width), np.float32)
    batch.adapters, batch.shrunk, batch.shrunk_width = ctypes.addressof(rows), shrunk.ctypes.data, width
    batch.adapted = (adapters, rows, shrunk)
