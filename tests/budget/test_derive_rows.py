"""The published numbers of every question that is settled by deriving: each recomputed, and equal digit by digit.

`ROWS` names the question as `docs/coverage.md` does; a number stands there as it is told, and what is computed must
round to it. What a question asks to be measured or proven beside its numbers is in the labs and tests that coverage
names.
"""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Callable
from functools import cache

import pytest
import torch
import torch.nn.functional as F

from cutaway.budget import counting, price, roofline, running, shape, training
from cutaway.budget.chips import CHIPS
from cutaway.budget.figures import Figure, evaluate, named
from cutaway.budget.published import PUBLISHED, spec_named
from cutaway.labs.attention import flash_traffic, sqrt_d
from cutaway.labs.engine.hardware_choice import hours_as_told
from cutaway.labs.norm import init_scale, residual_path, rms_vs_layer
from cutaway.labs.theory import cross_entropy, softmax_jacobian
from cutaway.labs.theory.perplexity import Score
from cutaway.models.build import build
from cutaway.models.cost import Cost
from cutaway.nn.adaptive_softmax import AdaptiveSoftmax
from cutaway.nn.divergence import kl_divergence
from cutaway.nn.dropout import dropout
from cutaway.nn.init import SCHEMES, matrices
from cutaway.nn.position_bias import alibi_slopes

Number = Callable[[], float]
B, M, K, KIB, MIB, GIB, GB = 1e9, 1e6, 1e3, 2**10, 2**20, 2**30, 1e9
A100, H100 = CHIPS["a100-80gb"], CHIPS["h100-sxm"]


@cache
def cost(name: str) -> Cost:
    return Cost(spec_named(name))


def of(figures: Callable[[], list[Figure]], name: str, per: float = 1) -> Number:
    """One figure of a calculator, in units of `per`."""
    return lambda: named(figures())[name] / per


def counted(name: str, what: str = "parameters", per: float = 1) -> Number:
    return of(lambda: counting.parameters(cost(name)), what, per)


def kv(name: str, per: float = KIB) -> Number:
    return lambda: cost(name).kv_bytes_per_token("bfloat16").value / per


def shared(name: str, heads: int, per: float = KIB) -> Number:
    return of(lambda: running.kv_by_sharing(cost(name), "bfloat16"), f"{heads} key/value heads", per)


def share(context: int) -> Number:
    return of(lambda: running.attention_share(cost("llama-3-8b"), context), "attention's share, rule of thumb")


def weights(name: str, suffix: str) -> set[tuple[int, ...]]:
    return {part.sizes for part in cost(name).parts if part.module.endswith(suffix)}


def kl(p: tuple[float, ...], q: tuple[float, ...]) -> Number:
    return lambda: float(kl_divergence(*(torch.tensor([x], dtype=torch.float64).log() for x in (p, q))))


@cache
def sharpness() -> list[tuple[sqrt_d.Sharpness, sqrt_d.Sharpness]]:
    """With the division and without, for three draws of 256 keys."""
    return [sqrt_d.random_pair(64, 4000, 256, torch.Generator().manual_seed(seed)) for seed in range(3)]


def sharp(scaled: bool, what: str) -> Number:
    return lambda: statistics.mean(getattr(pair[not scaled], what) for pair in sharpness())


@cache
def dot_variance() -> float:
    """Of 10^6 products of two vectors of 64 unit-variance numbers."""
    draw = torch.Generator().manual_seed(0)
    drawn = [torch.linalg.vecdot(*torch.randn(2, 50_000, 64, generator=draw)) for _ in range(20)]
    return float(torch.cat(drawn).var())


def latency(name: str) -> Number:
    return of(lambda: roofline.latency(cost("llama-3-8b"), A100, "bfloat16", 1000), name)


def balance(context: int, name: str) -> Number:
    return of(lambda: roofline.balance(cost("llama-3-8b"), H100, "bfloat16", context), name)


def replies(length: int, name: str) -> Number:
    return of(lambda: price.of_replies(cost("llama-3-8b"), A100, "bfloat16", length, price=2), name)


def activations(name: str) -> Number:
    return of(lambda: training.activations(32, 4096, 32, 4096), name, GIB)


def second_moment() -> float:
    x = torch.randn(10**6, generator=torch.Generator().manual_seed(0))
    return float(dropout(x, 0.1, generator=torch.Generator().manual_seed(1)).square().mean() / x.square().mean())


def residual_std() -> float:
    """GPT-2's matrices that write to the stream, drawn by none: the standard deviation that the scheme gives them."""
    model = build(PUBLISHED["gpt-2-small"].spec, "meta")
    (std,) = {SCHEMES["depth"](m, 0.02) for m in matrices(model) if m.role == "residual"}
    return std


def eigenvalue(i: int) -> Number:
    p = torch.tensor([0.7, 0.2, 0.1], dtype=torch.float64)
    return lambda: abs(float(torch.linalg.eigvalsh(softmax_jacobian.jacobian(p))[i]))


def adaptive_products() -> float:
    """Of the layer itself, its projection included, beside the full product."""
    return 100 * AdaptiveSoftmax(1024, 100_000, [2000]).products([0.1]) / (100_000 * 1024)


ROWS: dict[str, list[tuple[str, Number]]] = {
    "tokenize.vocabulary-size": [
        ("134.5", counted("smollm2-135m", per=M)),
        ("21.0", counted("smollm2-135m", "vocabulary's share")),
        ("268.1", counted("gemma-3-270m", per=M)),
        ("62.6", counted("gemma-3-270m", "vocabulary's share")),
        ("8.03", counted("llama-3-8b", per=B)),
        ("13.1", counted("llama-3-8b", "vocabulary's share")),
    ],
    "embed.one-hot-versus-dense": [
        ("0", lambda: float((torch.eye(50) @ torch.eye(50).T).fill_diagonal_(0).abs().max())),
        ("10.0", of(lambda: counting.rows(50_000, 300), "one-hot table", GB)),
        ("60", of(lambda: counting.rows(50_000, 300), "dense table", M)),
    ],
    "embed.bi-versus-cross": [
        ("0.77", of(lambda: counting.pairwise(cost("minilm-l6"), 10**6, 128, 100), "dot products", GB)),
        ("2.7e15", of(lambda: counting.pairwise(cost("minilm-l6"), 10**6, 128, 100), "every pair read together")),
        ("3.5", of(lambda: counting.pairwise(cost("minilm-l6"), 10**6, 128, 100), "pairs over products", M)),
        ("1e-4", of(lambda: counting.pairwise(cost("minilm-l6"), 10**6, 128, 100), "reranking alone, of all pairs")),
    ],
    "arch.gpt-generations": [
        ("116.5", counted("gpt-1", per=M)),
        ("124.4", counted("gpt-2-small", per=M)),
        ("354.8", counted("gpt-2-medium", per=M)),
        ("774.0", counted("gpt-2-large", per=M)),
        ("1,557.6", counted("gpt-2-xl", per=M)),
        ("174.6", counted("gpt-3", per=B)),
    ],
    "arch.shape-inventory": [
        ("134,515,008", counted("smollm2-135m")),
        ("8,030,261,248", counted("llama-3-8b")),
        ("70,553,706,496", counted("llama-3-70b")),
    ],
    "arch.depth-width-tradeoff": [
        ("2.154", of(lambda: shape.growth(10), "depth and width, each")),
        ("3.162", of(lambda: shape.growth(10), "width alone")),
    ],
    "arch.model-map": [
        ("4,608", kv("gpt-3")),
        ("320", kv("llama-3-70b")),
        ("68.6", kv("deepseek-v3")),
        ("72", kv("gpt-oss-120b")),
        ("100", counted("gpt-3", "active share")),
        ("100", counted("llama-3-70b", "active share")),
        ("5.6", counted("deepseek-v3", "active share")),
        ("4.9", counted("gpt-oss-120b", "active share")),
    ],
    "arch.family-bert": [("109,482,240", counted("bert-base")), ("335,141,888", counted("bert-large"))],
    "arch.family-roberta": [("124,645,632", counted("roberta-base"))],
    "arch.family-albert-deberta": [
        ("3.94", of(lambda: counting.rows(30_000, 768, 128), "numbers, factorized", M)),
        ("23.04", of(lambda: counting.rows(30_000, 768, 128), "numbers, dense", M)),
        ("11.68", counted("albert-base", per=M)),
    ],
    "arch.family-t5-bart": [("60,506,624", counted("t5-small"))],
    "arch.family-qwen2-5": [("494,032,768", counted("qwen2.5-0.5b"))],
    "arch.family-qwen3": [("596,049,920", counted("qwen3-0.6b"))],
    "arch.family-deepseek-v3": [
        ("671.03", counted("deepseek-v3", per=B)),
        ("36.63", counted("deepseek-v3", "active per token", B)),
        ("37.55", counted("deepseek-v3", "active, with the input table", B)),
    ],
    "arch.family-gpt-oss": [
        ("20.91", counted("gpt-oss-20b", per=B)),
        ("116.83", counted("gpt-oss-120b", per=B)),
        ("3.61", counted("gpt-oss-20b", "active per token", B)),
        ("5.13", counted("gpt-oss-120b", "active per token", B)),
        ("4.50", of(lambda: running.kv(cost("gpt-oss-120b"), 131_072, 1, "bfloat16"), "KV cache", GIB)),
        (
            "9.0",
            of(lambda: running.kv(cost("gpt-oss-120b"), 131_072, 1, "bfloat16"), "if every layer saw everything", GIB),
        ),
        ("4.25", lambda: evaluate("(32·4 + 8)/32")),
    ],
    "arch.adaptive-softmax": [
        ("4.45", of(lambda: counting.adaptive_softmax(100_000, 2000, 0.1), "share of the full product")),
        ("22.5", of(lambda: counting.adaptive_softmax(100_000, 2000, 0.1), "times less work")),
        ("4.5", adaptive_products),
    ],
    "attention.scale": [
        ("64", dot_variance),
        ("8", lambda: math.sqrt(dot_variance())),
        ("0.04", sharp(True, "largest")),
        ("0.79", sharp(False, "largest")),
    ],
    "attention.shared-kv-cost": [
        ("128", shared("llama-3-8b", 8)),
        ("512", shared("llama-3-8b", 32)),
        ("16", shared("llama-3-8b", 1)),
        ("22.5", kv("smollm2-135m")),
        ("67.5", shared("smollm2-135m", 9)),
    ],
    "attention.mla-cache": [
        ("576", kv("deepseek-v3", 61 * 2)),
        ("70,272", kv("deepseek-v3", 1)),
        ("2.25", lambda: kv("deepseek-v3")() / shared("deepseek-v3", 1)()),
        ("3.56", lambda: shared("deepseek-v3", 8)() / kv("deepseek-v3")()),
        ("56.9", lambda: shared("deepseek-v3", 128)() / kv("deepseek-v3")()),
    ],
    "attention.flash-traffic": [
        ("130", of(lambda: shape.attention_traffic(4096, 64), "naive", MIB)),
        ("2", of(lambda: shape.attention_traffic(4096, 64), "q, k, v and output once", MIB)),
        ("130", lambda: flash_traffic.naive_formula(4096, 64)),
        ("4.0", lambda: flash_traffic.naive_formula(8192, 64) / flash_traffic.naive_formula(4096, 64)),
    ],
    "attention.quadratic-cost": [("1.6", share(1024)), ("11.8", share(8192)), ("34.8", share(32_768))],
    "attention.linear-form": [("64", of(lambda: shape.attention_traffic(4096, 64), "pairs over states"))],
    "position.sinusoidal": [
        ("6.28", of(lambda: shape.unfinished(1.0, 64, 10), "slowest wavelength")),
        ("62.83", of(lambda: shape.unfinished(10_000, 10**6, 10), "slowest wavelength", K)),
    ],
    "position.extrapolation-failure": [
        ("54,410", of(lambda: shape.unfinished(10_000, 128, 4096), "slowest wavelength")),
        ("18", of(lambda: shape.unfinished(10_000, 128, 4096), "pairs that never finish a turn")),
        ("64", of(lambda: shape.unfinished(10_000, 128, 4096), "pairs")),
    ],
    "position.extend-context": [
        ("0.25", of(lambda: shape.context(4, 10_000, 128), "interpolation: positions times")),
        ("40,890", of(lambda: shape.context(4, 10_000, 128), "NTK: base")),
        ("2,044,497", of(lambda: shape.context(4, 500_000, 128), "NTK: base")),
        ("1.139", of(lambda: shape.context(4, 10_000, 128), "YaRN: queries and keys times")),
        ("1", of(lambda: shape.context_of(cost("llama-3-8b"), 4, "bfloat16"), "KV now", GIB)),
        ("4", of(lambda: shape.context_of(cost("llama-3-8b"), 4, "bfloat16"), "KV then", GIB)),
    ],
    "position.alibi": [(str(2.0**-h), lambda h=h: float(alibi_slopes(8)[h - 1])) for h in range(1, 9)],
    "norm.residual-path": [("0.25", lambda: residual_path.steepest(1)), ("9.1e-13", lambda: evaluate("0.25^20"))],
    "norm.rms-versus-layer": [
        ("512", lambda: next(p.layer - p.rms for p in rms_vs_layer.counted(512) if p.name.startswith("parameters"))),
        ("1", lambda: next(p.rms for p in rms_vs_layer.counted(512) if p.name.startswith("reductions"))),
        ("2", lambda: next(p.layer for p in rms_vs_layer.counted(512) if p.name.startswith("reductions"))),
    ],
    "norm.dropout-variance": [("1.111", lambda: evaluate("1/(1 − 0.1)")), ("1.11", second_moment)],
    "norm.xavier-kaiming": [
        ("0.02795", lambda: init_scale.textbook()["xavier"]),
        ("0.0625", lambda: init_scale.textbook()["kaiming"]),
        ("9.3e-10", lambda: evaluate("0.5^30")),
    ],
    "norm.transformer-init": [("0.00408", residual_std)],
    "moe.sparse-activation": [
        ("46.70", counted("mixtral-8x7b", per=B)),
        ("12.88", counted("mixtral-8x7b", "active, with the input table", B)),
        ("27.6", counted("mixtral-8x7b", "active share")),
    ],
    "moe.dense-versus-sparse": [
        ("2.0", lambda: shape.distinct(8, 2, 1).value),
        ("7.2", lambda: shape.distinct(8, 2, 8).value),
        ("163", lambda: shape.distinct(256, 8, 32).value),
    ],
    "moe.fine-grained-and-shared": [
        ("28", lambda: shape.choices(8, 2).value),
        ("120", lambda: shape.choices(16, 2).value),
        ("4,426,165,368", lambda: shape.choices(64, 8).value),
    ],
    "moe.expert-communication": [
        (told, of(lambda: shape.experts_of(cost("deepseek-v3"), 1), name))
        for told, name in (("57,344", "sent"), ("114,688", "received"), ("172,032", "exchanged"))
    ],
    "theory.cross-entropy": [
        (told, lambda v=vocab: cross_entropy.guess(v))
        for told, vocab in (("10.803", 49_152), ("10.825", 50_257), ("11.762", 128_256))
    ],
    "theory.kl-divergence": [("0.511", kl((0.5, 0.5), (0.9, 0.1))), ("0.368", kl((0.9, 0.1), (0.5, 0.5)))],
    "theory.softmax-jacobian": [
        ("0.000", eigenvalue(0)),
        ("0.126", eigenvalue(1)),
        ("0.334", eigenvalue(2)),
        ("9.7", lambda: evaluate("V^2·4", {"V": 49_152}) / GB),
        ("0.2", lambda: evaluate("V·4", {"V": 49_152}) / M),
    ],
    "theory.perplexity": [
        ("10.00", lambda: Score("", 2.3026, 4).perplexity),
        ("3.32", lambda: Score("", 2.3026, 4).bits_per_token),
        ("0.830", lambda: Score("", 2.3026, 4).bits_per_byte),
    ],
    "engine.why-cache": [
        ("384", of(lambda: running.generating(512, 512), "ratio")),
        ("284", of(lambda: running.generating(64, 512), "ratio")),
    ],
    "engine.cache-size": [
        ("128", kv("llama-3-8b")),
        ("1", lambda: cost("llama-3-8b").kv_bytes(8192, 1, "bfloat16").value / GIB),
        ("4", lambda: cost("llama-3-8b").kv_bytes(32_768, 1, "bfloat16").value / GIB),
        ("320", kv("llama-3-70b")),
        ("4,608", kv("gpt-3")),
        ("22.5", kv("smollm2-135m")),
        ("52", of(lambda: running.fit(cost("llama-3-8b"), A100, 8192, "bfloat16"), "sequences that fit")),
        ("13", of(lambda: running.fit(cost("llama-3-8b"), A100, 32_768, "bfloat16"), "sequences that fit")),
    ],
    "engine.roofline": [
        ("153", lambda: A100.ridge("bfloat16")),
        ("295", lambda: H100.ridge("bfloat16")),
        ("295", balance(0, "batch at balance")),
        ("421", balance(0, "no batch reaches it past")),
        ("754", lambda: math.floor(balance(256, "batch at balance")())),
    ],
    "engine.hardware-choice": [
        ("505,561", hours_as_told),
        *(
            (told, lambda name=name: CHIPS[name].ridge("bfloat16"))
            for told, name in (
                ("164", "rtx-4090"),
                ("153", "a100-80gb"),
                ("201", "a100-40gb"),
                ("295", "h100-sxm"),
                ("206", "h200"),
            )
        ),
    ],
    "engine.efficiency-economics": [
        ("4.37", lambda: price.per_million(2, 127).value),
        ("0.28", lambda: price.per_million(2, 2000).value),
    ],
    "engine.reasoning-token-price": [
        ("52", replies(8192, "sequences that fit")),
        ("13", replies(32_768, "sequences that fit")),
        ("4", lambda: replies(32_768, "weights read for a token")() / replies(8192, "weights read for a token")()),
        ("4", lambda: replies(32_768, "cost per million tokens")() / replies(8192, "cost per million tokens")()),
    ],
    "engine.latency-metrics": [
        ("0.103", latency("first token")),
        ("0.0079", latency("next token, at least")),
        ("127", latency("tokens per second, at most")),
    ],
    "parallel.memory-budget": [
        (told, of(lambda n=n: training.states(n), "state of training", GB))
        for told, n in (("112", 7 * 10**9), ("208", 13 * 10**9), ("1,120", 70 * 10**9))
    ],
    "parallel.activation-checkpointing": [
        ("3.03", activations("activations, one layer")),
        ("97", activations("activations, all layers")),
        ("17", activations("activations, tiled attention")),
        ("1", activations("activations, layer inputs only")),
        ("1.33", lambda: evaluate("4/3")),
    ],
}


def like(value: float, told: str) -> str:
    """The value with as many digits as it is told with."""
    mantissa, _, exponent = told.partition("e")
    decimals = len(mantissa.partition(".")[2])
    if not exponent:
        return f"{value:,.{decimals}f}"
    return re.sub(r"e([+-])0*", lambda m: "e" + m[1].replace("+", ""), f"{value:.{decimals}e}")


@pytest.mark.parametrize("id", ROWS)
def test_every_number_of_the_question_comes_out(id: str) -> None:
    assert [like(number(), told) for told, number in ROWS[id]] == [told for told, _ in ROWS[id]]


@pytest.mark.parametrize(
    ("value", "told", "same"),
    [
        (0.0079, "0.0079", True),
        (9.09e-13, "9.1e-13", True),
        (9.2e-13, "9.1e-13", False),
        (1234567, "1,234,567", True),
        (2.7256e15, "2.7e15", True),
        (12.851, "12.8", False),
        (1e-4, "1e-4", True),
    ],
)
def test_digits_are_compared_as_told(value: float, told: str, same: bool) -> None:
    assert (like(value, told) == told) == same


def test_smollm2_is_made_of_the_matrices_that_are_told() -> None:
    """q and o 576x576, k and v 192x576, gate and up 1536x576, down 576x1536, table 49,152x576; 30 layers."""
    sizes = {"q": (576, 576), "k": (576, 192), "v": (576, 192), "out": (576, 576), "gate": (576, 1536)}
    sizes |= {"up": (576, 1536), "down": (1536, 576), "embedding.tokens": (49152, 576)}
    assert {name: weights("smollm2-135m", f".{name}" if name != "embedding.tokens" else name) for name in sizes} == {
        name: {size} for name, size in sizes.items()
    }
    assert len(cost("smollm2-135m").spec.layers) == 30


def test_v3_and_r1_are_one_network() -> None:
    """The two configurations describe the same modules, so that only training differs."""
    v3, r1 = (build(spec_named(name), "meta") for name in ("deepseek-v3", "deepseek-r1"))
    assert {k: v.shape for k, v in v3.state_dict().items()} == {k: v.shape for k, v in r1.state_dict().items()}
    assert str(v3) == str(r1)


@pytest.mark.parametrize("seed", range(3))
def test_a_probe_generalizes_to_unseen_words_only_with_dense_vectors(seed: int) -> None:
    """Two classes of 100 words, a linear probe fitted on half of each: one-hot vectors say nothing of the others."""
    draw = torch.Generator().manual_seed(seed)
    labels_N = torch.arange(200) % 2
    centers_2D = torch.randn(2, 50, generator=draw)
    dense_ND = centers_2D[labels_N] + torch.randn(200, 50, generator=draw)
    right = {}
    for name, x_ND in (("one-hot", torch.eye(200)), ("dense", F.normalize(dense_ND))):
        probe_D = torch.linalg.pinv(x_ND[:100]) @ (2.0 * labels_N[:100] - 1)
        right[name] = float(((x_ND[100:] @ probe_D > 0) == labels_N[100:].bool()).float().mean())
    assert right["one-hot"] == 0.5, "all scores are 0: every unseen word gets the same answer"
    assert right["dense"] > 0.95
