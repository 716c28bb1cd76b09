"""Adapters on a tape of two products, one of joined matrices and one of hidden units, and the same by PyTorch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from cutaway.native.adapters import Adapted, Change, adapt
from cutaway.native.packing import pack_floats
from cutaway.native.tape import ACTIVATIONS, Kind, Matrix, Tape, batch_of
from native.tapes import rows

K, STACKED, WIDTH = 64, {"q": 48, "k": 16, "v": 32}, 64  # inputs, outputs of matrices joined, hidden units
STACK = [(name, row) for name, count in STACKED.items() for row in range(0, count, 16)]
TURNS = [(name, row + half) for row in range(0, WIDTH, 32) for name in ("gate", "up") for half in (0, 16)]


class Case:
    """Sequences of so many tokens with adapters of such ranks, 0 for none; 5 leaves k and up alone, 17 is bfloat16."""

    def __init__(self, counts: list[int], ranks: list[int], seed: int = 0) -> None:
        draw = torch.Generator().manual_seed(seed)
        sizes = STACKED | {"gate": WIDTH, "up": WIDTH}
        self.counts, self.pack, self.rows = counts, pack_floats, rows
        self.x_TK = torch.randn(sum(counts), K, generator=draw)
        self.weights = {name: torch.randn(n, K, generator=draw) / 8 for name, n in sizes.items()}
        self.biases = {name: torch.randn(n, generator=draw) for name, n in sizes.items()}
        self.adapters: list[dict[str, Change]] = []
        for rank in ranks:  # ranks differ between the matrices of one product
            parts = {n: max(1, rank - i) for i, n in enumerate(sizes) if rank and not (rank == 5 and n in ("k", "up"))}
            kind = torch.bfloat16 if rank == 17 else torch.float32
            drawn = {
                n: (torch.randn(r, K, generator=draw), torch.randn(sizes[n], r, generator=draw))
                for n, r in parts.items()
            }
            self.adapters.append(
                {n: (a.to(kind), b.to(kind), (1 + i) / 16) for i, (n, (a, b)) in enumerate(drawn.items())}
            )

    def made(self, march: str = "native", threads: int = 1, only: int | None = None) -> tuple[Tensor, Tensor]:
        """Joined outputs and hidden units of all tokens, or of those of one sequence."""
        chosen = range(len(self.counts)) if only is None else [only]
        x = self.rows(torch.cat([self.x_TK.split(self.counts)[i] for i in chosen]))
        count = len(x.floats)
        outs = rows(torch.zeros(count, 96)), rows(torch.zeros(count, WIDTH))
        tape, targets = Tape(march), [STACK, TURNS]
        how = {"activation": ACTIVATIONS.index("silu"), "gated": 1}
        for i, (kind, more) in enumerate(((Kind.LINEAR, {}), (Kind.FEED, how))):
            matrix = Matrix.of(self.pack(self._joined(self.weights, targets[i])))
            tape.add(Kind.SHRINK, in_=x, target=i + 1)
            tape.add(
                kind,
                in_=x,
                out=outs[i],
                matrix=matrix,
                bias=self._joined(self.biases, targets[i]),
                target=i + 1,
                **more,
            )
        spans = [(0, self.counts[i]) for i in chosen]
        batch = batch_of([0] * count, spans, [[0] for _ in spans], [0], torch.zeros(1))
        adapt(batch, [Adapted(targets, self.adapters[i]) if self.adapters[i] else None for i in chosen])
        tape.run(batch, threads)
        return outs[0].floats.clone(), outs[1].floats.clone()

    def wanted(self) -> tuple[Tensor, Tensor]:
        """The same with merged matrices, float64."""
        made = []
        for x_TK, adapter in zip(self.x_TK.double().split(self.counts), self.adapters, strict=True):
            merged = {name: w.double() for name, w in self.weights.items()}
            for name, (a_RK, b_NR, scale) in adapter.items():
                merged[name] = merged[name] + scale * b_NR.double() @ a_RK.double()
            y = {name: x_TK @ w.T + self.biases[name] for name, w in merged.items()}
            made.append((torch.cat([y[name] for name in STACKED], 1), F.silu(y["gate"]) * y["up"]))
        joined, hidden = (torch.cat(parts) for parts in zip(*made, strict=True))
        return joined, hidden

    @staticmethod
    def _joined(parts: dict[str, Tensor], panels: list[tuple[str, int]]) -> Tensor:
        return torch.cat([parts[name][row : row + 16] for name, row in panels])


def distances(march: str) -> list[float]:
    """How far a case is from PyTorch, as a share of the largest number, for each sequence and product."""
    case = Case([3, 2, 9], [5, 0, 17])
    pairs = zip(case.made(march), case.wanted(), strict=True)
    parts = [
        pair for got, wanted in pairs for pair in zip(got.split(case.counts), wanted.split(case.counts), strict=True)
    ]
    return [float((got - wanted).abs().max() / wanted.abs().max()) for got, wanted in parts]
