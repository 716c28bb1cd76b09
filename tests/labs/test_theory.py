"""Known values of the parts of the labs about losses, distributions and what probabilities say."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from scipy import stats

from cutaway.errors import CutawayError
from cutaway.labs.arch import adaptive_softmax, capsule_routing
from cutaway.labs.catalogue import find
from cutaway.labs.lab import Run
from cutaway.labs.memory import peak_bytes
from cutaway.labs.subject import logits_of, loss_of
from cutaway.labs.theory import (
    adversarial_text,
    cross_entropy,
    kl,
    output_distribution,
    pca,
    perplexity,
    relu_gradient,
    softmax_jacobian,
    text_attribution,
)
from cutaway.labs.training import fresh, small_spec
from cutaway.models.decoder import Decoder
from cutaway.text.tokenizer import Tokenizer
from cutaway.weights.checkpoint import Loaded, open_checkpoint


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def random(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@cache
def tokenizer(path: Path) -> Tokenizer:
    return open_checkpoint(path).read_tokenizer()


# ---- memory


def test_memory_is_counted_while_it_is_held() -> None:
    a = torch.randn(100, 100)
    size = a.nbytes
    assert peak_bytes(lambda: a + a) == size
    assert peak_bytes(lambda: (a + a) + a) == 2 * size
    assert peak_bytes(lambda: [a + a for _ in range(3)]) == 3 * size
    assert peak_bytes(lambda: [(a + a).sum() for _ in range(3)]) < size + 100
    assert peak_bytes(lambda: (a.T, a.view(-1), a.mul_(1))) == 0
    huge = torch.empty(10**6, device="meta")
    assert peak_bytes(lambda: torch.outer(huge, huge)) == 4 * 10**12


# ---- cross-entropy


def test_the_pull_of_an_even_guess() -> None:
    """p = 1/2: cross-entropy pulls with 1 - p, the squared error with 2 p (1 - p)^2."""
    even = torch.zeros(1, dtype=torch.float64)
    assert [cross_entropy.pulls(loss, even) for loss in cross_entropy.LOSSES.values()] == [[0.5], [0.25]]


def test_three_products_against_four() -> None:
    tokens, vocab, width = 64, 500, 8
    forms = cross_entropy.both_forms(tokens, vocab, width, chunk=8, repeats=5, generator=random())
    assert forms.flops == (6 * tokens * vocab * width, 8 * tokens * vocab * width)
    assert forms.bytes[0] >= 2 * 4 * tokens * vocab
    assert forms.bytes[1] < forms.bytes[0] / 2
    assert forms.apart < 1e-5


# ---- softmax-jacobian


def test_jacobian_of_three_probabilities() -> None:
    found = softmax_jacobian.jacobian(softmax_jacobian.BY_HAND)
    expected = torch.tensor([[0.21, -0.14, -0.07], [-0.14, 0.16, -0.02], [-0.07, -0.02, 0.09]], dtype=torch.float64)
    torch.testing.assert_close(found, expected)
    assert softmax_jacobian.apart(random()) < 1e-12


def test_memory_of_both_forms_at_the_size_of_a_vocabulary() -> None:
    matrix, product = (softmax_jacobian.counted(f, 49_152) for f in (softmax_jacobian.built, softmax_jacobian.pulled))
    assert matrix == pytest.approx(4 * 49_152**2, rel=1e-3)
    assert product == pytest.approx(4 * 49_152, rel=1e-3)


# ---- relu-gradient


def test_units_that_never_fire_are_dead() -> None:
    layers = [torch.nn.Linear(4, 3), torch.nn.Linear(3, 1)]
    torch.nn.init.zeros_(layers[0].weight)
    layers[0].bias.data = torch.tensor([-1.0, 0.0, 1.0])
    x = torch.randn(10, 4, generator=random())
    assert relu_gradient.dead_units(layers, x, relu_gradient.KINDS["ReLU"]) == pytest.approx(2 / 3)
    assert relu_gradient.dead_units(layers, x, relu_gradient.KINDS["GELU"]) == 0


def test_a_gradient_through_twenty_sigmoids_is_below_the_product_of_their_slopes() -> None:
    paths = {name: relu_gradient.surviving(kind, 20, 64, random()) for name, kind in relu_gradient.KINDS.items()}
    assert all(len(path) == 21 and path[-1] == 1 for path in paths.values())
    assert paths["sigmoid"][0] < 9.1e-12
    assert paths["ReLU"][0] > 0.01


# ---- kl


def test_one_direction_matches_moments_and_the_other_a_mode() -> None:
    target = kl.two_modes()
    assert kl.moments(kl.fitted(target, forward=True)) == pytest.approx((0, math.sqrt(4 + 0.36)), abs=1e-3)
    mean, std = kl.moments(kl.fitted(target, forward=False))
    assert (abs(mean), std) == pytest.approx((2, 0.6), abs=0.02)


def test_estimators_of_two_coins() -> None:
    found = kl.describe("", kl.FAIR, kl.BENT)
    exact = 0.9 * math.log(1.8) + 0.1 * math.log(0.2)
    assert (found.forward, found.reverse, found.accepted) == pytest.approx((0.5 * math.log(0.25 / 0.09), exact, 0.6))
    logs = [math.log(0.9 / 0.5), math.log(0.1 / 0.5)]
    std = math.sqrt(0.9 * (logs[0] - exact) ** 2 + 0.1 * (logs[1] - exact) ** 2) / exact
    assert found.std["k1"] == pytest.approx(std)
    assert found.bias["k2"] == pytest.approx((0.9 * logs[0] ** 2 + 0.1 * logs[1] ** 2) / 2 / exact - 1)


def test_the_tuned_policy_is_the_best_one() -> None:
    reference = torch.randn(50, generator=random(), dtype=torch.float64).log_softmax(-1)
    assert kl.tuning_slope(reference, random()) < 1e-12
    assert kl.distillation_gap(reference[None], reference[None].flip(-1)) < 1e-12


# ---- output-distribution


def test_the_rank_is_where_singular_values_drop() -> None:
    assert output_distribution.steepest([9.0, 5.0, 4.0, 1e-6, 1e-7]) == 3
    generator = random()
    low = torch.randn(20, 4, generator=generator) @ torch.randn(4, 90, generator=generator)
    assert output_distribution.steepest(torch.linalg.svdvals(low).tolist()) == 4
    found = output_distribution.singular((low @ low.T).double())
    torch.testing.assert_close(found[:4].float(), torch.linalg.svdvals(low)[:4])
    exact = output_distribution.singular(low.double() @ low.double().T)  # beyond the rank nothing but rounding
    assert output_distribution.steepest(exact.tolist()) == 4


def test_counting_is_what_the_loss_does() -> None:
    found = output_distribution.count_against_loss(300, random())
    assert found.apart < 1e-5
    assert found.loss == pytest.approx(found.entropy, abs=1e-8)


def test_a_softmax_of_full_width_misses_nothing() -> None:
    assert output_distribution.remaining(output_distribution.WORDS - 1, random()) < 1e-3
    assert output_distribution.remaining(1, random()) > 0.1


# ---- pca


def test_spearman_with_ties_is_scipys() -> None:
    a, b = torch.randn(60, generator=random()).double(), torch.randint(5, (60,), generator=random(1)).double()
    assert pca.spearman(a, b) == pytest.approx(stats.spearmanr(a.numpy(), b.numpy()).statistic)
    assert pca.ranks(torch.tensor([3.0, 1.0, 3.0])).tolist() == [1.5, 0.0, 1.5]


def test_components_of_known_variances() -> None:
    x = torch.randn(500, 5, generator=random(), dtype=torch.float64)
    x = (x - x.mean(0)) @ torch.diag(torch.tensor([1.0, 5.0, 3.0, 0.1, 2.0], dtype=torch.float64))
    values, axes = pca.components(x)
    assert values.tolist() == sorted(values.tolist(), reverse=True)
    assert values.sum() == pytest.approx(float(x.var(0, correction=0).sum()))
    assert axes[:, 0].abs().argmax() == 1
    assert pca.keep(x, axes, 2, torch.arange(250).double()).variance == pytest.approx(pca.share(values, 2))
    assert max(pca.against_svd(x, values, axes)) < 1e-10


def test_composed_pairs_share_the_slots_they_say() -> None:
    place = {wording: (i, j) for i, slot in enumerate(pca.SLOTS) for j, both in enumerate(slot) for wording in both}

    def choices(text: str) -> list[int]:
        found = {i: j for wording, (i, j) in place.items() if wording in text}
        return [found[i] for i in range(len(pca.SLOTS))]

    for pair in pca.composed(20, random()):
        shared = sum(a == b for a, b in zip(choices(pair.first), choices(pair.second), strict=True))
        assert shared == pair.likeness


def test_judged_pairs_are_read_and_others_refused(tmp_path: Path) -> None:
    path = tmp_path / "pairs.csv"
    path.write_text('genre\tfile\t2012\t1\t4.75\tA "young child.\tA child.\n', "utf-8")
    assert pca.read_pairs(path) == [pca.Pair('A "young child.', "A child.", 4.75)]
    for text in ("a,b,c\n", "a\tb\tc\td\tx\te\tf\n"):
        path.write_text(text, "utf-8")
        with pytest.raises(CutawayError, match="cannot be read as pairs"):
            pca.read_pairs(path)
    with pytest.raises(CutawayError, match="cannot be read as pairs"):
        pca.read_pairs(tmp_path / "missing")


# ---- perplexity


def tiny(vocab: int = 256) -> Decoder:
    return fresh(small_spec(vocab=vocab, width=32), 0, std=0.3)


def test_units_of_perplexity() -> None:
    score = perplexity.Score("", 2.3026, 4.0)
    assert score.perplexity == pytest.approx(10, abs=1e-3)
    assert (score.bits_per_token, score.bits_per_byte) == pytest.approx((3.32, 0.83), abs=2e-3)


def test_every_stride_scores_the_same_tokens() -> None:
    """By hand: each token after the first window given the window's part before it."""
    model, ids = tiny(), torch.randint(256, (40,), generator=random())
    window, stride = 8, 4
    losses = []
    for end in range(window + stride, 41, stride):
        logits = logits_of(model, ids[end - window : end])
        losses.append(F.cross_entropy(logits[-stride - 1 : -1], ids[end - stride : end], reduction="none"))
    assert torch.cat(losses).numel() == 32
    assert perplexity.strided(model, ids, window, stride) == pytest.approx(torch.cat(losses).mean().item(), rel=1e-5)
    assert perplexity.halved(128, 8) == [128, 64, 32, 16]


def test_a_twin_is_tuned_and_the_model_is_not() -> None:
    model = tiny()
    before = {name: p.clone() for name, p in model.named_parameters()}
    twin, own = perplexity.tail_of(model, 1)
    assert {name.split(".")[1] for name, p in twin.named_parameters() if p.requires_grad} == {"1"}
    for parameter in own:
        parameter.data.add_(1)
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    assert twin.embedding.tokens.weight.data_ptr() == model.embedding.tokens.weight.data_ptr()


def test_renumbered_tokens_are_the_same_tokens(smollm2_gguf: Path) -> None:
    texts = perplexity.Texts("the cat sat on the mat", "on the cat")
    number = perplexity.numbered(tokenizer(smollm2_gguf), texts)
    learned, test = number(texts.learned), number(texts.test)
    original = tokenizer(smollm2_gguf).encode(texts.learned, add_special=False)
    assert len(set(zip(learned.tolist(), original, strict=True))) == len(set(original))
    assert max(*learned.tolist(), *test.tolist()) < len(original) + len(test)


# ---- text-attribution


def test_auc_of_known_scores() -> None:
    found = text_attribution.told_apart("", 1, [3.0, 2.0, 1.0], [2.0, 0.0], random())
    assert found.auc == pytest.approx((1 + 1 + 0.5 + 1 + 0 + 1) / 6)
    assert found.caught == pytest.approx(1 / 3)
    assert found.low <= found.auc <= found.high
    numbers = torch.randn(2, 30, generator=random())
    area = stats.mannwhitneyu(*numbers.numpy()).statistic / 900
    assert float(text_attribution.auc(*numbers)) == pytest.approx(area)


def test_false_alarms_stay_within_what_is_allowed() -> None:
    negatives = torch.randn(1000, generator=random()).tolist()
    limit = sorted(negatives)[-11]
    assert sum(n > limit for n in negatives) == 10
    assert text_attribution.told_apart("", 1, [limit], negatives, random()).caught == 0
    assert text_attribution.told_apart("", 1, [limit + 1e-3], negatives, random()).caught == 1


def test_scores_are_those_of_the_models_probabilities(smollm2_gguf: Path) -> None:
    model = tiny()
    loaded = Loaded("tiny", model.spec, tokenizer(smollm2_gguf), open_checkpoint(smollm2_gguf), lambda: model)
    ids = torch.randint(256, (30,), generator=random()).tolist()
    found = text_attribution.score(loaded, text_attribution.Written(ids[:1], ids[1:]))
    logits = logits_of(model, torch.tensor(ids)).detach()
    assert found.plain(29) == pytest.approx(-loss_of(logits, torch.tensor(ids)), rel=1e-5)
    p = logits[:-1].softmax(-1).double()
    assert found.mean_T.tolist() == pytest.approx((-torch.special.entr(p).sum(-1)).tolist(), rel=1e-4)
    spread = (p * (p.log() - found.mean_T[:, None]).square()).sum(-1)
    assert found.calibrated(29) == pytest.approx(
        float((found.log_p_T - found.mean_T).sum() / spread.sum().sqrt()), rel=1e-4
    )


def test_passages_do_not_overlap_and_a_short_text_is_refused(smollm2_gguf: Path, tmp_path: Path) -> None:
    path = tmp_path / "words.txt"
    path.write_text(" ".join(f"word{i}" for i in range(300)), "utf-8")
    sizes = text_attribution.Sizes(drawn=2, passages=5, prompt=4, longest=12)
    starts, people = text_attribution.passages_of(tokenizer(smollm2_gguf), str(path), sizes)
    assert [len(start) for start in starts] == [4, 4]
    assert [(len(w.prompt), len(w.text)) for w in people] == [(4, 12)] * 5
    with pytest.raises(CutawayError, match="tokens, 107 passages of 16 need"):
        text_attribution.passages_of(tokenizer(smollm2_gguf), str(path), sizes._replace(passages=105))
    with pytest.raises(CutawayError, match="cannot be read"):
        text_attribution.passages_of(tokenizer(smollm2_gguf), str(tmp_path / "missing"), sizes)
    assert text_attribution.lengths_to(500) == [50, 100, 250, 500]
    assert text_attribution.lengths_to(32) == [16, 32]


# ---- adversarial-text


@pytest.fixture
def countable(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"SYMBOLS": 3, "SUCCESSORS": 2, "LENGTH": 3}.items():
        monkeypatch.setattr(adversarial_text, name, value)


def chain(seed: int) -> adversarial_text.Chain:
    first, following = (torch.randn(n, 3, generator=random(seed + n)).double().requires_grad_(True) for n in (1, 3))
    return adversarial_text.Chain(first[0].detach().requires_grad_(True), following)


def everything() -> torch.Tensor:
    return F.one_hot(torch.tensor([*itertools.product(range(3), repeat=3)]), 3).double()


@pytest.mark.usefixtures("countable")
def test_sums_over_chains_are_sums_over_all_sequences() -> None:
    p, q = chain(1), chain(2)
    log_p, log_q = (adversarial_text.score(adversarial_text.normalized(c), everything()).detach() for c in (p, q))
    assert float(log_p.exp().sum()) == pytest.approx(1)
    assert adversarial_text.entropy_of(p) == pytest.approx(float(-(log_p.exp() * log_p).sum()))
    assert adversarial_text.divergence(p, q) == pytest.approx(float((log_p.exp() * (log_p - log_q)).sum()))
    assert adversarial_text.divergence(adversarial_text.source(0), q) > 0


@pytest.mark.usefixtures("countable")
def test_the_score_function_is_right_on_average() -> None:
    """Against the gradient of the expected verdict over all 27 sequences."""
    generator, critic = chain(1), chain(2)
    log_p = adversarial_text.score(adversarial_text.normalized(generator), everything())
    reward = F.logsigmoid(adversarial_text.score(critic, everything())).detach()
    exact = torch.autograd.grad(-(log_p.exp() * reward).sum(), generator)
    real = torch.zeros(20_000, 3, 3).double()  # only how many matters
    found = torch.autograd.grad(adversarial_text.score_function(generator, critic, real, random()), generator)
    for a, b in zip(found, exact, strict=True):
        torch.testing.assert_close(a, b, atol=0.02, rtol=0)


@pytest.mark.usefixtures("countable")
def test_a_critic_hears_the_difference_and_draws_follow_the_chain() -> None:
    p = chain(1)
    x = adversarial_text.drawn(p, 20_000, random())
    seen = x[:, 0].mean(0)
    torch.testing.assert_close(seen, p.first_V.softmax(-1).detach(), atol=0.02, rtol=0)
    pairs = torch.einsum("bv,bw->vw", x[:, 0], x[:, 1])
    torch.testing.assert_close(pairs / pairs.sum(-1, keepdim=True), p.next_VV.softmax(-1).detach(), atol=0.03, rtol=0)
    assert adversarial_text.slope_of_a_draw(random()) == 0


# ---- adaptive-softmax and capsule-routing


def test_work_of_an_adaptive_softmax() -> None:
    assert adaptive_softmax.example(512).share == pytest.approx(0.0445, abs=3e-4)
    rare, share = adaptive_softmax.zipfian(512, 2000, 1)
    harmonic = [sum(1 / r for r in range(1, n + 1)) for n in (2000, 100_000)]
    assert rare == pytest.approx(1 - harmonic[0] / harmonic[1])
    assert share == pytest.approx(0.02 + rare * 0.98 / 4, abs=1e-3)
    assert max(adaptive_softmax.against_pytorch(random())) < 1e-12


def test_texts_for_training_and_testing_are_apart() -> None:
    learned, test = capsule_routing.texts()
    assert {text.chapter for text in learned} == {text.chapter for text in test} == set(range(6))
    assert len(test) == pytest.approx(len(learned) / 4, rel=0.05)
    assert all(len(text.words) in capsule_routing.WORDS for text in learned + test)
    assert all(0 <= word < capsule_routing.VOCAB for text in learned for word in text.words)


def test_poolings_are_trained_alike() -> None:
    found = [
        capsule_routing.train(name, 24, 3, Run(), steps=2, batch=4).accuracy for name in ("attention", "attention")
    ]
    assert found[0] == found[1]
    shapes = {
        name: capsule_routing.Classifier(name, 24, 0)(capsule_routing.texts()[1][:5]).shape
        for name in capsule_routing.POOLINGS
    }
    assert set(shapes.values()) == {(5, 6)}


# ---- knobs that do not fit each other


@pytest.mark.parametrize(
    ("id", "knobs", "said"),
    [
        ("perplexity", {"window": 48, "finest": 32}, "cannot be halved down to a 32th"),
        ("perplexity", {"window": 256, "finest": 2}, "fewer than three windows"),
        ("perplexity", {"other": "no-such-model"}, "no-such-model"),
        ("text-attribution", {"other": "no-such-model"}, "no-such-model"),
        ("output-distribution", {"contexts": 500}, "must exceed the model's width of 576"),
        ("output-distribution", {"every": 100}, "leaves fewer words than the 600 contexts"),
        ("capsule-routing", {"width": 40}, "must be a multiple of 12"),
        ("adaptive-softmax", {"tokens": 25}, "must be a multiple of 10"),
        ("pca", {"model": "smollm2-135m-instruct"}, "does not encode sentences"),
    ],
)
def test_knobs_that_do_not_fit_are_refused(id: str, knobs: dict, said: str, smollm2_gguf: Path) -> None:
    with pytest.raises(CutawayError, match=said):
        find(id).run(knobs, "quick")
