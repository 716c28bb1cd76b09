"""Low-rank updates of a tape's products: sequences of one batch may each have another, and they change between steps.

    u_R = A x                 an operation of its own (SHRINK), for the rows of sequences with an adapter
    y_N = W x + scale * B u   added where the product is finished, before the activation

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
from cutaway.native.tape import Batch, Matrix, Share, Update

Change = tuple[Tensor, Tensor, float]  # a_RK, b_NR, scale
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
        """A of all parameters one below the other; of B what each panel reads, [R, 16]. bfloat16 stays as it is."""
        a = Matrix.of(pack_floats(torch.cat([a_RK for a_RK, _, _ in changes.values()])))
        ends = dict(zip(changes, accumulate(len(a_RK) for a_RK, _, _ in changes.values()), strict=True))
        blocks, shares, at = list[Tensor](), list[Share](), 0
        for name, row in panels:
            if name not in changes:
                shares.append(Share())
                continue
            a_RK, b_NR, scale = changes[name]
            shares.append(Share(ends[name] - len(a_RK), len(a_RK), at, scale))
            blocks.append(b_NR[row : row + LANES].T)
            at += len(a_RK)
        b = torch.cat(blocks).contiguous()
        b, every = b if b.dtype == torch.bfloat16 else b.float(), (Share * len(shares))(*shares)
        update.a, update.b, update.shares, update.bits = ctypes.pointer(a), b.data_ptr(), every, 8 * b.itemsize
        self.width = max(self.width, -(-a.n // LANES) * LANES)
        self._kept += [a, b, every]


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
