"""Search against transformers' beam search, against all replies there are, and against the papers written out."""

from __future__ import annotations

import itertools
from functools import cache

import pytest
import torch
import torch.nn.functional as F

from cutaway.engine.constraints.spec import ConstraintSpec
from cutaway.engine.engine import Engine
from cutaway.engine.params import SamplingParams
from cutaway.engine.search import Beams, beam_search, best_of, contrastive_search
from cutaway.errors import CutawayError
from cutaway.models.block import positions_of
from cutaway.nn.attention import BlockDiagonal
from engine.tiny import decoder, tokenizer
from kit.precision import all_float64
from kit.twins import ours, twin

PROMPT = [5, 17, 3, 17, 3, 40, 8, 2, 9, 1, 30, 11, 7, 21, 22, 23, 24, 3, *range(16, 34), 3]  # a page, and some more


@cache
def pair():
    theirs = twin("llama")
    return theirs.reference, ours(theirs)


def logits_of(model, tokens):
    with torch.inference_mode():
        hidden_TD = model(torch.tensor(tokens), positions_of([len(tokens)]), BlockDiagonal([len(tokens)]))
        return model.logits(hidden_TD), hidden_TD


def searched(params, beams, **limits):
    _, model = pair()
    engine = Engine(model, tokenizer(), context=64, **limits)
    found = beam_search(engine, PROMPT, params, beams)
    assert not engine.busy
    engine.scheduler.pages.check([])
    return found, engine


SETTINGS = [
    {},
    {"width": 1},
    {"width": 3, "length_penalty": 0.0},
    {"width": 3, "length_penalty": 2.0},
    {"width": 5, "length_penalty": -1.0},
    {"width": 4, "early_stopping": True},
    {"width": 4, "early_stopping": "never", "length_penalty": 1.5},
]


@pytest.mark.parametrize("ngram", [0, 2])
@pytest.mark.parametrize("ends", [1, 12])
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_beams_are_those_of_transformers(settings, ends, ngram):
    theirs, model = pair()
    vocab, beams = model.spec.vocab, Beams(**settings)
    stops = tuple(range(0, vocab, vocab // ends))[:ends]
    params = SamplingParams(max_tokens=12, stop_token_ids=stops, ignore_eos=True, no_repeat_ngram=ngram)
    found, _ = searched(params, beams)
    with all_float64(), torch.no_grad():
        expected = theirs.generate(
            torch.tensor([PROMPT]), attention_mask=torch.ones(1, len(PROMPT), dtype=torch.long), max_new_tokens=12,
            num_beams=beams.width, num_return_sequences=beams.width, do_sample=False, eos_token_id=list(stops),
            pad_token_id=vocab - 1, length_penalty=beams.length_penalty, early_stopping=beams.early_stopping,
            no_repeat_ngram_size=ngram, return_dict_in_generate=True, output_scores=True,
        )  # fmt: skip
    replies = [row[len(PROMPT) :].tolist() for row in expected.sequences]
    for i, (one, reply) in enumerate(zip(found, replies, strict=False)):
        assert one.reply == reply[: len(one.reply)], i
        assert set(reply[len(one.reply) :]) <= {vocab - 1, *stops}
    if beams.width > 1:
        assert [one.rank for one in found] == pytest.approx(expected.sequences_scores.tolist()[: len(found)], abs=1e-4)


def all_replies(length: int) -> dict[tuple[int, ...], float]:
    """Log-probability of every reply of so many tokens."""
    _, model = pair()
    found = {(): 0.0}
    for _ in range(length):
        rows = {reply: logits_of(model, [*PROMPT, *reply])[0][-1].log_softmax(-1).tolist() for reply in found}
        found = {(*reply, t): found[reply] + lp for reply, row in rows.items() for t, lp in enumerate(row)}
    return found


def test_a_beam_as_wide_as_the_vocabulary_finds_the_best_of_all():
    params = SamplingParams(max_tokens=2, ignore_eos=True)
    everything = all_replies(2)
    vocab = pair()[1].spec.vocab
    found, _ = searched(params, Beams(width=vocab), running=vocab, budget=vocab)
    best = sorted(everything, key=lambda reply: -everything[reply])[:vocab]
    assert [tuple(one.reply) for one in found] == best
    assert [one.logprob for one in found] == pytest.approx([everything[reply] for reply in best], abs=1e-4)
    assert {one.finish for one in found} == {"length"}


def test_width_1_is_greedy_and_wider_beams_rank_no_lower():
    _, model = pair()
    params = SamplingParams(temperature=0, max_tokens=10, ignore_eos=True)
    greedy = [e.choice.token for e in Engine(model, tokenizer(), context=64).generate(PROMPT, params)]
    ranks = {width: searched(params, Beams(width=width))[0][0] for width in (1, 8)}
    assert ranks[1].reply == greedy
    assert ranks[8].logprob > ranks[1].logprob


def diverse(width: int, groups: int, diversity: float, steps: int) -> list[list[list[int]]]:
    """Diverse beam search as its paper's algorithm 1 reads, everything computed again at every step."""
    _, model = pair()
    beams = [[((), 0.0)] for _ in range(groups)]
    for _ in range(steps):
        taken = torch.zeros(model.spec.vocab, dtype=torch.float64)
        for g in range(groups):
            grown = []
            for reply, score in beams[g]:
                scores_V = logits_of(model, [*PROMPT, *reply])[0][-1].log_softmax(-1) - diversity * taken + score
                grown += [((*reply, t), s) for t, s in enumerate(scores_V.tolist())]
            beams[g] = sorted(grown, key=lambda beam: -beam[1])[: width // groups]
            for reply, _ in beams[g]:
                taken[reply[-1]] += 1
    return [[[*reply] for reply, _ in group] for group in beams]


@pytest.mark.parametrize(("width", "groups", "diversity"), [(4, 2, 1.5), (6, 3, 0.7), (3, 3, 5.0), (4, 2, 0.0)])
def test_diverse_beams_are_those_of_the_paper(width, groups, diversity):
    params = SamplingParams(max_tokens=6, ignore_eos=True)
    found, _ = searched(params, Beams(width=width, groups=groups, diversity=diversity))
    expected = [reply for group in diverse(width, groups, diversity, 6) for reply in group]
    # replies that stop at max_tokens are complete in one go, so each group's are its last beams
    assert sorted(one.reply for one in found) == sorted(expected)


@pytest.mark.parametrize(("k", "alpha"), [(4, 0.6), (6, 0.3), (3, 1.0), (5, 0.0)])
def test_contrastive_search_is_that_of_the_paper(k, alpha):
    _, model = pair()
    tokens = list(PROMPT)
    for _ in range(10):
        logits_TV, hidden_TD = logits_of(model, tokens)
        best = logits_TV[-1].softmax(-1).topk(k)
        scores = []
        for p, token in zip(best.values, best.indices.tolist(), strict=True):
            new_D = logits_of(model, [*tokens, token])[1][-1]
            scores.append((1 - alpha) * p - alpha * F.cosine_similarity(new_D[None], hidden_TD).max())
        tokens.append(int(best.indices[int(torch.stack(scores).argmax())]))
    params = SamplingParams(max_tokens=10, ignore_eos=True)
    assert contrastive_search(model, tokenizer(), PROMPT, params, k=k, alpha=alpha) == tokens[len(PROMPT) :]
    ends = SamplingParams(max_tokens=10, ignore_eos=True, stop_token_ids=(tokens[len(PROMPT) + 2],))
    found = contrastive_search(model, tokenizer(), PROMPT, ends, k=k, alpha=alpha)
    assert found == tokens[len(PROMPT) : len(PROMPT) + len(found)]
    assert found[-1] in ends.stop_token_ids


def test_beams_share_the_pages_of_what_they_have_in_common(monkeypatch):
    _, model = pair()
    engine = Engine(model, tokenizer(), context=64)
    held: list[int] = []
    copy = engine.runner.copy
    monkeypatch.setattr(engine.runner, "copy", lambda pairs: held.append(engine.scheduler.pages.held) or copy(pairs))
    beam_search(engine, PROMPT, SamplingParams(max_tokens=5, ignore_eos=True), Beams(width=6))
    assert len(PROMPT) // engine.runner.size == 1
    assert max(held) == 1 + 6, "one page is everybody's, and each has one of its own"


def test_a_beam_obeys_a_constraint_and_the_rules():
    engine = Engine(decoder(), tokenizer())
    params = SamplingParams(max_tokens=30, constraint=ConstraintSpec.regex("(ab|ba){2,4}"))
    found = beam_search(engine, [5, 9, 200], params, Beams(width=5, length_penalty=0.5))
    texts = [tokenizer().decode(one.reply) for one in found]
    assert len({tuple(one.reply) for one in found}) == 5
    every = ["".join(parts) for n in (2, 3, 4) for parts in itertools.product(["ab", "ba"], repeat=n)]
    assert all(text.removesuffix("<|im_end|>") in every for text in texts)
    assert {one.finish for one in found} == {"stop"}
    least = SamplingParams(max_tokens=9, min_tokens=7, ignore_eos=True, stop_token_ids=tuple(range(50)))
    assert all(len(one.reply) >= 8 for one in searched(least, Beams())[0])


def test_what_cannot_be_searched_is_refused():
    _, model = pair()
    with pytest.raises(CutawayError, match="multiple of 3"):
        Beams(width=4, groups=3)
    engine = Engine(model, tokenizer(), context=64, running=2)
    with pytest.raises(CutawayError, match="this has 2"):
        beam_search(engine, PROMPT, SamplingParams(), Beams(width=4))
    engine.add(PROMPT, SamplingParams())
    with pytest.raises(CutawayError, match="idle"):
        beam_search(engine, PROMPT, SamplingParams(), Beams(width=2))
    small = Engine(model, tokenizer(), context=64, cache=2 * engine.runner.page_bytes)
    with pytest.raises(CutawayError, match="too few pages"):
        beam_search(small, PROMPT, SamplingParams(max_tokens=12, ignore_eos=True), Beams(width=4))
    assert not small.busy


def test_wu_and_power_rank_lengths_differently():
    assert Beams(length_penalty=0.6, penalty="wu").rank(-3.0, 7) == pytest.approx(-3 / 2**0.6)
    assert Beams(length_penalty=2.0).rank(-8.0, 2) == pytest.approx(-2)


def test_best_of_takes_the_highest_mean():
    assert best_of([[-1.0, -1.0], [-0.5], [-1.8, 0.0, 0.0]], 2) == [1, 2]
