"""A reply in the making: its tokens, how many of them are computed, and the text they spell so far."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from cutaway.engine.adapters import Fitted
from cutaway.engine.constraints.constraint import Constraint
from cutaway.engine.pages import Chain
from cutaway.engine.params import SamplingParams
from cutaway.engine.sampler import Choice, Logits, given
from cutaway.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from cutaway.engine.drafter import Drafter


@dataclass(frozen=True)
class Event:
    """What one step brought one sequence.

    text: newly certain characters, perhaps none. offset: how many the reply had before, released or held.
    finish: "stop" (end token or stop string) or "length" (max_tokens or the context) if it ended.
    """

    choice: Choice
    text: str
    finish: str | None
    offset: int = 0


@dataclass(eq=False)
class Sequence:
    """tokens: the prompt, then the reply. text: the reply's. sent: how many of its characters are released; the
    others might still become part of a stop string. trace: how many alternatives each choice describes. finish: as
    in `Event`, or "abort", "timeout", "error". seen: what the model thought of the prompt's second token and those
    that follow, as far as computed, if that is wanted. source: what the encoder reads, in an encoder-decoder; the
    prompt is then its start token. cached: tokens that were found in pages when it began. began: when its first
    span was planned, on the monotonic clock. drafter: who guessed `drafts`. trust: how probable it is that a
    drafter's next guess is right. predicted: guesses from `SamplingParams.prediction` that were right, and the
    others. For the rest see `Schedulable`.
    """

    prompt: list[int]
    params: SamplingParams
    tokenizer: Tokenizer
    trace: int = 0
    reply: list[int] = field(default_factory=list)
    source: list[int] = field(default_factory=list)
    limit: int = 0
    chain: Chain = field(default_factory=Chain)
    priority: int = 0
    tenant: str = ""
    deadline: float | None = None
    constraint: Constraint | None = None
    adapter: Fitted | None = None

    finish: str | None = None
    text: str = ""
    sent: int = 0
    seen: list[Choice] = field(default_factory=list)
    computed: int = 0
    cached: int = 0
    began: float | None = None
    table: list[int] = field(default_factory=list)
    drafts: list[int] = field(default_factory=list)
    rank: tuple[float, int] = (0, 0)
    awaited: int = 0
    preempted: int = 0
    drafter: Drafter | None = None
    trust: dict[Drafter, float] = field(default_factory=dict)
    predicted: tuple[int, int] = (0, 0)

    def __post_init__(self) -> None:
        self.tokens = self.prompt + self.reply
        own = frozenset[int]() if self.params.ignore_eos else self.tokenizer.stop_ids
        self.ends = own | {*self.params.stop_token_ids}
        self.decoder = self.tokenizer.stream(continuing=True)
        self.text = "".join(map(self.decoder.push, self.reply))
        self.sent = len(self.text)

    @property
    def unseen(self) -> range:
        """The tokens of the prompt after each of which it is still to be told what the model thought of the next."""
        return range(len(self.seen), 0 if self.params.prompt_logprobs is None else len(self.prompt) - 1)

    def look(self, rows: Iterable[Logits]) -> None:
        """What comes after the first of `unseen`."""
        for logits in rows:
            self.seen.append(given(logits, self.prompt[len(self.seen) + 1], self.params.prompt_logprobs or 0))

    def commit(self, choice: Choice, room: int) -> Event:
        """Append a drawn token. room: how many more tokens the context can hold after it."""
        self.reply.append(choice.token)
        self.tokens.append(choice.token)
        offset = len(self.text)
        ended = choice.token in self.ends
        if not ended:
            self.text += self.decoder.push(choice.token)
        full = len(self.reply) >= self.params.max_tokens or room <= 0
        if self.constraint:
            self.constraint.advance(choice.token)
            ended = ended or (self.constraint.done and not self.tokenizer.stop_ids)
        if ended or full:
            self.text += self.decoder.flush()
        stop = find_stop(self.text, self.params.stop, self.sent)
        if stop is not None:
            self.text = self.text[:stop]
        self.finish = "stop" if ended or stop is not None else "length" if full else None
        return Event(choice, self._release(), self.finish, offset)

    def _release(self) -> str:
        """Text that no stop string can take back any more."""
        end = len(self.text) - (0 if self.finish else held(self.text, self.params.stop))
        end = max(end, self.sent)  # text that the reply was given to begin with is not taken back either
        new, self.sent = self.text[self.sent : end], end
        return new


def find_stop(text: str, stops: tuple[str, ...], start: int = 0) -> int | None:
    """Where the earliest stop string begins in `text`, looking from `start` on."""
    return min((at for s in stops if (at := text.find(s, start)) >= 0), default=None)


def held(text: str, stops: tuple[str, ...]) -> int:
    """Length of the longest end of `text` that is the beginning of a stop string."""
    return max((n for s in stops for n in range(1, len(s)) if text.endswith(s[:n])), default=0)
