"""Parts of the labs about n-grams, recurrence and the three families, where the right value is known."""

from __future__ import annotations

import math
import random
import re

import pytest
import torch
from torch import Tensor, nn

from cutaway.classics.recurrent import RecurrentLM, RecurrentSpec
from cutaway.classics.seq2seq import Seq2Seq
from cutaway.labs import grammar, older_models
from cutaway.labs.arch import long_range, sequence_to_sequence, three_families
from cutaway.labs.lab import Run
from cutaway.labs.theory import generative_vs_discriminative, ngram_vs_neural

# ---- the grammar


def entropy(count: int) -> float:
    """Of one of so many words, nats."""
    shares = [1 / (i + 2) for i in range(count)]
    return -sum(w / sum(shares) * math.log(w / sum(shares)) for w in shares)


def coin(p: float) -> float:
    return -p * math.log(p) - (1 - p) * math.log(1 - p)


def test_the_cost_of_a_sentence_is_the_grammars_entropy():
    """In closed form, part by part; phrases are asked for once more than they come, up to five."""
    noun, phrases = entropy(20) + math.log(2), sum(0.55**i for i in range(1, 6))
    optional = coin(0.4) + 0.4 * entropy(8) + coin(0.3) + 0.3 * entropy(6)
    wanted = entropy(2) + noun + optional + entropy(10)
    wanted += phrases * (entropy(5) + entropy(2) + noun) + coin(0.55) * sum(0.55**i for i in range(5))
    nats = torch.tensor([s.nats for s in grammar.sentences(40_000, 3)])
    assert abs(nats.mean() - wanted) < 4 * nats.std() / len(nats) ** 0.5


def test_sentences_agree_and_their_twins_do_not():
    for sentence in grammar.sentences(3000, 5):
        assert grammar.valid(sentence.tokens)
        assert not grammar.valid(grammar.disagreeing(sentence))
        assert not grammar.valid(sentence.tokens[:-1])
        words = [grammar.WORDS[token] for token in sentence.tokens]
        assert words[sentence.verb].rstrip("s") in grammar.VERBS
        assert words[sentence.verb - sentence.distance].rstrip("s") in grammar.NOUNS
        assert grammar.plurals(sentence.tokens) == sum(
            word.endswith("s") and word[:-1] in grammar.NOUNS for word in words
        )


def test_one_sentence_by_hand():
    text = "the small dogs near my cat sleep often ."
    tokens = [grammar.ID[word] for word in text.split()]
    assert grammar.valid(tokens)
    assert not grammar.valid([grammar.ID[word] for word in text.replace("sleep", "sleeps").split()])
    assert grammar.plurals(tokens) == 1
    assert int(grammar.bytes_of_words()[tokens].sum()) == len(text) + 1


# ---- ngram-vs-neural


def judge(tokens_T: Tensor, lengths: list[int]) -> Tensor:
    """0 everywhere in sentences of the grammar, -1 in others."""
    rows = tokens_T.split(lengths)
    return torch.cat([torch.full((len(row),), float(grammar.valid(row[1:].tolist())) - 1) for row in rows])


def test_agreement_of_a_judge_that_knows_the_grammar():
    sentences = grammar.sentences(2000, 7)
    assert ngram_vs_neural.agreement(judge, sentences) == (1.0, 1.0)
    assert ngram_vs_neural.agreement(lambda *text: -1 - judge(*text), sentences) == (0.0, 0.0)


def test_a_model_that_knows_nothing_pays_the_whole_alphabet():
    text = ngram_vs_neural.planted(5000, 1)
    nothing = ngram_vs_neural.Model("", lambda tokens_T, _: torch.full((len(tokens_T),), -math.log(82)), 0, 0, 0.0)
    row = ngram_vs_neural.tested(text, nothing, torch.zeros(len(text.tested_T), dtype=torch.bool), 10)
    kept = (len(text.tested_T) - 10) // 5 * 5 + 5  # every second half of ten, from the fifth on
    bytes_T = text.bytes_V[text.tested_T[5 : 5 + kept]]
    assert row.overall == pytest.approx(math.log2(82) * kept / int(bytes_T.sum()))
    assert row.unseen == pytest.approx(row.overall)
    assert (row.near, row.far) == (0.0, 0.0)  # neither form is likelier


# ---- older models


def test_a_seed_fixes_the_weights_and_the_forget_gate_begins_open():
    make = lambda: RecurrentLM(7, RecurrentSpec("lstm", 5))  # noqa: E731
    state = torch.random.get_rng_state()
    open_, closed = older_models.seeded(make, 3), older_models.seeded(make, 3, forget=0)
    assert torch.equal(torch.random.get_rng_state(), state)
    for (name, a), b in zip(open_.named_parameters(), closed.parameters(), strict=True):
        gap = (a - b).view(-1, 5)[:, 0] if name.endswith("input.bias") else (a - b).flatten()
        assert gap.tolist() == pytest.approx([0, 1, 0, 0] if name.endswith("input.bias") else [0] * len(gap))


def test_training_ends_when_it_is_enough():
    line = nn.Linear(1, 1)
    taken = older_models.fit_until(line, lambda _: line.weight.square().sum(), 50, Run(), goal=math.inf, note="")
    assert taken == 5
    assert older_models.fit_until(line, lambda _: line.weight.square().sum(), 9, Run(), goal=-1, note="") == 9


def test_the_widest_module_that_fits():
    assert older_models.widest(lambda width: nn.Linear(width, width, bias=False), 120) == 10


def test_links_are_counted():
    net = Seq2Seq(9, 4, attention=True)
    read = lambda: net(net.read(torch.arange(6), [6]), torch.tensor([1, 2]), [2])  # noqa: E731
    assert older_models.calls(older_models.recurrences(net.encoder), read) == 6
    assert older_models.calls([net.attention], read) == 2


# ---- long-range


def found(name: str, gap: int, gradient: float) -> long_range.Found:
    return long_range.Found(name, gap, 1, gradient, 1.0, 1.0, 1, 1)


def test_decay_of_known_gradients():
    geometric = [found("a", gap, 3 * 0.8**gap) for gap in (8, 32, 128)]
    power = [found("b", gap, 5 / gap) for gap in (8, 32, 128)]
    assert long_range.decay(geometric + power, "a", lambda f: f.fresh)[0] == pytest.approx(0.8)
    assert long_range.decay(geometric + power, "b", lambda f: f.fresh)[1] == pytest.approx(-1)


def test_what_the_first_token_hears_by_hand():
    """The answer's logit is the first row's first number times 3: gradient 3 at that row, whatever follows."""
    rows = nn.Embedding(long_range.VOCAB, 4)
    net = long_range.Net("", rows, lambda sources_NS: 3 * rows(sources_NS.flatten()).view(2, -1, 4)[:, 0], rows, [])
    sources_NS, _ = long_range.recall(2, 5, torch.Generator())
    assert long_range.heard(net, sources_NS, torch.zeros(2).long(), lambda said_NV, _: said_NV[:, 0].sum()) == 3


# ---- sequence-to-sequence


def test_examples_of_both_tasks():
    source, target = sequence_to_sequence.reversal(3, 40, torch.Generator().manual_seed(0))
    assert target == source[::-1]
    assert set(source) == set("abc")
    source, target = sequence_to_sequence.date_list(3, torch.Generator().manual_seed(0))
    for said, iso in zip(source.split(", "), target.split(), strict=True):
        day, month, year = said.split()
        number = sequence_to_sequence.MONTHS.index(month) + 1
        assert iso == f"{year}-{number:02}-{int(day):02}"
        assert re.fullmatch(r"\d{4}-\d\d-\d\d", iso)


def backwards(sources: list[Tensor], targets: list[Tensor]) -> Tensor:
    """Logits of one who reverses: each source has an end, each target a beginning."""
    wanted_T = torch.cat([torch.cat([source[:-1].flip(0), source[-1:]]) for source in sources])
    return nn.functional.one_hot(wanted_T, sequence_to_sequence.VOCAB).float()


def test_who_reverses_is_right_and_who_errs_once_is_not():
    task = sequence_to_sequence.Task("", lambda size, g: sequence_to_sequence.reversal(5, size, g), [6])
    right = sequence_to_sequence.Translator("", nn.Module(), 0, backwards)
    assert sequence_to_sequence.tested(right, task, 6) == (6, 1.0)

    def erring(sources: list[Tensor], targets: list[Tensor]) -> Tensor:
        logits_TV = backwards(sources, targets)
        logits_TV[6] = nn.functional.one_hot(torch.tensor(0), sequence_to_sequence.VOCAB)
        return logits_TV

    assert sequence_to_sequence.tested(right._replace(logits=erring), task, 6) == (6, 0.99)


def test_where_a_curve_falls():
    rows = [sequence_to_sequence.Found("", "", length, exact) for length, exact in [(5, 1), (10, 0.5), (20, 0.49)]]
    assert sequence_to_sequence.fall(rows) == 20
    assert sequence_to_sequence.fall(rows[:2]) is None


# ---- three-families


def test_jobs_ask_for_what_they_hide():
    infilling, labelling, continuation, transduction = three_families.examples(1, random.Random(4))
    assert grammar.valid([infilling.target[0] if t == three_families.MASK else t for t in infilling.source])
    assert labelling.target == [three_families.FIRST_LABEL + min(3, grammar.plurals(labelling.source))]
    assert grammar.valid([*continuation.source, *continuation.target])
    assert transduction.target == transduction.source[::-1]


@pytest.mark.parametrize("way", ["at_once", "refilled", "written"])
def test_who_knows_the_continuation_makes_sentences_in_every_way(way):
    begun = [e for e in (three_families.continuation(random.Random(i)) for i in range(30)) if len(e.source) > 4]
    assert len({tuple(e.source) for e in begun}) == len(begun)
    whole = {(*e.source, *e.target): [*e.source, *e.target] for e in begun}

    def knowing(model: object, asked: list[three_families.Example]) -> list[Tensor]:
        said = []
        for e in asked:
            told = [*e.source, *e.target] if way == "written" else e.source
            true = next(text for key, text in whole.items() if list(key[: len(told)]) == told)
            rest = [*true[len(e.source) :], three_families.END]
            rest = rest[: len(e.target) + 1] if way == "written" else rest[: len(e.target)]
            said.append(1e4 * nn.functional.one_hot(torch.tensor(rest), three_families.VOCAB))
        return said

    family = three_families.Family("", lambda width: None, knowing, ends=way == "written")
    ends = getattr(three_families, way)(family, None, begun, torch.Generator())
    assert ends == [e.target for e in begun]
    assert three_families.sentences(begun, ends) == 1
    assert three_families.sentences(begun, [end[:-1] for end in ends]) == 0


# ---- generative-vs-discriminative


def test_how_often_the_strange_look_stranger():
    usual, strange = torch.tensor([0.0, 1.0, 2.0, 3.0]), torch.tensor([1.0, 5.0])
    assert generative_vs_discriminative.stranger(usual, strange) == (1.5 + 4) / 8


@pytest.mark.parametrize(
    ("bayes", "logistic", "at"),
    [([3, 2, 2], [4, 3, 1], 40), ([3, 2, 1], [4, 3, 2], None), ([3, 3, 3], [2, 2, 2], 10), ([3, 2, 2], [2, 3, 1], 40)],
)
def test_where_learning_curves_cross(bayes, logistic, at):
    pairs = zip((10, 20, 40), bayes, logistic, strict=True)
    rows = [generative_vs_discriminative.Found("", n, [b], [d], None) for n, b, d in pairs]
    assert generative_vs_discriminative.crossing(rows) == at
