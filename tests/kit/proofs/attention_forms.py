"""Forms of attention against PyTorch's own, against definitions written as loops, and against transformers."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import BigBirdConfig, LongformerConfig, masking_utils
from transformers.models.big_bird.modeling_big_bird import BigBirdBlockSparseAttention
from transformers.models.longformer.modeling_longformer import LongformerSelfAttention

from cutaway.labs.attention import packing
from cutaway.labs.lab import Run
from cutaway.nn import linear_attention, patterns, simplex
from cutaway.nn.attention import BlockDiagonal, Place
from cutaway.nn.flash import Tile, Traffic, flash, naive, split
from cutaway.nn.linear_attention import LinearAttention, LinearSpec, chunked, linear, prefix_sums, quadratic
from cutaway.nn.online_softmax import Partial, Running, merge
from kit.precision import all_float64

VALUE, GRADIENT = 1e-12, 1e-9


def drawn(*shape: int, seed: int = 0) -> Tensor:
    """Normal numbers in float64 that ask for gradients."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_(True)


def close(found: Tensor, expected: Tensor, allowed: float, what: str) -> None:
    """Assert equal shapes, and numbers that differ by at most `allowed`."""
    assert found.shape == expected.shape, f"{what}: shape {list(found.shape)} instead of {list(expected.shape)}"
    assert torch.isfinite(found).all(), f"{what}: not finite"
    error = (found - expected).abs().max().item()
    assert error <= allowed, f"{what}: off by {error:.1e}, allowed {allowed:.0e}"


def gradients(outs: list[Tensor], inputs: list[Tensor], seed: int = 9) -> list[Tensor]:
    """At the inputs, of a random weighted sum of the outputs."""
    total = sum((out * drawn(*out.shape, seed=seed + i).detach()).sum() for i, out in enumerate(outs))
    return list(torch.autograd.grad(total, inputs))


# ---- tiles and pieces

SHAPES = [(7, 7, 6, 2, 5, 3), (4, 9, 4, 4, 8, 8), (1, 20, 4, 1, 6, 7)]  # queries, keys, H, G, K, V
RULES = [patterns.Everything(), patterns.Causal(), patterns.Window(3), patterns.Longformer(1, (0, 5))]
TILES = [Tile(1, 1), Tile(3, 2), Tile(5, 4), Tile(64, 64)]
SCALE = 0.3


@cache
def case(shape: tuple[int, ...], rule: patterns.Pattern) -> tuple[list[Tensor], list[Tensor]]:
    """Inputs q, k, v; and what PyTorch's kernel makes of them: out_QHV, logsumexp_QH and their gradients."""
    queries, keys, heads, groups, wide, value = shape
    inputs = [drawn(queries, heads, wide), drawn(keys, groups, wide, seed=1), drawn(keys, groups, value, seed=2)]
    q_HQK, k_HSK, v_HSV = (x.repeat_interleave(heads // x.shape[1], 1).transpose(0, 1) for x in inputs)
    seen_QS = rule(torch.arange(keys - queries, keys)[:, None], torch.arange(keys)[None])
    out_QHV = F.scaled_dot_product_attention(q_HQK, k_HSK, v_HSV, seen_QS, scale=SCALE).transpose(0, 1)
    scores_HQS = (SCALE * torch.einsum("hqk,hsk->hqs", q_HQK, k_HSK)).masked_fill(~seen_QS, -torch.inf)
    outs = [out_QHV, scores_HQS.logsumexp(-1).T]
    return inputs, [out.detach() for out in outs] + gradients(outs, inputs)


def _agrees(way: Callable[..., Partial], shape: tuple[int, ...], rule: patterns.Pattern, what: str) -> None:
    inputs, expected = case(shape, rule)
    outs = list(way(*inputs, scale=SCALE, rule=rule))
    for i, (found, wanted) in enumerate(zip([*outs, *gradients(outs, inputs)], expected, strict=True)):
        name = ("output", "logsumexp", "gradient of q", "gradient of k", "gradient of v")[i]
        close(found, wanted, VALUE if i < 2 else GRADIENT, f"{name}, {what}, {shape}, {rule}")


def flash_values() -> None:
    """Outputs, logsumexp and gradients for every tile, as PyTorch has them."""
    for shape, rule, tile in itertools.product(SHAPES, RULES, TILES):
        _agrees(lambda *qkv, tile=tile, **rest: flash(*qkv, tile=tile, **rest), shape, rule, f"{tile}")


def flash_split() -> None:
    """Keys in 1 to 16 ranges, some of which a query does not see at all."""
    for (shape, rule), parts in itertools.product(zip(SHAPES, RULES[1:], strict=True), range(1, 17)):
        _agrees(lambda *qkv, n=parts, **rest: split(*qkv, parts=n, tile=Tile(2, 3), **rest), shape, rule, f"{parts}")


def flash_naive() -> None:
    """What the tiled form is compared with is attention, too."""
    for shape, rule in itertools.product(SHAPES, RULES):
        inputs, expected = case(shape, rule)
        close(naive(*inputs, scale=SCALE, rule=rule, traffic=Traffic()), expected[0], VALUE, f"naive, {shape}, {rule}")


def flash_traffic() -> None:
    """Counted reads and writes are those that the algorithms on paper make."""
    for n, d, tile in [(12, 4, Tile(3, 4)), (13, 6, Tile(4, 5)), (9, 4, Tile(99, 2))]:
        inputs, down, across = [drawn(n, 1, d, seed=i) for i in range(3)], -(-n // tile.rows), -(-n // tile.keys)
        plain, tiled = Traffic(), Traffic()
        naive(*inputs, scale=SCALE, rule=patterns.Everything(), traffic=plain)
        assert (plain.read, plain.written) == (3 * n * d + 2 * n * n, n * d + 2 * n * n), f"naive: {plain}"
        outs = flash(*inputs, scale=SCALE, rule=patterns.Everything(), tile=tile, traffic=tiled)
        assert (tiled.read, tiled.written) == (n * d + down * 2 * n * d, n * d + n), f"forward: {tiled}"
        tiled.read = tiled.written = 0
        gradients(list(outs), inputs)
        row = 3 * d + 2  # q, dout, dq, logsumexp and the common term
        assert tiled.read == 2 * n * d + n + 2 * n * d + across * n * row, f"backward: {tiled}"
        assert tiled.written == n + across * n * d + 2 * n * d, f"backward: {tiled}"


def flash_skips() -> None:
    """A causal mask halves what is read: tiles in which nobody sees anybody are left out."""
    n, d, side = 24, 4, 4
    inputs, traffic = [drawn(n, 1, d, seed=i) for i in range(3)], Traffic()
    flash(*inputs, scale=SCALE, tile=Tile(side, side), traffic=traffic)
    tiles = sum(i + 1 for i in range(n // side))
    assert traffic.read == n * d + tiles * side * 2 * d, f"{traffic}"


def flash_fits() -> None:
    """A tile fills the chip and does not overflow it."""
    for width, memory in itertools.product((8, 64, 128), (1100, 2048, 10_000, 50_000, 10**6)):
        tile = Tile.fitting(memory, width)
        q_o, k_v = 2 * tile.rows * width, 2 * tile.keys * width
        held = q_o + k_v + tile.rows * tile.keys + 2 * tile.rows
        assert held == tile.held(width) <= memory, f"{tile} holds {held} of {memory}"
        assert memory - held < 2 * width + tile.keys + 2, f"{tile}: one more row fits in {memory}"
        assert k_v <= memory / 4 or tile.keys == 1, f"{tile}: keys crowd out rows in {memory}"


def softmax_pieces() -> None:
    """Random scores in random pieces, some of them hidden, some huge: the softmax of all at once."""
    for seed in range(40):
        generator = torch.Generator().manual_seed(seed)
        size = int(torch.randint(1, 30, (), generator=generator))
        scores_GRS, v_GSV = drawn(2, 3, size, seed=seed).detach(), drawn(2, size, 4, seed=seed + 1).detach()
        scores_GRS = scores_GRS * (400 if seed % 3 == 0 else 1)
        hidden_GRS = torch.rand(scores_GRS.shape, generator=generator) < (0.5 if seed % 2 else 0)
        hidden_GRS[..., -1] = False
        scores_GRS = scores_GRS.masked_fill(hidden_GRS, -torch.inf)
        cuts = (torch.rand(size - 1, generator=generator) < 0.4).nonzero().flatten() + 1
        running = Running.none(torch.zeros(2, 3, 4, dtype=torch.float64))
        for scores, v in zip(scores_GRS.tensor_split(cuts, -1), v_GSV.tensor_split(cuts, 1), strict=True):
            running = running.absorb(scores, v)
        out_GRV, logsumexp_GR = running.finished()
        close(out_GRV, scores_GRS.softmax(-1) @ v_GSV, VALUE, f"output, cuts {cuts.tolist()}")
        close(logsumexp_GR, scores_GRS.logsumexp(-1), 400 * VALUE, f"logsumexp, cuts {cuts.tolist()}")


def softmax_merge() -> None:
    """Partial results merge in any order, and in any grouping."""
    scores_QS, v_SV = drawn(5, 12).detach() * 30, drawn(12, 3, seed=1).detach()
    bounds = [slice(0, 3), slice(3, 4), slice(4, 9), slice(9, 12)]
    parts = [
        Partial((scores_QS[:, s].softmax(-1) @ v_SV[s])[:, None], scores_QS[:, s].logsumexp(-1)[:, None])
        for s in bounds
    ]
    expected = [(scores_QS.softmax(-1) @ v_SV)[:, None], scores_QS.logsumexp(-1)[:, None]]
    for order in itertools.permutations(parts):
        for found in (merge(order), merge([merge(order[:2]), merge(order[2:])]), merge([merge(order[:3]), order[3]])):
            for mine, other in zip(found, expected, strict=True):
                close(mine, other, 1e-11, "merged")


def softmax_nothing() -> None:
    """A row that sees nothing: zeros, minus infinity, finite gradients; merged with others it does not count."""
    inputs = [drawn(4, 2, 3), drawn(6, 1, 3, seed=1), drawn(6, 1, 3, seed=2)]
    for parts in (1, 2):
        each = [flash(*inputs, scale=SCALE, tile=Tile(3, 2), start=-2) for _ in range(parts)]
        found = merge(each) if parts > 1 else each[0]
        assert (found.out_QHV[:2] == 0).all(), f"{parts} parts: zeros"
        assert (found.logsumexp_QH[:2] == -torch.inf).all(), f"{parts} parts: minus infinity"
        assert all(torch.isfinite(g).all() for g in gradients([found.out_QHV], inputs)), f"{parts} parts: gradient"


# ---- linear attention


def _elu(x: Tensor) -> Tensor:
    return torch.where(x > 0, x + 1, x.clamp(max=0).exp())


def _taylor(a: Tensor, b: Tensor) -> Tensor:
    """The kernel itself, not a product of features."""
    score = (a * b).sum(-1) / math.sqrt(a.shape[-1])
    return 1 + score + score**2 / 2


KERNELS: dict[str, tuple[LinearSpec, Callable[[Tensor, Tensor], Tensor]]] = {
    "elu": (LinearSpec(3, 4), lambda a, b: (_elu(a) * _elu(b)).sum(-1)),
    "taylor": (LinearSpec(3, 4, "taylor"), _taylor),
}


@cache
def kernel_case(name: str, causal: bool) -> tuple[list[Tensor], list[Tensor]]:
    """Inputs q, k, v of width 4, and what every query takes, one by one; then the gradients."""
    kernel, inputs = KERNELS[name][1], [drawn(11, 3, 4, seed=i) for i in range(3)]
    q, k, v = inputs
    rows = []
    for i in range(11):
        seen = i + 1 if causal else 11
        weights_SH = kernel(q[i].expand(seen, -1, -1), k[:seen])
        rows.append((weights_SH[..., None] * v[:seen]).sum(0) / weights_SH.sum(0)[:, None])
    out = torch.stack(rows)
    return inputs, [out.detach(), *gradients([out], inputs)]


def _in_two(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    first, state = chunked(q[:5], k[:5], v[:5], 3)
    return torch.cat([first, chunked(q[5:], k[5:], v[5:], 2, state)[0]])


FORMS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "quadratic": lambda q, k, v: quadratic(q, k, v, causal=True),
    "prefix sums": prefix_sums,
    "recurrent": lambda q, k, v: chunked(q, k, v, 1)[0],
    "chunks of 4": lambda q, k, v: chunked(q, k, v, 4)[0],
    "one chunk": lambda q, k, v: chunked(q, k, v, 99)[0],
    "in two calls": _in_two,
}


def linear_forms() -> None:
    """All causal forms, and both bidirectional ones, are the definition; values and gradients."""
    both = {"quadratic": lambda q, k, v: quadratic(q, k, v, causal=False), "linear": linear}
    for name, (causal, forms) in itertools.product(KERNELS, ((True, FORMS), (False, both))):
        inputs, expected = kernel_case(name, causal)
        q, k, v = inputs
        phi = KERNELS[name][0].map
        for form, way in forms.items():
            out = way(phi(q), phi(k), v)
            for found, wanted in zip([out, *gradients([out], inputs)], expected, strict=True):
                close(found, wanted, 1e-10, f"{name}, {form}, causal {causal}")


@contextmanager
def _forgotten() -> Iterator[None]:
    """Directions are drawn anew, and so again afterwards."""
    linear_attention.directions.cache_clear()
    try:
        yield
    finally:
        linear_attention.directions.cache_clear()


@_forgotten()
def linear_random() -> None:
    """Random features are positive, orthogonal in blocks, and estimate exp(q . k / sqrt(K)) without bias."""
    x_SHK = 0.3 * drawn(6, 1, 8).detach()
    features_SHF = linear_attention.random_features(x_SHK, 40_000, 3)
    assert (features_SHF > 0).all(), "positive"
    expected = (x_SHK[:, 0] @ x_SHK[:, 0].T / math.sqrt(8)).exp()
    close(features_SHF[:, 0] @ features_SHF[:, 0].T / expected, torch.ones_like(expected), 0.03, "estimate")
    w_FK = linear_attention.directions(20, 8, 0)
    unit_FK = w_FK / w_FK.norm(dim=-1, keepdim=True)
    close(unit_FK[:8] @ unit_FK[:8].T, torch.eye(8).double(), 1e-12, "directions of a block")
    assert not torch.equal(w_FK, linear_attention.directions(20, 8, 1)), "the seed makes no difference"


def linear_module() -> None:
    """The layer over a ragged batch: projections, features, the definition for each sequence alone, projection."""
    for name, (spec, _) in KERNELS.items():
        layer = LinearAttention(10, LinearSpec(3, 4, spec.feature, chunk=3, bias=True, out_bias=True)).double()
        for i, parameter in enumerate(layer.parameters()):
            parameter.data = drawn(*parameter.shape, seed=20 + i).detach()
        x_TD, lengths = drawn(12, 10, seed=5).detach(), [5, 1, 6]
        found = layer(x_TD, 0, Place(), BlockDiagonal(lengths))
        close(found, torch.cat([_layer(layer, x, name) for x in x_TD.split(lengths)]), 1e-10, f"layer, {name}")


def _layer(layer: LinearAttention, x_SD: Tensor, name: str) -> Tensor:
    weights = layer.state_dict()
    q, k, v = (F.linear(x_SD, weights[f"{n}.weight"], weights[f"{n}.bias"]).reshape(-1, 3, 4) for n in "qkv")
    kernel_QSH = KERNELS[name][1](q[:, None], k[None]) * torch.ones(len(q), len(q)).tril()[..., None]
    out = torch.einsum("qsh,shk->qhk", kernel_QSH / kernel_QSH.sum(1, keepdim=True), v)
    return F.linear(out.reshape(len(q), 12), weights["out.weight"], weights["out.bias"])


def linear_state() -> None:
    """A state holds the sums that the paper writes, in the shapes that the spec says."""
    spec = LinearSpec(3, 4, "taylor")
    q, k, v = (drawn(7, 3, 4, seed=i).detach() for i in range(3))
    _, state = LinearAttention(12, spec).step(None, q, k, v)
    assert tuple(tuple(x.shape) for x in state) == spec.state
    features = spec.map(k)
    close(state[0], sum(torch.einsum("hf,hk->hfk", f, x) for f, x in zip(features, v, strict=True)), VALUE, "memory")
    close(state[1], sum(features), VALUE, "norm")


# ---- weights other than softmax's


@cache
def scores_and_mask() -> tuple[Tensor, Tensor]:
    """Scores of 3 heads, a mask with one row that sees nothing and one that sees a single key."""
    seen_QS = torch.rand(6, 9, generator=torch.Generator().manual_seed(0)) > 0.3
    seen_QS[1], seen_QS[2] = False, torch.arange(9) == 4
    return drawn(3, 6, 9), seen_QS


def _projection(row: Tensor) -> Tensor:
    """The nearest point of the simplex, by bisection: the sum falls as the threshold rises."""
    low, high = row.min() - 1, row.max()
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if (row - middle).clamp(min=0).sum() > 1 else (low, middle)
    return (row - low).clamp(min=0)


def _sigmoid(row: Tensor) -> Tensor:
    return 1 / (1 + len(row) * (-row).exp())


ROWS: dict[str, Callable[[Tensor], Tensor]] = {
    "softmax": lambda row: row.exp() / row.exp().sum(),
    "sigmoid": _sigmoid,
    "relu": lambda row: row.clamp(min=0) / len(row),
    "sparsemax": _projection,
}


def simplex_values() -> None:
    """Each row's visible scores, weighted alone; temperatures divide them."""
    scores_HQS, seen_QS = scores_and_mask()
    for name, temperature in itertools.product(ROWS, (1.0, 0.2, 7.0)):
        expected = torch.zeros_like(scores_HQS)
        for h, i in itertools.product(range(3), range(6)):
            if seen_QS[i].any():
                expected[h, i, seen_QS[i]] = ROWS[name](scores_HQS[h, i, seen_QS[i]].detach() / temperature)
        found = simplex.weighted(name, scores_HQS, seen_QS, temperature)
        close(found.detach(), expected, GRADIENT, f"{name} at {temperature}")


def simplex_gradients() -> None:
    """Gradients are the slopes that small steps show; where nothing is seen they are zero."""
    scores_HQS, seen_QS = scores_and_mask()
    for name in ROWS:
        weights_HQS = simplex.weighted(name, scores_HQS, seen_QS)
        (found,) = gradients([weights_HQS], [scores_HQS])
        close(found, _slopes(name), 1e-7, f"gradient of {name}")
        assert (found[:, 1] == 0).all(), f"{name}: a row that sees nothing has a gradient"
        assert (found[:, ~seen_QS] == 0).all(), f"{name}: a key that is not seen has a gradient"


@cache
def _slopes(name: str) -> Tensor:
    scores_HQS, seen_QS = scores_and_mask()
    probe, step = drawn(*scores_HQS.shape, seed=9).detach(), 1e-6
    slopes = torch.zeros_like(scores_HQS)
    for h, i in itertools.product(range(3), range(6)):
        for s in seen_QS[i].nonzero().flatten().tolist():
            sides = []
            for sign in (1, -1):
                row = scores_HQS[h, i].detach().clone()
                row[s] += sign * step
                sides.append((ROWS[name](row[seen_QS[i]]) * probe[h, i, seen_QS[i]]).sum())
            slopes[h, i, s] = (sides[0] - sides[1]) / (2 * step)
    return slopes


# ---- patterns

N = 24
SEES: dict[patterns.Pattern, Callable[[int, int], bool]] = {
    patterns.Everything(): lambda q, s: True,
    patterns.Causal(): lambda q, s: s <= q,
    patterns.Window(5): lambda q, s: 0 <= q - s < 5,
    patterns.Window(5, 3): lambda q, s: s <= q and (q - s < 5 or s < 3),
    patterns.Window(99, 2): lambda q, s: s <= q,
    patterns.Prefix(6): lambda q, s: s < 6 or s <= q,
    patterns.Padded(17): lambda q, s: s < 17,
    patterns.Blocks((5, 1, 9)): lambda q, s: _document(q) == _document(s),
    patterns.Longformer(3, (0, 11)): lambda q, s: abs(q - s) <= 3 or q in (0, 11) or s in (0, 11),
    patterns.Longformer(2): lambda q, s: abs(q - s) <= 2,
    patterns.Strided(4): lambda q, s: (
        s in {*range(max(0, q - 4), q + 1)} | {s for s in range(q + 1) if (q - s) % 4 == 0}
    ),
    patterns.Fixed(5, 2): lambda q, s: s <= q and (q // 5 == s // 5 or s % 5 in (3, 4)),
}


def _document(position: int) -> int:
    return (position >= 5) + (position >= 6) + (position >= 15)


def pattern_definitions() -> None:
    """Every pair by itself, and as many pairs as the formula says, at this length and at shorter ones."""
    for pattern, sees in SEES.items():
        expected = torch.tensor([[sees(q, s) for s in range(N)] for q in range(N)])
        found = patterns.mask(pattern, N)
        assert torch.equal(found, expected), f"{pattern}"
        for n in (N, 19, 15):
            assert pattern.pairs(n) == int(expected[:n, :n].sum()), f"{pattern}: formula for {n} tokens"


def pattern_transformers() -> None:
    """The masks that transformers makes for whole sequences, windows, documents and padding."""
    documents = torch.tensor([[0] * 5 + [1] + [2] * 9 + [3] * 9])
    padding = (torch.arange(N) < 17)[None]
    causal = masking_utils.causal_mask_function
    pairs: list[tuple[patterns.Rule, Callable[..., Tensor | bool]]] = [
        (patterns.Causal(), causal),
        (patterns.Everything(), masking_utils.bidirectional_mask_function),
        (patterns.Window(5), masking_utils.sliding_window_causal_mask_function(5)),
        (patterns.Blocks((5, 1, 9)), masking_utils.packed_sequence_mask_function(documents)),
        (patterns.Padded(17), masking_utils.padding_mask_function(padding)),
        (patterns.Longformer(4), masking_utils.sliding_window_bidirectional_mask_function(4)),
    ]
    packed = [masking_utils.packed_sequence_mask_function(documents), masking_utils.padding_mask_function(padding)]
    combined = patterns.both(patterns.Causal(), patterns.Blocks((5, 1, 9)), patterns.Padded(17))
    for rule, theirs in [*pairs, (combined, masking_utils.and_masks(causal, *packed))]:
        at = torch.arange(N)
        expected = torch.tensor([[bool(theirs(0, 0, q, s)) for s in at] for q in at])
        assert torch.equal(patterns.mask(rule, N), expected), f"{rule}"


def pattern_longformer() -> None:
    """Transformers' Longformer attention, which never makes a mask, gives what ours gives with one."""
    config = LongformerConfig(
        hidden_size=12, num_attention_heads=3, attention_window=[6], attention_probs_dropout_prob=0.0
    )
    theirs = LongformerSelfAttention(config, 0).double().eval()
    for name in ("query", "key", "value"):  # one projection for both kinds of token, as a single mask has it
        getattr(theirs, f"{name}_global").load_state_dict(getattr(theirs, name).state_dict())
    x_SD, places = drawn(N, 12).detach(), (0, 11)
    at = torch.isin(torch.arange(N), torch.tensor(places))
    hidden_1S = torch.zeros(1, N, dtype=torch.bool)
    with all_float64():
        marks_1S = torch.where(at, 10000.0, 0.0)[None]
        expected = theirs(x_SD[None], marks_1S, hidden_1S, at[None], is_global_attn=True)[0][0]
    q, k, v = (getattr(theirs, name)(x_SD).view(N, 3, 4) for name in ("query", "key", "value"))
    found = flash(q, k, v, scale=0.5, rule=patterns.Longformer(3, places), tile=Tile(5, 7)).out_QHV.reshape(N, 12)
    close(found.detach(), expected.detach(), 1e-9, "Longformer")


def pattern_bigbird() -> None:
    """Window and edge blocks are those of transformers' BigBird; the rest is as many random blocks, no more."""
    length, block, random = 36, 3, 2
    ours = patterns.BigBird(length, block, random, seed=1)
    config = BigBirdConfig(
        hidden_size=8, num_attention_heads=1, num_random_blocks=random, block_size=block, max_position_embeddings=length
    )
    theirs = BigBirdBlockSparseAttention(config, seed=0).double().train()
    x_SD = drawn(1, length, 8).detach()
    edges = torch.ones(1, 1, length, 1).double()
    bands = torch.ones(1, 1, length // block - 4, block, 3 * block).double()
    blocked = torch.ones(1, length // block, block).double()
    _, probabilities = theirs(x_SD, bands, edges, edges.mT, blocked, blocked, output_attentions=True)
    count = length // block
    reference = (probabilities[0, 0].view(count, block, count, block) > 0).any(1).any(-1)
    own = patterns.mask(ours, length).view(count, block, count, block)
    assert (own.all(1).all(-1) == own.any(1).any(-1)).all(), "blocks are seen whole"
    assert torch.equal(own.any(1).any(-1).sum(-1), reference.sum(-1)), "blocks seen by each block"
    certain = patterns.mask(patterns.BigBird(length, block, 0), length).view(count, block, count, block)[:, 0, :, 0]
    assert (own[:, 0, :, 0] | ~certain).all(), "ours leaves out a window or an edge"
    assert (reference | ~certain).all(), "theirs leaves out what ours calls certain"
    assert torch.equal((reference & ~certain).sum(-1), (own[:, 0, :, 0] & ~certain).sum(-1)), "random blocks"
    assert not torch.equal(own, patterns.mask(patterns.BigBird(length, block, random, 2), length).view_as(own)), "seed"
    for n, side, lots in [(36, 3, 2), (40, 4, 5), (10, 2, 0)]:
        pattern = patterns.BigBird(n, side, lots)
        assert pattern.pairs(n) == int(patterns.mask(pattern, n).sum()), f"{pattern}: formula"


# ---- documents end to end


def packing_separate() -> None:
    """Packed, every logit and every gradient is that of documents by themselves, whatever tells positions."""
    texts = [torch.randint(256, (n,), generator=torch.Generator().manual_seed(n)) for n in (7, 3, 12, 5)]
    for positions in ("rotary", "learned"):
        found = packing.outcome(positions, "packed", packing.model(positions, 27, Run()), texts)
        assert found.logits < 1e-10, f"{positions}: logits apart by {found.logits:.1e}"
        assert found.gradient < 1e-10, f"{positions}: gradients apart by {found.gradient:.1e}"


def _named() -> Iterator[tuple[str, Callable[[], None]]]:
    for proof in (
        flash_values, flash_split, flash_naive, flash_traffic, flash_skips, flash_fits,
        softmax_pieces, softmax_merge, softmax_nothing,
        linear_forms, linear_random, linear_module, linear_state,
        simplex_values, simplex_gradients,
        pattern_definitions, pattern_transformers, pattern_longformer, pattern_bigbird,
        packing_separate,
    ):  # fmt: skip
        yield proof.__name__.replace("_", " "), proof


PROOFS = dict(_named())
