"""A factual edit in words: what is rewritten, and what becomes of the fact, its paraphrases and its neighbors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from cutaway.errors import CutawayError
from cutaway.inside.ablation import divergence
from cutaway.inside.prompt import Each, Guess, decoder, guesses, read, silent
from cutaway.inside.rome import Place, Search, Wish, covariance, edit
from cutaway.inside.sites import run
from cutaway.text.tokenizer import Tokenizer
from cutaway.weights.checkpoint import Loaded

CONTEXTS = ("", "Yesterday I read that ", "It is well known: ", "The question is simple. ", "As my teacher said, ")
"""What stands before the prompt while key and value are found, so that they do not hang on its place in a text."""

ESSENCE = "{} is a"
WINDOW = 128  # tokens of text read at a time for the covariance


@dataclass(frozen=True)
class Fact:
    """prompt: ends where the answer begins, and holds the subject."""

    prompt: str
    subject: str
    answer: str


@dataclass(frozen=True)
class Asked:
    """A prompt before and after the edit. kind: fact, paraphrase or neighbor. before, after: the new answer's
    first token's probability. kl: of the next token's distribution, nats."""

    kind: str
    prompt: str
    before: float
    after: float
    kl: float
    best_before: list[Guess]
    best_after: list[Guess]


@dataclass(frozen=True)
class Report:
    """losses: of the answer during the search for v*, nats. changed: numbers in the matrix. size: of the change,
    relative to the matrix. length: of the change of the value at the subject, relative to it."""

    layer: int
    matrix: str
    losses: list[float]
    changed: int
    size: float
    length: float
    asked: list[Asked]


def wish(tokenizer: Tokenizer, fact: Fact, context: str = "") -> Wish:
    """The fact as ids, its answer at the end. Errors: the subject is not in the prompt, or ends within a token."""
    at = fact.prompt.find(fact.subject)
    if at < 0 or not fact.subject or not fact.answer.strip():
        what = f"needs a subject that stands in the prompt and an answer, not {fact.subject!r} and {fact.answer!r}"
        raise CutawayError(what, "fact", f"the prompt is {fact.prompt!r}")
    asked = context + fact.prompt
    text, end = f"{asked} {fact.answer.strip()}", len(context) + at + len(fact.subject)
    ids = tokenizer.encode(text)
    return Wish(ids, tokens_of(tokenizer, text, end) - 1, len(ids) - tokens_of(tokenizer, text, len(asked)))


def tokens_of(tokenizer: Tokenizer, text: str, end: int) -> int:
    """How many tokens the text has up to character `end`. Errors: a token goes on beyond it."""
    first = tokenizer.encode(text[:end])
    if tokenizer.encode(text)[: len(first)] != first:
        raise CutawayError(f"a token goes on beyond {text[:end]!r}", "fact", "end prompt and subject with whole words")
    return len(first)


def wishes_of(tokenizer: Tokenizer, fact: Fact, contexts: Sequence[str] = CONTEXTS) -> list[Wish]:
    """The fact in every context, then what should stay: how the model would go on from the subject."""
    essence = ESSENCE.format(fact.subject)
    kept = Wish(tokenizer.encode(essence), tokens_of(tokenizer, essence, len(fact.subject)) - 1)
    return [*(wish(tokenizer, fact, context) for context in contexts), kept]


def rewrite(
    loaded: Loaded,
    fact: Fact,
    place: Place,
    text: str,
    *,
    paraphrases: Sequence[str] = (),
    neighbors: Sequence[str] = (),
    contexts: Sequence[str] = CONTEXTS,
    search: Search | None = None,
    each: Each = silent,
) -> tuple[Loaded, Report]:
    """The model with the fact rewritten, and what that did; `loaded` stays as it is.

    text: ordinary text, for the covariance of keys. paraphrases: prompts that should follow, neighbors: prompts about
    other subjects that should not. Errors: see `wish`, `read` and `rome.matrix_of`.
    """
    model, tokenizer = decoder(loaded), loaded.tokenizer
    wishes = wishes_of(tokenizer, fact, contexts)
    windows = torch.tensor(tokenizer.encode(text), device=model.device).split(WINDOW)
    edited = edit(model, place, wishes, covariance(model, place, windows), search=search or Search(), each=each)
    after = replace(loaded, make=lambda: edited.model)
    answer = wishes[0].ids[-wishes[0].answer]
    prompts = [("fact", fact.prompt), *(("paraphrase", p) for p in paraphrases), *(("neighbor", p) for p in neighbors)]
    asked = [ask((loaded, after), kind, prompt, answer) for kind, prompt in prompts]
    outcome = edited.losses, edited.changed, edited.size, edited.length
    return after, Report(place.layer, place.matrix, *outcome, asked)


@torch.inference_mode()
def ask(models: tuple[Loaded, Loaded], kind: str, prompt: str, answer: int) -> Asked:
    """A prompt put to a model before and after its edit. answer: the token whose probability is told."""
    before, after = models
    tokens_T = read(before, prompt, kind).tensor(before.model.device)
    logits = [model.logits(run(model, tokens_T)[-1:])[0] for model in (decoder(before), decoder(after))]
    probability = [float(logits_V.softmax(-1)[answer]) for logits_V in logits]
    best = [guesses(before.tokenizer, logits_V, 3) for logits_V in logits]
    return Asked(kind, prompt, probability[0], probability[1], divergence(*logits), best[0], best[1])
