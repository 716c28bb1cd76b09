"""The cost model against what PyTorch counts, and expected loads against draws."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from cutaway.budget.figures import evaluate
from cutaway.budget.published import PUBLISHED
from cutaway.budget.roofline import balance
from cutaway.budget.training import activations
from cutaway.models.build import build
from cutaway.models.cost import Cost, pairs, per_pair
from cutaway.models.decoder import Decoder, EncoderDecoder
from cutaway.models.families.table import spec_of
from cutaway.models.spec import Spec
from cutaway.nn.attention import AttentionSpec, BlockDiagonal, Question, visible
from kit import twins


def _spec(name: str) -> Spec:
    twin = twins.twin(name)
    return spec_of(twin.family, twin.config | twin.family.observed(twin.config, twin.state))


def _counted(run: Callable[[], object]) -> int:
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


def pairs_are_the_masks() -> None:
    for causal, window, first in ((True, None, 0), (True, 4, 0), (True, 3, 2), (False, 3, 0), (False, 3, 2)):
        a = AttentionSpec(1, 1, 2, 1.0, causal=causal, window=window, anchors=first)
        for new, past in ((1, 9), (6, 0), (5, 3), (11, 1)):
            mask = visible(new, past + new, Question(1.0, causal, window, first), torch.device("cpu"))
            seen = new * (past + new) if mask is None else int(mask.sum())
            assert pairs(a, new, past) == seen, (causal, window, first, new, past)


def latent_flops() -> None:
    """The first layer of a DeepSeek-V3, which has no experts, in both forms; the kernel multiplies masked pairs too."""
    experts, new = _spec("deepseek_v3"), 4
    model = build(replace(experts, layers=experts.layers[:1]))
    assert isinstance(model, Decoder)
    tokens_T, cost = torch.arange(new), Cost(model.spec)
    found = _counted(lambda: model(tokens_T, tokens_T, BlockDiagonal([new])))
    masked = 2 * model.spec.layers[0].attention.per_pair * new * (new - 1) // 2
    assert cost.flops(new) == found - masked
    a, attention = model.spec.layers[0].attention, model.layers[0].attention
    x_TD = torch.randn(new, model.spec.width)
    (place,) = model.places(model.spec.layers, tokens_T, x_TD, tokens_T)
    projected = attention.project(x_TD, place)
    absorbed = _counted(lambda: attention.absorbed(projected, 0, place, BlockDiagonal([new])))
    folded = 2 * new * a.heads * a.kv_rank * (a.plain_dim + a.value_dim)
    assert 2 * per_pair(a, True) * new * new == absorbed - folded


def source_flops() -> None:
    """An encoder-decoder reads its source once, and every new token looks at it."""
    model, source, target = build(_spec("bart")), 11, 7
    assert isinstance(model, EncoderDecoder)
    cost = Cost(model.spec)

    def run() -> None:
        memory_MD = model.encode(torch.arange(source), [source])
        model(
            torch.arange(target), torch.arange(target), BlockDiagonal([target], memory_MD=memory_MD, sources=[source])
        )

    masked = sum(2 * layer.attention.per_pair for layer in model.spec.layers) * target * (target - 1) // 2
    assert cost.flops(target, source=source) == _counted(run) - masked
    assert cost.flops_per_token(9, source) == cost.flops(1, 8, 1, source=source)


def experts_read() -> None:
    """Of 8 experts, each token draws 2: the expected share of weights that 5 tokens read, against 20,000 draws."""
    cost = Cost(PUBLISHED["mixtral-8x7b"].spec)
    of_experts = sum(part.parameters for part in cost.parts if part.active < 1)
    drawn = torch.rand(20_000, 5, 8, generator=torch.Generator().manual_seed(0)).topk(2).indices.flatten(1)
    share = float(torch.zeros(20_000, 8).scatter_(1, drawn, 1.0).mean())
    rest = cost.parameters - of_experts - cost.spec.vocab * cost.spec.width
    assert abs(cost.read(5) / (rest + share * of_experts) - 1) < 0.005
    assert cost.active == rest + of_experts // 4


def balance_is_one() -> None:
    """At the batch at balance a step computes as long as it reads."""
    from cutaway.budget.chips import CHIPS

    cost, chip, context = Cost(PUBLISHED["llama-3-8b"].spec), CHIPS["h100-sxm"], 256
    batch = next(f.value for f in balance(cost, chip, "bfloat16", context) if f.name == "batch at balance")
    computing = batch * (2 * cost.parameters + 4 * 32 * 4096 * context) / 989.4e12
    reading = (2 * cost.parameters + batch * context * 131_072) / 3.35e12
    assert abs(computing / reading - 1) < 1e-9
    assert abs(activations(32, 4096, 32, 4096)[1].value / 2**30 - 97) < 1e-9, "Korthikanti et al. 2022"


def stored_weights() -> None:
    """Of half a byte instead of two, they take a fourth of the time to read, and the balance comes a fourth as late."""
    from cutaway.budget.chips import CHIPS
    from cutaway.budget.roofline import latency

    cost, chip = Cost(PUBLISHED["llama-3-8b"].spec), CHIPS["h100-sxm"]
    batches = [balance(cost, chip, "bfloat16", 0, width=width)[0].value for width in (None, 0.5)]
    times = [latency(cost, chip, "bfloat16", 10, width=width)[1].value for width in (None, 0.5)]
    assert abs(batches[0] / batches[1] - 4) < 1e-9
    assert abs(times[0] / times[1] - 4) < 1e-9


def prices() -> None:
    """2,000 tokens a second at 2 $ an hour; 72 GB of which 16.06 are weights hold 52 caches of 1 GiB, half full."""
    from cutaway.budget.chips import CHIPS
    from cutaway.budget.price import of_replies, per_million

    assert abs(per_million(2, 2000).value - 2e6 / 7.2e6) < 1e-12
    cost = Cost(PUBLISHED["llama-3-8b"].spec)
    found = {f.name: f.value for f in of_replies(cost, CHIPS["a100-80gb"], "bfloat16", 8192, price=2)}
    assert abs(found["reading, a step"] - (16_060_522_496 + 52 * 2**29) / 2.039e12) < 1e-12


def formulas() -> None:
    assert evaluate("2·3^2 − (1 + 5)/4 + max(1,000, 5)") == 1016.5
    assert evaluate("−2^2 + choose(8, 2)") == 24


PROOFS = {
    "budget: pairs": pairs_are_the_masks,
    "budget: latent": latent_flops,
    "budget: source": source_flops,
    "budget: experts": experts_read,
    "budget: balance": balance_is_one,
    "budget: stored weights": stored_weights,
    "budget: price": prices,
    "budget: formulas": formulas,
}
