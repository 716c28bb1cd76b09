"""Search: replies that are likely as a whole, where sampling and greedy decoding choose token by token.

- Beam search keeps the likeliest beginnings (Graves 2012, arXiv:1211.3711; length penalty: Wu et al. 2016,
  arXiv:1609.08144). A greedy choice is a beam of width 1.
- Diverse beam search: groups of beams, later ones pay for what earlier ones say (Vijayakumar et al. 2016,
  arXiv:1610.02424).
- Contrastive search: of a few likely tokens the one least like all before it (Su et al. 2022, arXiv:2202.06417).

All beginnings are sequences of one engine, which fork where they part: what they have in common is in shared pages.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from cutaway.engine.engine import Engine
from cutaway.engine.params import SamplingParams
from cutaway.engine.runner import Batch, ends_of, has_states
from cutaway.engine.sampler import DeadEnd, shape
from cutaway.engine.sequence import Sequence as Leaf
from cutaway.errors import CutawayError
from cutaway.models.decoder import Decoder
from cutaway.text.tokenizer import Tokenizer

LENGTH_PENALTIES: dict[str, Callable[[int, float], float]] = {
    "power": lambda n, alpha: n**alpha,
    "wu": lambda n, alpha: ((5 + n) / 6) ** alpha,
}


@dataclass(frozen=True)
class Beams:
    """width: beginnings kept, `groups` equal shares of it. diversity: nats that a token costs a group for each time
    that an earlier group takes it in the same step.

    length_penalty: a reply ranks by its score / n^length_penalty ("wu": ((5 + n) / 6)^length_penalty), n its tokens.
    early_stopping: True ends the search when `width` replies are complete; False when, besides, no beginning ranks
    above the worst of them at the length it has; "never" at the length it might have.
    Errors: a width that is no multiple of the groups.
    """

    width: int = 4
    groups: int = 1
    diversity: float = 0.0
    length_penalty: float = 1.0
    penalty: Literal["power", "wu"] = "power"
    early_stopping: bool | Literal["never"] = False

    def __post_init__(self) -> None:
        if not 0 < self.groups <= self.width or self.width % self.groups:
            raise CutawayError(f"must be a multiple of {self.groups} groups, got {self.width}", "width")

    def rank(self, score: float, length: int) -> float:
        """Of a reply."""
        return score / LENGTH_PENALTIES[self.penalty](length, self.length_penalty)


class Hypothesis(NamedTuple):
    """A complete reply. logprob: the model's, of all tokens. rank: what it is sorted by. finish: as in `Event`."""

    reply: list[int]
    logprob: float
    rank: float
    finish: str


class Beam(NamedTuple):
    """A beginning, and a token that may follow it. score: log-probabilities less penalties; both with the token."""

    leaf: Leaf
    token: int
    score: float
    logprob: float


class Tree:
    """The sequences of a search on an engine that has nothing else to do. Use it as a context.

    Errors: the engine is busy, has not enough places, or its model keeps states, which are not in pages.
    """

    def __init__(self, engine: Engine, prompt: list[int], params: SamplingParams, width: int) -> None:
        if engine.busy or engine.limit < width:
            raise CutawayError(f"needs an idle engine for {width} sequences, this has {engine.limit}", "search")
        if has_states(engine.runner.spec):
            raise CutawayError("needs a model without recurrent states", "search")
        self.engine, self.prompt, self.params = engine, prompt, params
        self.leaves = [engine.add(prompt, params)]

    def __enter__(self) -> Tree:
        return self

    def __exit__(self, *_: object) -> None:
        self._forget(self.leaves)

    @torch.inference_mode()
    def logits(self, watch: Callable[[Batch], None] = lambda spans: None) -> list[Tensor]:
        """Logits_V of what follows each leaf. watch: is told what each step computed. Errors: out of pages."""
        found: dict[Leaf, Tensor] = {}
        while len(found) < len(self.leaves):
            spans = self.engine.scheduler.plan()
            if not spans:
                raise CutawayError("has too few pages for so many sequences", "search", "give the cache more memory")
            ends = zip(spans, ends_of(spans), strict=True)
            last = {s: end - 1 for (s, start, count), end in ends if start + count == len(s.tokens)}
            rows = [logits.values_V for logits in self.engine.runner.run(spans, [*last.values()])]
            watch(spans)
            for span in spans:
                self.engine.scheduler.commit(span)
            found |= zip(last, rows, strict=True)
        return [found[leaf] for leaf in self.leaves]

    def grow(self, chosen: Sequence[tuple[Leaf, int]]) -> None:
        """The next leaves: these, each with one more token. A leaf chosen several times forks, the others end."""
        parents = dict.fromkeys(leaf for leaf, _ in chosen)
        self._forget(leaf for leaf in self.leaves if leaf not in parents)
        first = {leaf: i for i, (leaf, _) in reversed([*enumerate(chosen)])}
        self.leaves = [leaf if first[leaf] == i else self._fork(leaf, token) for i, (leaf, token) in enumerate(chosen)]
        for leaf, i in first.items():
            _append(leaf, chosen[i][1])

    def _fork(self, parent: Leaf, token: int) -> Leaf:
        child = self.engine.prepare(self.prompt, replace(self.params, adapter=""), kept=parent.reply)
        child.adapter = parent.adapter
        if parent.constraint:
            child.constraint = parent.constraint.fork()
        _append(child, token)
        self.engine.runner.copy(self.engine.scheduler.fork(parent, child))
        return child

    def _forget(self, leaves: Iterable[Leaf]) -> None:
        for leaf in leaves:
            self.engine.abort(leaf)


def _append(leaf: Leaf, token: int) -> None:
    leaf.reply.append(token)
    leaf.tokens.append(token)
    if leaf.constraint:
        leaf.constraint.advance(token)


@dataclass
class Group:
    """Beams that compete. beams: those that go on. complete: the best replies so far, best first."""

    width: int
    rules: Beams
    beams: list[Beam] = field(default_factory=list)
    complete: list[Hypothesis] = field(default_factory=list)

    def advance(self, candidates: list[Beam]) -> list[int]:
        """Go on with the best; those that end are complete if they are among the best `width`. The tokens taken."""
        ends = max((len(beam.leaf.ends) for beam in candidates), default=0)
        best = sorted(candidates, key=lambda beam: -beam.score)[: max(2, 1 + ends) * self.width]
        ended = [beam for beam in best[: self.width] if _finish(beam)]
        self.beams = [beam for beam in best if not _finish(beam)][: self.width]
        self.complete = sorted([*self.complete, *map(self._hypothesis, ended)], key=lambda reply: -reply.rank)
        del self.complete[self.width :]
        taken = [beam.token for beam in [*ended, *self.beams]]
        if not self._may_improve():
            self.beams = []
        return taken

    def _hypothesis(self, beam: Beam) -> Hypothesis:
        reply = [*beam.leaf.reply, beam.token]
        return Hypothesis(reply, beam.logprob, self.rules.rank(beam.score, len(reply)), _finish(beam) or "")

    def _may_improve(self) -> bool:
        if len(self.complete) < self.width or not self.beams:
            return True
        leaf, rules = self.beams[0].leaf, self.rules
        longest = rules.early_stopping == "never" and rules.length_penalty > 0
        length = leaf.limit - len(leaf.prompt) if longest else len(leaf.reply) + 1
        return rules.early_stopping is not True and rules.rank(self.beams[0].score, length) > self.complete[-1].rank


def beam_search(engine: Engine, prompt: list[int], params: SamplingParams, beams: Beams) -> list[Hypothesis]:
    """The best replies, best first: `beams.width` of them, or as many as there are.

    Of `params` count max_tokens, what ends a reply, rules, bias, penalties and constraint. Errors: see `Tree`.
    """
    params = replace(params, temperature=0, stop=())
    groups = [Group(beams.width // beams.groups, beams) for _ in range(beams.groups)]
    with Tree(engine, prompt, params, beams.width) as tree:
        heads = [[Beam(tree.leaves[0], -1, 0.0, 0.0)]] * beams.groups
        while any(heads):
            rows = dict(zip(tree.leaves, tree.logits(), strict=True))
            taken: Counter[int] = Counter()
            for group, some in zip(groups, heads, strict=True):
                grown = [beam for head in some for beam in _continued(head, rows[head.leaf], group, taken)]
                taken.update(group.advance(grown))
            tree.grow([(beam.leaf, beam.token) for group in groups for beam in group.beams])
            leaves = iter(tree.leaves)
            heads = [[beam._replace(leaf=next(leaves)) for beam in group.beams] for group in groups]
    return sorted((reply for group in groups for reply in group.complete), key=lambda reply: -reply.rank)


def _continued(head: Beam, logits_V: Tensor, group: Group, taken: Counter[int]) -> list[Beam]:
    """The best ways to go on by a token; none if nothing is allowed."""
    leaf, logprobs_V = head.leaf, logits_V.log_softmax(-1)
    try:
        mask_W = leaf.constraint.mask() if leaf.constraint else None
        ends: Collection[int] = () if leaf.constraint and leaf.constraint.done else leaf.ends
        scores_V = shape(logprobs_V, leaf.params, leaf.prompt, leaf.reply, ends=ends, mask_W=mask_W).scores_V
    except DeadEnd:
        return []
    for token, times in taken.items():
        scores_V[token] -= group.rules.diversity * times
    best = scores_V.topk(min(max(2, 1 + len(leaf.ends)) * group.width, len(scores_V)))
    found = zip(best.indices.tolist(), best.values.tolist(), strict=True)
    return [Beam(leaf, t, head.score + s, head.logprob + float(logprobs_V[t])) for t, s in found if s > -torch.inf]


def _finish(beam: Beam) -> str | None:
    if beam.token in beam.leaf.ends:
        return "stop"
    return "length" if len(beam.leaf.tokens) + 1 >= beam.leaf.limit else None


class Watched:
    """A decoder that keeps the hidden states of its last step."""

    def __init__(self, model: Decoder) -> None:
        self.model, self.spec, self.dtype, self.device = model, model.spec, model.dtype, model.device
        self.logits = model.logits

    def __call__(self, *inputs: Any) -> Tensor:
        self.hidden_TD: Tensor = self.model(*inputs)
        return self.hidden_TD


def contrastive_search(
    model: Decoder, tokenizer: Tokenizer, prompt: list[int], params: SamplingParams, *, k: int = 4, alpha: float = 0.6
) -> list[int]:
    """The reply. Of the k likeliest tokens comes that with the most (1 - alpha) p - alpha * similarity: the largest
    cosine between its hidden state and those of all tokens before. alpha 0 is greedy. Runs on the model's modules.
    """
    watched = Watched(model)
    engine = Engine(cast(Decoder, watched), tokenizer, budget=max(len(prompt), k), running=k)
    new: dict[Leaf, Tensor] = {}

    def watch(spans: Batch) -> None:
        parts = watched.hidden_TD.split([span.count for span in spans])
        new.update(zip((span.sequence for span in spans), (F.normalize(part, dim=-1) for part in parts), strict=True))

    with Tree(engine, prompt, replace(params, temperature=0), k) as tree:
        (leaf,), (logits_V,) = tree.leaves, tree.logits(watch)
        known_TD, reply = new[leaf], []
        while True:
            best = logits_V.softmax(-1).topk(k)
            tree.grow([(leaf, token) for token in best.indices.tolist()])
            rows = tree.logits(watch)
            last_KD = torch.cat([new[leaf][-1:] for leaf in tree.leaves])
            chosen = int(((1 - alpha) * best.values - alpha * (last_KD @ known_TD.T).amax(-1).cpu().float()).argmax())
            leaf, logits_V, known_TD = tree.leaves[chosen], rows[chosen], torch.cat([known_TD, last_KD[chosen, None]])
            reply.append(leaf.reply[-1])
            if reply[-1] in leaf.ends or len(leaf.tokens) >= leaf.limit:
                return reply


def best_of(logprobs: Sequence[Sequence[float]], n: int) -> list[int]:
    """Which n of several replies have the highest mean log-probability per token, best first."""
    means = [sum(reply) / max(1, len(reply)) for reply in logprobs]
    return sorted(range(len(means)), key=lambda i: -means[i])[:n]
