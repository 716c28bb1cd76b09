"""Guesses of models: each is what a model says that reads the whole text anew, whatever was accepted before.

And guesses of anyone: how many are made, by what they cost.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial

import torch
from torch import Tensor

from cutaway.engine.draft_model import DraftModel
from cutaway.engine.drafter import Asked, Drafter, Pass, Predicted
from cutaway.engine.engine import Engine
from cutaway.engine.look_ahead import LookAhead
from cutaway.engine.params import SamplingParams
from cutaway.engine.runner import Modules
from cutaway.engine.sequence import Sequence
from cutaway.models.decoder import Decoder
from cutaway.nn.attention import BlockDiagonal
from kit import twins
from kit.precision import all_float64
from kit.proofs.constraints import byte_level

LENGTHS, REPLY, MOST = (19, 3, 40), 14, 3
Said = list[tuple[list[int], list[int]]]  # texts, and the guesses at what follows


@cache
def model(noise: float) -> Decoder:
    """The twin of transformers' Llama with a block ahead; noise on all but the latter."""
    plain, generator = twins.ours(twins.twin("llama")), torch.Generator().manual_seed(5)
    with all_float64():
        made = Decoder(replace(plain.spec, ahead=plain.spec.layers[:1])).eval()
    made.load_state_dict(plain.state_dict(), strict=False)
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            drawn = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            ahead = name.startswith("ahead.")
            parameter.copy_(2 * drawn / parameter.shape[-1] ** 0.5 if ahead else parameter + noise * drawn)
    return made


def overheard(drafter: Drafter, asked_of: Decoder, *, temperature: float = 0.0, budget: int = 7) -> tuple[Engine, Said]:
    """The drafter always guesses; what it guessed about three texts that come in pieces."""
    said: Said = []
    propose = drafter.propose

    def noted(asked: Asked) -> list[list[int]]:
        drafts = propose(asked)
        said.extend((list(s.tokens), list(d)) for (s, _), d in zip(asked, drafts, strict=True))
        return drafts

    drafter.propose, drafter.worth = noted, lambda sequence, company: MOST  # type: ignore[method-assign]
    engine = Engine(asked_of, twins.Tokenizerless(), budget=budget, running=3, drafter=drafter)  # type: ignore[arg-type]
    params = SamplingParams(temperature=temperature, seed=4, max_tokens=REPLY, ignore_eos=True)
    sequences: list[Sequence] = [engine.add(tokens_T.tolist(), params) for tokens_T in twins.prompts(LENGTHS)]
    for _ in range(80):
        engine.step()
    assert all(len(s.reply) == REPLY for s in sequences)
    return engine, said


def drafted(name: str) -> None:
    """A draft model says what transformers' own says next. Nearly the same model is sometimes right, sometimes not."""
    twin = twins.twin(name)
    engine, said = overheard(DraftModel(Modules(model(0.0)), budget=9), model(0.02))
    right, all_of_them = engine.stats.accepted.total(), engine.stats.drafted.total()
    assert 0 < right < all_of_them, f"{right} of {all_of_them} were accepted, so nothing was tested"
    assert {len(drafts) for _, drafts in said} == {0, MOST}, "none as long as the text is not read"
    for tokens, drafts in said:
        with all_float64(), torch.no_grad():
            expected_TV = twin.reference(torch.tensor([tokens + drafts])).logits[
                0, len(tokens) - 1 : len(tokens) + len(drafts) - 1
            ]
        assert drafts == expected_TV.argmax(-1).tolist(), f"{drafts} after {len(tokens)} tokens"


def sampled() -> None:
    """At any temperature a model guesses for itself without an error, for it draws with the same noise."""
    engine, said = overheard(DraftModel(Modules(model(0.0))), model(0.0), temperature=0.8)
    assert len({tuple(drafts) for _, drafts in said}) > len(LENGTHS)
    assert engine.stats.accepted == engine.stats.drafted


def ahead() -> None:
    """A block ahead says what it says when it is given all hidden states at once, the model's and then its own."""
    said = [text for budget in (7, 64) for text in overheard(LookAhead(MOST), model(0.0), budget=budget)[1]]
    assert max(len(drafts) for _, drafts in said) == MOST, "nothing was read behind the text"
    for tokens, drafts in said:
        found = alone(model(0.0), tokens, len(drafts))
        assert drafts == found, f"{drafts} after {len(tokens)} tokens, {found} expected"


def predicted() -> None:
    """Where a reply is in its prediction: by the longest run that ends it, of equal ones by how far on it is."""
    text = (1, 2, 9, 1, 2, 8, 3, 1, 2, 7)
    for reply, expected in (([], 1), ([5, 5, 5, 1, 2], 8), ([9, 1, 2], 8), ([5] * 7 + [1, 2], 7), ([2, 8, 3, 1], 2)):
        assert Predicted().follow(text, reply, 1) == [expected], f"after {reply}"


@torch.no_grad()
def alone(of: Decoder, tokens: list[int], count: int) -> list[int]:
    """So many guesses, all positions computed anew for each; behind the text the block's own hidden states are read."""
    past = len(tokens) - 1
    hidden_TD, drafts = of(torch.tensor(tokens[:-1]), torch.arange(past), BlockDiagonal([past])), list[int]()
    for _ in range(count):
        next_T = torch.tensor([*tokens[1:], *drafts])
        ready_TD, made_TD = of.look_ahead(hidden_TD, next_T, torch.arange(len(next_T)), BlockDiagonal([len(next_T)]))
        drafts.append(_likeliest(of, ready_TD))
        hidden_TD = torch.cat([hidden_TD, made_TD[-1:]])
    return drafts


def _likeliest(of: Decoder, ready_TD: Tensor) -> int:
    return int(of.logits(ready_TD[-1:]).argmax())


def measuring() -> None:
    """The line through steps of several sizes; one that is wild, and none that differ, change little."""
    rng, passes = random.Random(0), Pass()
    for i in range(300):
        tokens = 8 + rng.choice((0, 0, 4, 8))
        passes.note(tokens, (3 + 0.5 * tokens) * (9 if i % 50 == 44 else 1))
    assert abs(passes.checking(8) - 4 / 7) < 0.15, f"checking takes {passes.checking(8):.3f}, not 0.571"
    for _ in range(300):
        passes.note(8, 7)
    assert abs(passes.checking(8) - 4 / 7) < 0.15, f"forgotten: {passes.checking(8):.3f}"
    for _ in range(40):
        passes.note(12, 7 + 4 * 2.5)
        passes.note(8, 7)
    assert passes.checking(8) > 2, f"where tokens have become dear: {passes.checking(8):.3f}"


class Machine:
    """Time of steps that guess what is right with some probability: [seconds, tokens] of so many sequences."""

    def __init__(self, seconds: Callable[[int], float], right: float) -> None:
        self.seconds, self.right, self.rng = seconds, right, random.Random(0)

    def run(self, drafter: Drafter, company: int, steps: int) -> tuple[float, int]:
        """How long that took, and how many tokens it brought."""
        made = [Sequence([0], SamplingParams(), byte_level()) for _ in range(company)]
        spent, said = 0.0, 0
        for _ in range(steps):
            for one in made:
                one.drafts = []
            drafter.draft(made)
            tokens = company + sum(len(one.drafts) for one in made)
            spent += self.seconds(tokens)
            drafter.passes.note(tokens, self.seconds(tokens))
            for one in made:
                if one.drafts:
                    found = next((i for i in range(len(one.drafts)) if self.rng.random() > self.right), len(one.drafts))
                    drafter.learn(one, len(one.drafts), found)
                    said += found
        return spent, said + company * steps


class Fluent(Drafter):
    """Always has something to say."""

    def propose(self, asked: Asked) -> list[list[int]]:
        return [[0] * most for _, most in asked]


def paying() -> None:
    """Where a token more takes as long as any other, guesses take 3 % at most; where a tenth, they are made."""
    dear, cheap = Machine(lambda t: t + 2.0 * (t > 8), 0.6), Machine(lambda t: 10 + t / 8, 0.9)
    spent, said = dear.run(Fluent(), 8, 2000)
    assert said / spent > 0.97, f"{said / spent:.3f} of the speed without guesses"
    spent, said = cheap.run(Fluent(), 8, 2000)
    assert said / spent > 2.5 * 8 / 11, f"{said / spent / (8 / 11):.2f} times as fast only"


PROOFS = {
    "drafted llama": partial(drafted, "llama"),
    "drafted llama sampled": sampled,
    "looked-ahead llama": ahead,
    "predicted": predicted,
    "guesses measured": measuring,
    "guesses paying": paying,
}
