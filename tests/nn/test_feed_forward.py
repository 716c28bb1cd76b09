"""The feed-forward layer against its formula in the papers, activations against their definitions."""

from __future__ import annotations

import math

import pytest
import torch

from cutaway.nn.feed_forward import ACTIVATIONS, FeedForward, FeedForwardSpec, gated

DEFINITIONS = {
    "silu": lambda x: x / (1 + math.exp(-x)),
    "gelu": lambda x: x * 0.5 * (1 + math.erf(x / math.sqrt(2))),
    "gelu_tanh": lambda x: 0.5 * x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    "gelu_bloom": lambda x: 0.5 * x * (1 + math.tanh(0.79788456 * (x + 0.044715 * x**3))),
    "quick_gelu": lambda x: x / (1 + math.exp(-1.702 * x)),
    "relu": lambda x: max(x, 0.0),
    "relu2": lambda x: max(x, 0.0) ** 2,
    "tanh": math.tanh,
}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_are_what_their_papers_say(name):
    points = [-5.0, -1.3, -0.2, 0.0, 0.4, 2.0, 6.0]
    expected = torch.tensor([DEFINITIONS[name](x) for x in points], dtype=torch.float64)
    torch.testing.assert_close(ACTIVATIONS[name](torch.tensor(points, dtype=torch.float64)), expected)


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_the_layer_is_the_formula(gated, bias):
    torch.manual_seed(0)
    layer = FeedForward(6, FeedForwardSpec(11, "silu", gated, bias)).double()
    w = {name: p.detach() for name, p in layer.named_parameters()}
    x_TD = torch.randn(4, 6, dtype=torch.float64)

    def linear(name: str, x: torch.Tensor) -> torch.Tensor:
        return x @ w[f"{name}.weight"].T + w.get(f"{name}.bias", torch.zeros(1, dtype=torch.float64))

    opened = torch.nn.functional.silu(linear("gate" if gated else "up", x_TD))
    expected = linear("down", opened * linear("up", x_TD) if gated else opened)
    torch.testing.assert_close(layer(x_TD), expected)
    assert any("bias" in name for name in w) == bias


def test_the_clamped_gate_is_the_formula():
    """Gates from above, the other half from both sides; where it is clamped there is no gradient."""
    gate = torch.tensor([-9.0, -9.0, 9.0, 9.0, 1.0, 1.0], dtype=torch.float64, requires_grad=True)
    up = torch.tensor([-9.0, 1.0, 9.0, 1.0, -9.0, 1.0], dtype=torch.float64, requires_grad=True)
    made = gated(torch.tanh, gate, up, 3.0)
    expected = [
        math.tanh(min(g, 3)) * (min(max(u, -3), 3) + 1) for g, u in zip(gate.tolist(), up.tolist(), strict=True)
    ]
    torch.testing.assert_close(made, torch.tensor(expected, dtype=torch.float64))
    made.sum().backward()
    assert [g != 0 for g in gate.grad.tolist()] == [True, True, False, False, True, True]
    assert [u != 0 for u in up.grad.tolist()] == [False, True, False, True, False, True]
