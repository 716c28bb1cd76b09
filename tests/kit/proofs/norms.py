"""Proofs about normalization over a batch, dropout and initialization, each against PyTorch's own or a closed form."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

from cutaway.labs.training import small_spec
from cutaway.models.block import positions_of
from cutaway.models.build import build
from cutaway.models.decoder import Decoder
from cutaway.models.spec import LayerSpec, Spec
from cutaway.nn.attention import BlockDiagonal
from cutaway.nn.dropout import Dropout
from cutaway.nn.init import initialize, mup_groups
from cutaway.nn.norms import NormSpec, make_norm
from cutaway.nn.probes import scales

EXACT = {"rtol": 1e-12, "atol": 1e-12}


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def step(norm: nn.Module, x_TD: Tensor, probe_TD: Tensor) -> list[Tensor]:
    """The output of a norm, and the gradients of its input and parameters for a random linear loss."""
    x_TD = x_TD.clone().requires_grad_(True)
    norm.zero_grad()
    out_TD = norm(x_TD)
    (out_TD * probe_TD).sum().backward()
    assert x_TD.grad is not None
    return [out_TD.detach(), x_TD.grad, *(p.grad.clone() for p in norm.parameters() if p.grad is not None)]


def loud(norm: nn.Module, reference: nn.Module) -> None:
    """Random numbers in every parameter of both."""
    for i, (ours, theirs) in enumerate(zip(norm.parameters(), reference.parameters(), strict=True)):
        ours.data.copy_(drawn(*ours.shape, seed=50 + i))
        theirs.data.copy_(ours.data)


def batch_norm(steps: int = 20) -> None:
    """Training and evaluation in turn over batches of unequal size: values, gradients, running statistics."""
    ours = make_norm(NormSpec("batch", 1e-3), 12).double()
    theirs = nn.BatchNorm1d(12, eps=1e-3).double()
    loud(ours, theirs)
    for i in range(steps):
        x_TD, probe_TD = drawn(3 + i % 5, 12, seed=2 * i) * (i + 1) + i, drawn(3 + i % 5, 12, seed=2 * i + 1)
        for training in (True, False):
            results = [step(norm.train(training), x_TD, probe_TD) for norm in (ours, theirs)]
            for mine, other in zip(*results, strict=True):
                torch.testing.assert_close(mine, other, **EXACT)
        for name in ("running_mean", "running_var"):
            torch.testing.assert_close(ours.get_buffer(name), theirs.get_buffer(name), **EXACT)


def norm_without_bias(kind: str) -> None:
    """No such tensor, and the values of a reference whose bias is zero."""
    theirs: nn.Module = nn.LayerNorm(12, eps=1e-3, bias=False) if kind == "layer" else nn.BatchNorm1d(12, eps=1e-3)
    ours = make_norm(NormSpec(kind, 1e-3, bias=False), 12).double()
    assert [name for name, _ in ours.named_parameters()] == ["weight"]
    weight_D = drawn(12, seed=1)
    for norm in (ours, theirs.double()):
        norm.get_parameter("weight").data.copy_(weight_D)
    x_TD, probe_TD = drawn(7, 12, seed=2) + 1, drawn(7, 12, seed=3)
    for mine, other in zip(step(ours, x_TD, probe_TD), step(theirs, x_TD, probe_TD), strict=False):
        torch.testing.assert_close(mine, other, **EXACT)


def dropout_training(inverted: bool) -> None:
    """What survives is the input, scaled if inverted; the gradient is that of the very mask of the forward pass."""
    p, scale = 0.3, 1 / (1 - 0.3) if inverted else 1.0
    torch.manual_seed(0)
    x = drawn(400, 50).requires_grad_(True)
    layer = Dropout(p, inverted).train()
    out = layer(x)
    upstream = drawn(400, 50, seed=1)
    out.backward(upstream)
    kept = out != 0
    torch.testing.assert_close(out, torch.where(kept, x * scale, 0.0), **EXACT)
    torch.testing.assert_close(x.grad, torch.where(kept, upstream * scale, 0.0), **EXACT)
    share = float(kept.double().mean())
    assert abs(share - (1 - p)) < 0.02, f"a share of {share} survives"
    assert not torch.equal(out, layer(x)), "the mask is not drawn anew"
    rows = kept.double().mean(1)
    assert rows.min() < rows.max() < 1, "whole rows are dropped or kept"


def dropout_gradcheck() -> None:
    """With the mask fixed by a seed, the gradient is the one that finite differences find."""

    def seeded(x: Tensor) -> Tensor:
        torch.manual_seed(7)
        return Dropout(0.4).train()(x)

    assert torch.autograd.gradcheck(seeded, (drawn(5, 6).requires_grad_(True),), raise_exception=False)


def dropout_inference() -> None:
    """Mean in training = value at inference, for both forms."""
    x = torch.full((400_000,), 2.0, dtype=torch.float64)
    torch.manual_seed(1)
    for inverted, expected in ((True, 2.0), (False, 1.8)):
        layer = Dropout(0.1, inverted)
        torch.testing.assert_close(layer.eval()(x), torch.full_like(x, expected), **EXACT)
        mean = float(layer.train()(x).mean())
        assert abs(mean / expected - 1) < 0.003, f"mean in training {mean}, at inference {expected}"


def biased(layer: LayerSpec) -> LayerSpec:
    """The layer with biases, as GPT-2 has them."""
    return replace(
        layer, attention=replace(layer.attention, bias=True, out_bias=True), ffn=replace(layer.ffn, bias=True)
    )


def spec_of(width: int = 32, layers: int = 3) -> Spec:
    """A decoder with every kind of parameter: learned positions, biases, a head of its own."""
    spec = small_spec(width=width, layers=layers, heads=width // 8, kv_heads=width // 16, vocab=101)
    embedding = replace(spec.embedding, positions=17)
    return replace(spec, embedding=embedding, layers=tuple(biased(layer) for layer in spec.layers))


PYTORCHS: dict[str, Callable[..., Tensor]] = {
    "xavier": nn.init.xavier_normal_,
    "kaiming": partial(nn.init.kaiming_normal_, nonlinearity="relu"),
    "lecun": partial(nn.init.kaiming_normal_, nonlinearity="linear"),
    "normal": partial(nn.init.normal_, std=0.02),
}


def init_is_pytorchs(scheme: str) -> None:
    """The very numbers that torch.nn.init draws for every matrix but embeddings; biases 0, norms untouched."""
    model = build(spec_of())
    initialize(model, scheme, torch.Generator().manual_seed(3))
    generator, seen = torch.Generator().manual_seed(3), 0
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:
            assert torch.equal(parameter, torch.full_like(parameter, float("norm" in name))), name
            continue
        draw = partial(nn.init.normal_, std=0.02) if "embedding" in name else PYTORCHS[scheme]
        torch.testing.assert_close(parameter.detach(), draw(torch.empty_like(parameter), generator=generator))
        seen += 1
    assert seen == 2 + 7 * 3 + 1, f"{seen} matrices"


def spread(model: nn.Module, name: str) -> float:
    """The root mean square of a parameter."""
    return float(model.get_parameter(name).detach().double().square().mean().sqrt())


def near(found: float, expected: float, tolerance: float = 0.05) -> None:
    assert abs(found - expected) <= tolerance * expected, f"{found:.5f}, expected {expected:.5f}"


def init_by_depth() -> None:
    """GPT-2 with 12 layers: 0.02, and 0.02 / sqrt(24) = 0.00408 where a layer writes to the stream; or zero there."""
    model = build(spec_of(layers=12))
    for scheme, written in (("depth", 0.0040825), ("zero", 0.0)):
        initialize(model, scheme, torch.Generator().manual_seed(0))
        for i in range(12):
            for name in ("attention.out", "ffn.down"):
                near(spread(model, f"layers.{i}.{name}.weight"), written, 0.1)
            for name in ("attention.q", "attention.k", "attention.v", "ffn.gate", "ffn.up"):
                near(spread(model, f"layers.{i}.{name}.weight"), 0.02, 0.15)
        for name in ("embedding.tokens", "embedding.positions", "head"):
            near(spread(model, f"{name}.weight"), 0.02, 0.15)


def mup_tables() -> None:
    """Table 3 of the paper, for four times the base width: what is divided by 4, what by 2, and what is not."""
    model, base = build(spec_of(128)), build(spec_of(32), "meta")
    initialize(model, "mup", torch.Generator().manual_seed(0), base=base)
    for name, expected in {
        "embedding.tokens": 0.02,
        "layers.0.attention.q": 0.01,
        "layers.1.ffn.down": 0.01,
        "head": 0.005,
    }.items():
        near(spread(model, f"{name}.weight"), expected)
    rates = {id(p): group["lr"] for group in mup_groups(model, base, 0.4) for p in group["params"]}
    assert len(rates) == len(list(model.parameters())), "a parameter is in no group"
    for name, p in model.named_parameters():
        wide = p.ndim == 2 and "embedding" not in name
        assert math.isclose(rates[id(p)], 0.1 if wide else 0.4, rel_tol=0.01), f"{name} learns at {rates[id(p)]}"


def moved(width: int, base_width: int) -> tuple[float, float]:
    """How far three steps of Adam move hidden states and logits, in root mean squares."""
    model, base = build(spec_of(width, 2)), build(spec_of(base_width, 2), "meta")
    assert isinstance(model, Decoder)
    initialize(model, "mup", torch.Generator().manual_seed(1), std=0.05, base=base)
    optimizer = torch.optim.Adam(mup_groups(model, base, 0.0005))
    tokens_T = torch.randint(101, (16,), generator=torch.Generator().manual_seed(2))

    def outputs() -> list[Tensor]:
        hidden_TD = model(tokens_T, positions_of([16]), BlockDiagonal([16]))
        return [hidden_TD, model.logits(hidden_TD)]

    before = [out.detach() for out in outputs()]
    for _ in range(3):
        optimizer.zero_grad()
        nn.functional.cross_entropy(outputs()[1][:-1], tokens_T[1:]).backward()
        optimizer.step()
    hidden, logits = (
        float((new - old).detach().square().mean().sqrt()) for new, old in zip(outputs(), before, strict=True)
    )
    return hidden, logits


def mup_moves() -> None:
    """The paper's coordinate check: with the rates of mup, a step moves a wide model as far as a narrow one.

    The same base as the model itself is plain training, and there the wide one moves further.
    """
    narrow, wide, plain = moved(64, 32), moved(256, 32), moved(256, 256)
    for small, large, standard in zip(narrow, wide, plain, strict=True):
        assert 0.6 < large / small < 1.6, f"moves by {large:.3f} instead of {small:.3f}"
        assert standard / small > 1.6, f"plain training moves by {standard:.3f} too"


def probe_of_a_chain() -> None:
    """Three linear maps, whose gradients are matrix products; the second one runs twice."""
    a, b = (nn.Linear(6, 6, bias=False).double() for _ in range(2))
    a.weight.data, b.weight.data = drawn(6, 6), drawn(6, 6, seed=1)
    x, c = drawn(6, seed=2), drawn(6, seed=3)
    first, second, third = scales([a, b], lambda: b(b(a(x))) @ c)
    A, B = a.weight.detach(), b.weight.detach()
    outs = (A @ x, B @ A @ x, B @ B @ A @ x)
    gradients = (B.T @ B.T @ c, B.T @ c, c)
    for scale, out, gradient in zip((first, second, third), outs, gradients, strict=True):
        near(scale.activation, float(out.square().mean().sqrt()), 1e-12)
        near(scale.gradient, float(gradient.norm()), 1e-12)
    near(first.parameters, float(gradients[0].norm() * x.norm()), 1e-12)
    whole = torch.outer(gradients[1], outs[0]) + torch.outer(gradients[2], outs[1])
    near(second.parameters, float(whole.norm()), 1e-12)
    assert second.parameters == third.parameters
    assert a.weight.grad is None
    assert not a._forward_hooks, "a hook was left behind"


PROOFS: dict[str, Callable[[], object]] = {
    "batch-norm": batch_norm,
    "norm-bias layer": partial(norm_without_bias, "layer"),
    "norm-bias batch": partial(norm_without_bias, "batch"),
    "dropout inverted": partial(dropout_training, True),
    "dropout original": partial(dropout_training, False),
    "dropout gradcheck": dropout_gradcheck,
    "dropout inference": dropout_inference,
    **{f"init {scheme}": partial(init_is_pytorchs, scheme) for scheme in PYTORCHS},
    "init depth": init_by_depth,
    "mup tables": mup_tables,
    "mup moves": mup_moves,
    "probe": probe_of_a_chain,
}
