"""Drafters: cheap guesses at the next tokens, which one step then checks all at once.

Checking k guesses takes one step, not much longer than computing one token, for reading the weights is what takes time.
A guess is right if it is the very token that the sampler draws there, with noise that only seed and position decide; so
what comes out does not depend on the guesses, at any temperature.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from array import array
from collections import Counter

from cutaway.engine.runner import Runner
from cutaway.engine.sampler import DeadEnd, Logits, sample
from cutaway.engine.sequence import Sequence

Asked = list[tuple[Sequence, int]]  # with how many guesses at most
ROW = 0.35  # what a further token adds to a step of one, as long as nothing was measured
FADES = 0.05  # share of the latest step in what is known of steps
LEAST = 0.5  # squared tokens between steps: with less, a single odd one would decide
WILD = 2.0  # a step that took this many times as long as others says how busy the machine was
WEIGHT = 0.2  # of the last guess that was checked, in a drafter's trust
SPARE = 0.02  # share of the time for guesses that do not promise to pay: who was wrong may be right again


class Pass:
    """How long steps take by their tokens: the line through those of late, found by least squares.

    Where kernels take tokens by four, the ninth may cost as much as three. Only guesses make steps of one company
    differ; without any, the slope stays what it was.
    """

    def __init__(self) -> None:
        self.tokens, self.seconds, self.spread, self.slope = 0.0, 0.0, LEAST, 0.0

    def note(self, tokens: int, seconds: float) -> None:
        """A step of so many tokens, none of them of a prompt, took so long. Nothing is learned if that is no time."""
        if seconds <= 0:
            return
        if not self.tokens:
            self.tokens, self.seconds, self.slope = tokens, seconds, ROW * seconds / (1 - ROW + ROW * tokens)
        off, late = tokens - self.tokens, min(seconds, WILD * self.at(tokens)) - self.seconds
        self.spread += FADES * off * off
        self.slope += FADES * off * (late - self.slope * off) / self.spread
        self.spread = max((1 - FADES) * self.spread, LEAST)
        self.tokens += FADES * off
        self.seconds += FADES * late

    def at(self, tokens: int) -> float:
        """Seconds of a step of so many."""
        return max(self.seconds + self.slope * (tokens - self.tokens), self.seconds / 4)

    def checking(self, company: int) -> float:
        """What checking a guess takes, as a share of what one of so many sequences takes of a step of one token each.

        The more there are, the less is left to share: reading weights is a smaller part of the step.
        """
        if not self.tokens:
            return ROW * company / (1 - ROW + ROW * company)
        return max(0.0, self.slope) * company / self.at(company)


class Drafter(ABC):
    """Proposes what may follow. How much of that is worth checking, it learns from what was right.

    most: guesses of a step. cost: of making one, in steps. drafted, accepted: by place in the draft. right, wrong:
    guesses that were checked, all places together. spared: time left for tries, in tokens. passes: the engine's.
    """

    cost = 0.0

    def __init__(self, most: int = 8) -> None:
        self.most, self.spared = most, 0.0
        self.drafted, self.accepted = Counter[int](), Counter[int]()
        self.right, self.wrong = 4, 1  # as if some had been, to begin with
        self.passes = Pass()

    @abstractmethod
    def propose(self, asked: Asked) -> list[list[int]]:
        """For each at most so many guesses at the tokens after its own, perhaps none."""

    def draft(self, sequences: list[Sequence]) -> None:
        """Give drafts to those that have none; once a step, after all have drawn."""
        free = [s for s in sequences if not s.drafts and self.knows(s)]
        self.spared += SPARE * len(free)
        most = [self.worth(s, len(sequences)) for s in free]
        poor = [s for s, worth in zip(free, most, strict=True) if not worth]
        tries = int(bool(poor) and self._spares(poor, len(sequences)))
        asked = [(s, worth or tries) for s, worth in zip(free, most, strict=True) if worth or tries]
        for (sequence, length), drafts in zip(asked, self.propose(asked) if asked else [], strict=True):
            sequence.drafts, sequence.drafter = drafts[:length], self

    def knows(self, sequence: Sequence) -> bool:
        """Whether there is anything to guess from."""
        return True

    def worth(self, sequence: Sequence, company: int) -> int:
        """How many guesses one of so many sequences of a step is worth (as in Liu et al. 2024, arXiv:2406.14066)."""
        trust = sequence.trust.get(self, self.right / (self.right + self.wrong))
        return best_length(trust, self.cost + self.passes.checking(company), self.most)

    def effort(self, sequence: Sequence) -> float:
        """Steps that the next guess for it takes to make."""
        return self.cost

    def _spares(self, sequences: list[Sequence], company: int) -> bool:
        """Whether there is time for a try of them all, which tells what many guesses cost together."""
        price = sum(self.effort(s) + self.passes.checking(company) for s in sequences)
        spares = price <= self.spared
        self.spared -= spares * price
        return spares

    def learn(self, sequence: Sequence, drafted: int, accepted: int) -> None:
        """So many of a step's guesses were right; of those behind a wrong one nothing is known."""
        self.drafted.update(range(drafted))
        self.accepted.update(range(accepted))
        trust = sequence.trust.get(self, self.right / (self.right + self.wrong))
        for right in [1] * accepted + [0] * (accepted < drafted):
            trust += WEIGHT * (right - trust)
        sequence.trust[self] = trust
        self.right, self.wrong = self.right + accepted, self.wrong + (accepted < drafted)

    def members(self) -> tuple[Drafter, ...]:
        """Those who really guess."""
        return (self,)

    def join(self, runner: Runner, context: int, running: int) -> None:
        """Prepare to guess for so many sequences of the model that `runner` computes."""
        return

    def forget(self, sequence: Sequence) -> None:
        """It will not go on."""
        return


def best_length(right: float, cost: float, most: int) -> int:
    """How many guesses bring most tokens a second, if each is right with probability `right` and costs so many steps.

    g guesses give 1 + a + ... + a^g tokens on average, for the time of 1 + cost·g steps (Leviathan et al. 2022,
    arXiv:2211.17192).
    """
    length, tokens = 0, 1.0
    while length < most and right ** (length + 1) * (1 + cost * length) > tokens * cost:
        length += 1
        tokens += right**length
    return length


def extend(sequence: Sequence, drafts: list[int], logits: Logits) -> bool:
    """Append what the sampler would draw there, with the noise that it will have there; whether more may follow.

    Where two models nearly agree, the same noise makes them draw the same token at any temperature.
    """
    reply = sequence.reply + drafts
    try:
        drafts.append(sample(logits, sequence.params, sequence.prompt, reply, ends=sequence.ends).token)
    except (DeadEnd, FloatingPointError):
        return False
    return drafts[-1] not in sequence.ends


class PromptLookup(Drafter):
    """What followed when the last tokens stood there before (Saxena 2023, "Prompt Lookup Decoding").

    longest, shortest: of the run of tokens to find.
    """

    def __init__(self, longest: int = 4, shortest: int = 2) -> None:
        super().__init__()
        self.longest, self.shortest = longest, shortest

    def propose(self, asked: Asked) -> list[list[int]]:
        """See `Drafter`."""
        return [self.find(sequence.tokens, most) for sequence, most in asked]

    def find(self, tokens: list[int], most: int) -> list[int]:
        """The latest earlier place where the longest run stands decides."""
        numbers = array("q", tokens)
        text, size = numbers.tobytes(), numbers.itemsize
        for length in range(min(self.longest, len(tokens) - 1), self.shortest - 1, -1):
            last, end = text[-size * length :], len(text) - 1
            while (at := text.rfind(last, 0, end)) % size:  # between two tokens
                end = at + len(last) - 1
                if at < 0:
                    break
            if at >= 0:
                return tokens[at // size + length :][:most]
        return []


class Predicted(Drafter):
    """What a request says the reply will probably be, as in an edit of a long text ("predicted outputs").

    longest: of the run of tokens that tells where in that text the reply is. near: how far from there it is looked for,
    in tokens, so that a long text takes no longer than a short one.
    """

    def __init__(self, longest: int = 8, near: int = 1024) -> None:
        super().__init__(most=16)
        self.longest, self.near = longest, near

    def knows(self, sequence: Sequence) -> bool:
        """See `Drafter`."""
        return bool(sequence.params.prediction)

    def propose(self, asked: Asked) -> list[list[int]]:
        """See `Drafter`."""
        return [self.follow(sequence.params.prediction, sequence.reply, most) for sequence, most in asked]

    def follow(self, prediction: tuple[int, ...], reply: list[int], most: int) -> list[int]:
        """What stands behind the longest run that ends the reply; of several that which is about as far on."""
        last = reply[: -self.longest - 1 : -1]

        def likely(end: int) -> tuple[int, int]:
            before = prediction[max(0, end - self.longest) : end][::-1]
            run = next((n for n, (a, b) in enumerate(zip(before, last, strict=False)) if a != b), len(before))
            return run, -abs(end - len(reply))

        near = range(max(1, len(reply) - self.near), min(len(prediction), len(reply) + self.near) + 1)
        ends = [end for end in near if prediction[end - 1] == last[0]] if last else [0]
        return [*prediction[end : end + most]] if (end := max(ends, key=likely, default=-1)) >= 0 else []

    def learn(self, sequence: Sequence, drafted: int, accepted: int) -> None:
        """See `Drafter`."""
        right, others = sequence.predicted
        sequence.predicted = right + accepted, others + drafted - accepted
        super().learn(sequence, drafted, accepted)


class InTurn(Drafter):
    """Several drafters: who has nothing to say leaves it to the next one."""

    def __init__(self, *drafters: Drafter) -> None:
        super().__init__()
        self.drafters = drafters

    def members(self) -> tuple[Drafter, ...]:
        """See `Drafter`."""
        return self.drafters

    def propose(self, asked: Asked) -> list[list[int]]:
        """Nothing of its own."""
        return [[] for _ in asked]

    def draft(self, sequences: list[Sequence]) -> None:
        """See `Drafter`."""
        for drafter in self.drafters:
            drafter.draft(sequences)

    def join(self, runner: Runner, context: int, running: int) -> None:
        """See `Drafter`."""
        for drafter in self.drafters:
            drafter.join(runner, context, running)

    def forget(self, sequence: Sequence) -> None:
        """See `Drafter`."""
        for drafter in self.drafters:
            drafter.forget(sequence)
