"""Recurrent networks: Elman's (Cognitive Science 1990), LSTM (Hochreiter & Schmidhuber, Neural Computation 1997, with
the forget gate of Gers et al. 2000) and GRU (Cho et al. 2014, arXiv:1406.1078).

One cell is applied to token after token, and all that it knows of earlier ones is a state of fixed size:

    state_0 ──► cell ──► state_1 ──► cell ──► state_2 ──► ...        what token 0 said passes through every cell
                  ▲                    ▲
               token 0              token 1

The product with the input does not wait for the state and is one matrix product for all tokens; the product with
the state has to be taken step by step. Gates are stacked in PyTorch's order, so that weights can be exchanged.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, cast

import torch
from torch import Tensor, nn

from cutaway.classics.ragged import Steps, steps_of

State = tuple[Tensor, ...]  # [N, D] each, the first what the cell says: (h,) or (h, c)


def elman(x_BG: Tensor, h_BG: Tensor, state: State) -> State:
    """x_BG, h_BG: input and state times their matrices. h' = tanh(x + h)."""
    return (torch.tanh(x_BG + h_BG),)


def lstm(x_BG: Tensor, h_BG: Tensor, state: State) -> State:
    """Input, forget, candidate, output. The cell c is added to, not multiplied by a matrix: gradients last longer."""
    i_BD, f_BD, g_BD, o_BD = (x_BG + h_BG).chunk(4, -1)
    c_BD = f_BD.sigmoid() * state[1] + i_BD.sigmoid() * g_BD.tanh()
    return o_BD.sigmoid() * c_BD.tanh(), c_BD


def gru(x_BG: Tensor, h_BG: Tensor, state: State) -> State:
    """Reset, update, candidate. The reset gate stands after the product with the state, as in cuDNN and PyTorch."""
    (xr, xz, xn), (hr, hz, hn) = x_BG.chunk(3, -1), h_BG.chunk(3, -1)
    keep_BD = (xz + hz).sigmoid()
    return (keep_BD * state[0] + (1 - keep_BD) * (xn + (xr + hr).sigmoid() * hn).tanh(),)


class Cell(NamedTuple):
    """gates: how many times the width it computes. states: how many vectors it remembers."""

    gates: int
    states: int
    step: Callable[[Tensor, Tensor, State], State]


CELLS = {"rnn": Cell(1, 1, elman), "lstm": Cell(4, 2, lstm), "gru": Cell(3, 1, gru)}


@dataclass(frozen=True)
class RecurrentSpec:
    """kind: of cell. width: D of every state. layers: stacked, each reads what the one below says."""

    kind: Literal["rnn", "lstm", "gru"]
    width: int
    layers: int = 1


class RecurrentLayer(nn.Module):
    """One cell through time over a ragged batch."""

    def __init__(self, inputs: int, kind: str, width: int) -> None:
        super().__init__()
        self.cell = CELLS[kind]
        self.width = width
        self.input = nn.Linear(inputs, self.cell.gates * width)
        self.recurrent = nn.Linear(width, self.cell.gates * width)

    def start(self, sequences: int) -> State:
        """A state that knows nothing."""
        return (self.input.weight.new_zeros(sequences, self.width),) * self.cell.states

    def step(self, x_BG: Tensor, state: State) -> State:
        """One token of each sequence, its product with the input weights taken already."""
        return self.cell.step(x_BG, self.recurrent(state[0]), state)

    def forward(self, x_TI: Tensor, steps: Steps, state: State | None = None) -> tuple[Tensor, State]:
        """x_TI -> out_TD and the last state of every sequence; `state` is where they begin, zero if not given."""
        rows = self.input(x_TI)[steps.order_T].split(steps.counts)
        state = self.start(len(steps.order_N)) if state is None else tuple(part[steps.order_N] for part in state)
        said = []
        for x_BG in rows:
            state = advanced(state, self.step(x_BG, tuple(part[: len(x_BG)] for part in state)))
            said.append(state[0][: len(x_BG)])
        back_N = steps.order_N.argsort()
        return torch.cat(said)[steps.order_T.argsort()], tuple(part[back_N] for part in state)


def advanced(state: State, new: State) -> State:
    """The first rows of a state replaced; the sequences of the others have ended."""
    ended = len(new[0])
    return tuple(torch.cat([b, a[ended:]]) if ended < len(a) else b for a, b in zip(state, new, strict=True))


class Recurrent(nn.Module):
    """A stack of layers: x_TI -> out_TD."""

    def __init__(self, inputs: int, spec: RecurrentSpec) -> None:
        super().__init__()
        self.spec = spec
        sizes = [inputs] + [spec.width] * (spec.layers - 1)
        self.layers = nn.ModuleList(RecurrentLayer(size, spec.kind, spec.width) for size in sizes)

    def forward(
        self, x_TI: Tensor, lengths: list[int], states: Sequence[State | None] | None = None
    ) -> tuple[Tensor, list[State]]:
        """Sequences of `lengths` laid end to end; states: one per layer, from an earlier call, or None to begin.

        Errors: an empty sequence.
        """
        steps, last = steps_of(lengths, x_TI.device), []
        for layer, begin in zip(self.layers, states or [None] * len(self.layers), strict=True):
            x_TI, end = cast(RecurrentLayer, layer)(x_TI, steps, begin)
            last.append(end)
        return x_TI, last


class RecurrentLM(nn.Module):
    """A recurrent language model (Mikolov et al. 2010): embedding, stack, head. As `Decoder`, without a context."""

    def __init__(self, vocab: int, spec: RecurrentSpec) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocab, spec.width)
        self.stack = Recurrent(spec.width, spec)
        self.head = nn.Linear(spec.width, vocab)

    def forward(
        self, tokens_T: Tensor, lengths: list[int], states: Sequence[State | None] | None = None
    ) -> tuple[Tensor, list[State]]:
        """hidden_TD, and the states from which the same sequences go on."""
        return self.stack(self.embedding(tokens_T), lengths, states)

    def logits(self, hidden_RD: Tensor) -> Tensor:
        """Unnormalized log-probabilities of the next token, logits_RV."""
        return self.head(hidden_RD)
