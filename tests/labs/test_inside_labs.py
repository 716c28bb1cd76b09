"""Known values of the parts of the labs that look inside models."""

from __future__ import annotations

import math

import pytest
import torch

from cutaway.errors import CutawayError
from cutaway.inside.rome import Place
from cutaway.inside.sites import run
from cutaway.labs.inside import (
    analogies,
    edit_sequence,
    factual_edit,
    feed_forward_role,
    head_views,
    induction_heads,
    senses,
    where_facts_live,
)
from cutaway.labs.lab import Run
from cutaway.labs.training import IGNORED, fresh, loss_of, small_spec
from kit.threads import one_thread  # noqa: F401


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# ---- head-views


def test_habits_of_heads_written_by_hand() -> None:
    """One head looks at itself, one at the token before, one at the first, one everywhere."""
    tokens = 6
    itself, first = torch.eye(tokens), torch.zeros(tokens, tokens).index_fill(1, torch.tensor([0]), 1.0)
    before = torch.cat([itself[:1], itself[:-1]])
    even = torch.ones(tokens, tokens).tril() / torch.arange(1, tokens + 1)[:, None]
    heads = head_views.heads_of(3, torch.stack([itself, before, first, even]))
    assert [head.layer for head in heads] == [3] * 4
    assert [head.reach for head in heads] == pytest.approx([1, 1, 1, 3.5])
    assert [head.itself for head in heads[:3]] == [1, 0, 0]
    assert [head.before for head in heads[:3]] == pytest.approx([0, 1, 0.2])
    assert [head.first for head in heads[:3]] == pytest.approx([0, 0.2, 1])


def test_a_planted_copy_asks_for_the_symbol_behind_the_mark() -> None:
    batch = head_views.planted(50)(seeded())
    rows, targets = (t.unflatten(0, (50, -1)) for t in (batch.inputs_T, batch.targets_T))
    for row, target in zip(rows, targets, strict=True):
        at = (row == head_views.MARK).nonzero()
        assert at.shape == (1, 1)
        assert int(target[-1]) == int(row[at[0, 0] + 1]) < head_views.SYMBOLS
        assert row[-1] == head_views.ASK
        assert (target[:-1] == IGNORED).all()


def test_rank_correlation_is_spearmans() -> None:
    from scipy.stats import spearmanr

    a, b = torch.randn(2, 20, generator=seeded())
    assert head_views.rank_correlation(a, b) == pytest.approx(spearmanr(a, b).statistic)
    assert head_views.rank_correlation(a, a.exp()) == pytest.approx(1)


def test_blanking_a_token_is_reading_its_mean() -> None:
    model = fresh(small_spec(vocab=head_views.SYMBOLS + 2, width=16), 0, std=0.3)
    tokens_T = head_views.planted(1)(seeded()).inputs_T
    found = head_views.blanked(model, tokens_T, 5)
    mean = model.embedding.tokens.weight[: head_views.SYMBOLS].mean(0)
    log = [loss_at_end(model, tokens_T, 5)]
    with torch.no_grad():
        model.embedding.tokens.weight[head_views.MARK] = mean  # the mark stands once
    log.append(loss_at_end(model, tokens_T, 5))
    at = int((tokens_T == head_views.MARK).nonzero()[0])
    assert float(found[at]) == pytest.approx(log[1] - log[0], abs=1e-5)
    assert len(found) == head_views.LENGTH - 1


@torch.no_grad()
def loss_at_end(model, tokens_T, answer: int) -> float:
    batch = head_views.Batch(tokens_T, torch.full_like(tokens_T, IGNORED), [len(tokens_T)])
    batch.targets_T[-1] = answer
    return float(loss_of(model, batch))


# ---- feed-forward-role


def test_exclusive_or_of_four_tokens() -> None:
    batch = feed_forward_role.exclusive_or(seeded())
    answers = {0: 0, 1: 1, 2: 1, 3: 0}
    assert [answers[t] for t in batch.inputs_T.tolist()] == batch.targets_T.tolist()
    rows = feed_forward_role.bits()
    torch.testing.assert_close(rows[0] + rows[3], rows[1] + rows[2])  # so no linear map can tell the diagonals apart


@pytest.mark.parametrize("name", feed_forward_role.ARMS)
def test_arms_lack_what_they_shall_lack(name: str) -> None:
    arm = feed_forward_role.ARMS[name]
    model, trained = feed_forward_role.arm_model(arm, 0)
    held = {id(p) for p in trained}
    for i in range(arm.layers):
        for part, out in (("attention", "out"), ("ffn", "down")):
            module = model.block(i).get_submodule(part)
            there = part in arm.parts
            assert bool(module.get_submodule(out).weight.any()) == there
            assert all((id(p) in held) == there for p in module.parameters())
    assert id(model.embedding.tokens.weight) not in held


def test_without_norms_and_seeing_itself_attention_is_linear() -> None:
    model, _ = feed_forward_role.arm_model(feed_forward_role.ARMS[feed_forward_role.LINEAR], 0)
    with torch.no_grad():
        logits = model.logits(run(model, torch.arange(4)))
    torch.testing.assert_close(logits[0] + logits[3], logits[1] + logits[2])


# ---- where-facts-live, edit-sequence


def test_facts_are_asked_in_three_ways_with_words_of_their_own() -> None:
    facts = where_facts_live.Facts(60, 0)
    first, last = facts.names
    assert first * last >= 60
    subjects = {tuple(p[:2].tolist()) for p in facts.prompts[0]}
    assert len(subjects) == 60
    for (before, after), prompts in zip(where_facts_live.WAYS, facts.prompts, strict=True):
        assert prompts.shape == (60, before + 2 + after)
        assert torch.equal(prompts[:, before : before + 2], facts.prompts[0][:, :2])
        words = torch.cat([prompts[0, :before], prompts[0, before + 2 :]])
        assert (words >= first + last + facts.kinds).all()
    words = [set(p[0].tolist()) - set(facts.prompts[0][0, :2].tolist()) for p in facts.prompts]
    assert not words[0] & words[1] | words[1] & words[2] | words[0] & words[2]
    assert int(facts.objects_N.min()) >= first + last
    assert max(int(p.max()) for p in facts.prompts) == facts.vocab - 1


def test_a_wish_has_another_answer() -> None:
    facts = where_facts_live.Facts(60, 0)
    for fact in range(60):
        wish, answer = facts.wish(fact, "end")
        assert answer == wish.ids[-1] != int(facts.objects_N[fact])
        assert first_object(facts) <= answer < first_object(facts) + facts.kinds
        assert wish.ids[:-1] == facts.prompts[0][fact].tolist()
        assert wish.subject == len(wish.ids) - 2
        assert facts.wish(fact, "subject")[0].subject == 1


def first_object(facts: where_facts_live.Facts) -> int:
    return sum(facts.names)


def test_shares_of_what_is_said() -> None:
    before = torch.tensor([[1, 2, 3, 4]] * 3)
    after = torch.tensor([[9, 2, 3, 4], [9, 2, 7, 4], [1, 2, 3, 8]])
    assert where_facts_live.shares(before, after, 0, 9) == pytest.approx((1, 0.5, 2 / 9))


def test_the_best_place_is_the_most_rewritten_then_the_least_damaged() -> None:
    spots = [where_facts_live.Spot(n, "ffn", "end") for n in range(3)]
    outcomes = [where_facts_live.Outcome(1, 0.5, d, 9) for d in (0.2, 0.1)]
    found = dict(zip(spots, [*outcomes, where_facts_live.Outcome(0.5, 0.5, 0, 9)], strict=True))
    assert where_facts_live.best(found) == spots[1]


def test_tracing_and_editing_a_small_model() -> None:
    """Patching the end of the question before the last block changes everything there is to change but that block's."""
    facts = where_facts_live.Facts(20, 0)
    model = where_facts_live.trained(facts, 16, 2, 40, Run())
    other = edit_sequence.unlike(facts, 3)
    assert facts.objects_N[other] != facts.objects_N[3]
    assert not set(facts.prompts[0][other, :2].tolist()) & set(facts.prompts[0][3, :2].tolist())
    grid = edit_sequence.trace(model, facts, "residual", [3, 4])
    assert [len(row) for row in grid] == [3, 3]
    assert sum(grid[0][:2]) != 0
    assert grid[0][2] == pytest.approx(0, abs=1e-4)  # the same word in both questions
    curve = edit_sequence.sequence(model, facts, Place(0), [1, 2, 3], Run())
    assert [kept.edits for kept in curve] == [1, 2, 3]
    assert all(0 <= share <= 1 for kept in curve for share in kept[1:])


def test_marks_and_peaks() -> None:
    assert edit_sequence._marks(50) == [1, 2, 5, 10, 20, 50]
    assert edit_sequence._marks(8) == [1, 2, 5, 8]
    assert edit_sequence.peak([[0.1, 0.2, 0.3], [0.0, 0.9, 0.1]]) == (1, "last name", 0.9)


# ---- senses


def test_every_sentence_ends_in_its_word() -> None:
    assert len(senses.WORDS) == 10
    for word, both in senses.WORDS.items():
        assert all(len(sense) == senses.EACH and all(text.endswith(f" {word}") for text in sense) for sense in both)


def test_gaps_of_known_vectors() -> None:
    """Two senses at right angles: 1 within, 0 across. One direction for all: no gap."""
    parted = torch.cat([torch.tensor([[1.0, 0.0]] * 4), torch.tensor([[0.0, 2.0]] * 4)])
    cosine = senses.cosine(torch.stack([parted, torch.ones(8, 2)]))
    assert senses.gap(cosine, (0, 1, 2, 3)).tolist() == pytest.approx([1, 0])
    assert senses.within(cosine, (0, 1, 2, 3)).tolist() == pytest.approx([1, 1])
    mixed = senses.gap(cosine, (0, 1, 4, 5))[0]
    assert float(mixed) == pytest.approx(1 / 3 - 1 / 2)


# ---- analogies


def test_ranks_in_a_table_written_by_hand() -> None:
    """d is where b - a + c points, but b and c lie in the way."""
    table = torch.tensor([[1.0, 0, 0], [0.6, 0.8, 0], [0.8, 0, 0.6], [0.4, 0.8, 0.6], [0.1, 0.1, 0.1]])
    assert analogies.ranked(table, [0, 1, 2, 3]) == (0, 0)
    assert analogies.ranked(torch.cat([table, table[3:4] * 1.1]), [0, 1, 2, 3]) == (1, 1)
    nearer = table.clone()
    nearer[2] = torch.tensor([0.9, 0.9, 0.9])
    assert analogies.ranked(nearer, [0, 1, 2, 3]).left_in == 1
    assert analogies.ranked(nearer, [0, 1, 2, 3]).out == 0


def test_the_area_under_the_curve_is_scikit_learns() -> None:
    from sklearn.metrics import roc_auc_score

    a, b = [0.1, 0.4, 0.4, 0.9], [0.0, 0.4, 0.5]
    assert analogies.auc(a, b) == pytest.approx(roc_auc_score([1] * 4 + [0] * 3, a + b))


def test_lists_of_words_are_what_they_claim() -> None:
    assert all(len(text.split()) == 4 for text in analogies.FIXED)
    assert len(analogies.FIXED) == 8
    assert all(len(analogies.OPPOSITES.split()) == len(text.split()) == 20 for text in [analogies.SYNONYMS])


# ---- induction


def test_scores_of_habits_and_losses_of_halves() -> None:
    model = fresh(small_spec(vocab=40, width=16), 0, std=0.3)
    texts = [torch.randint(40, (6,), generator=seeded(i)).repeat(2) for i in range(2)]
    scores = induction_heads.scored(model, texts)
    assert set(scores) == set(induction_heads.HABITS)
    assert all(set(of) == {(n, h) for n in range(2) for h in range(4)} for of in scores.values())
    losses = induction_heads.ablated(model, texts, texts[0], {"whole model": [], "some": [(0, 1), (1, 3)]}, Run())
    batches = [head_views.Batch(t[:-1], t[1:].clone(), [11]) for t in texts]
    for batch in batches:
        batch.targets_T[:6] = IGNORED
    with torch.no_grad():
        second = sum(float(loss_of(model, batch)) for batch in batches) / 2
    assert losses["whole model"].second == pytest.approx(second, abs=1e-5)
    assert losses["some"] != losses["whole model"]


# ---- factual-edit


def test_layers_are_read_from_a_text() -> None:
    assert factual_edit.numbers("2, 5,9") == [2, 5, 9]
    with pytest.raises(CutawayError, match="numbers with commas"):
        factual_edit.numbers("two")


def test_means_and_the_best_layer() -> None:
    def result(followed: float, kept: float, kl: float) -> factual_edit.Result:
        return factual_edit.Result(0.1, 0.9, followed, kept, kl, 0.0, 0.02, 7)

    results = {(2, "a"): result(1, 1, 0.3), (2, "b"): result(0, 1, 0.1), (5, "a"): result(1, 0.5, 0.1)}
    assert factual_edit.means(results)[2].followed == 0.5
    assert factual_edit.means(results)[2].kl == pytest.approx(0.2)
    assert factual_edit.best(results) == 5
    assert math.isclose(factual_edit.means(results)[5].kept, 0.5)
