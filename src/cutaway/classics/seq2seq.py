"""Recurrent encoder and decoder, without attention (Sutskever et al. 2014, arXiv:1409.3215) and with it (Bahdanau et
al. 2015, arXiv:1409.0473).

    source ─► encoder ─► last state ─► decoder ─► target       all that is known of the source is one state
                │                         ▲
                └── every hidden state ───┘ attention          the decoder looks up what it needs, each step anew

Attention is additive: how well a place s of the source answers what the decoder is about to say is
v . tanh(W state + U hidden_s); the shares are a softmax over those, and their mean joins the decoder's input and what
it says. One layer and one direction each; Bahdanau's encoder also reads backward.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from cutaway.classics.ragged import steps_of
from cutaway.classics.recurrent import Recurrent, RecurrentLayer, RecurrentSpec, State, advanced


class Memory(NamedTuple):
    """What the decoder is told of N sources. state: the encoder's last. hidden_NSD: all its hidden states, keys_NSD
    their half of the attention's sum, is_NS where a source has a token."""

    state: State
    hidden_NSD: Tensor
    keys_NSD: Tensor
    is_NS: Tensor

    def rows(self, which: Tensor | slice) -> Memory:
        """Of some of the sources."""
        return Memory(tuple(part[which] for part in self.state), *(part[which] for part in self[1:]))


class AdditiveAttention(nn.Module):
    """Bahdanau's: who is asked and who asks are added, and one vector reads the sum."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width, bias=False)
        self.score = nn.Linear(width, 1, bias=False)

    def shares(self, asks_BD: Tensor, memory: Memory) -> Tensor:
        """How much each place of its source matters to each of B sequences, shares_BS."""
        scores_BS = self.score(torch.tanh(self.query(asks_BD)[:, None] + memory.keys_NSD))[..., 0]
        return scores_BS.masked_fill(~memory.is_NS, -torch.inf).softmax(-1)

    def forward(self, asks_BD: Tensor, memory: Memory) -> Tensor:
        """What the source says about it, [B, D]."""
        return torch.einsum("bs,bsd->bd", self.shares(asks_BD, memory), memory.hidden_NSD)


class Seq2Seq(nn.Module):
    """Reads one sequence and writes another, over one vocabulary. Ragged batches on both sides."""

    def __init__(self, vocab: int, width: int, attention: bool, kind: str = "lstm") -> None:
        super().__init__()
        parts = 2 if attention else 1
        self.source = nn.Embedding(vocab, width)
        self.target = nn.Embedding(vocab, width)
        self.encoder = Recurrent(width, RecurrentSpec(kind, width))  # type: ignore[arg-type]
        self.attention = AdditiveAttention(width) if attention else None
        self.decoder = RecurrentLayer(parts * width, kind, width)
        self.head = nn.Linear(parts * width, vocab)

    def read(self, source_T: Tensor, lengths: list[int]) -> Memory:
        """Encode the sources. Errors: an empty one."""
        hidden_TD, (state,) = self.encoder(self.source(source_T), lengths)
        hidden_NSD = nn.utils.rnn.pad_sequence(list(hidden_TD.split(lengths)), batch_first=True)
        is_NS = torch.arange(max(lengths), device=source_T.device) < source_T.new_tensor(lengths)[:, None]
        keys_NSD = hidden_NSD if self.attention is None else self.attention.key(hidden_NSD)
        return Memory(state, hidden_NSD, keys_NSD, is_NS)

    def step(self, tokens_B: Tensor, state: State, memory: Memory) -> tuple[Tensor, State]:
        """One token of each target: what there is to say next, and the state after it."""
        x_BI = self.target(tokens_B)
        if self.attention is None:
            state = self.decoder.step(self.decoder.input(x_BI), state)
            return state[0], state
        found_BD = self.attention(state[0], memory)
        state = self.decoder.step(self.decoder.input(torch.cat([x_BI, found_BD], -1)), state)
        return torch.cat([state[0], found_BD], -1), state

    def forward(self, memory: Memory, target_T: Tensor, lengths: list[int]) -> Tensor:
        """Hidden states at every token of the targets, which are given (teacher forcing): see `logits`."""
        steps = steps_of(lengths, target_T.device)
        memory = memory.rows(steps.order_N)
        state, said = memory.state, []
        for tokens_B in target_T[steps.order_T].split(steps.counts):
            going = slice(len(tokens_B))
            out, new = self.step(tokens_B, tuple(part[going] for part in state), memory.rows(going))
            state = advanced(state, new)
            said.append(out)
        return torch.cat(said)[steps.order_T.argsort()]

    def logits(self, hidden_RD: Tensor) -> Tensor:
        """Unnormalized log-probabilities of the next token of the target, logits_RV."""
        return self.head(hidden_RD)

    @torch.no_grad()
    def write(self, memory: Memory, begin: int, end: int, longest: int) -> list[list[int]]:
        """The likeliest next token after `begin`, again and again, until `end` (left out) or `longest` tokens."""
        state, tokens_B = memory.state, memory.is_NS.new_full((len(memory.is_NS),), begin, dtype=torch.long)
        columns: list[Tensor] = []
        while len(columns) < longest and not (columns and (torch.stack(columns) == end).any(0).all()):
            hidden_BD, state = self.step(tokens_B, state, memory)
            tokens_B = self.logits(hidden_BD).argmax(-1)
            columns.append(tokens_B)
        return [row[: row.index(end)] if end in row else row for row in torch.stack(columns, 1).tolist()]
