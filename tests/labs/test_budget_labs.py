"""Parts of the labs on sizes and shapes whose values are known."""

from __future__ import annotations

import pytest
import torch

from cutaway.budget.published import PUBLISHED
from cutaway.labs.arch import depth_width, gpt_generations, model_map
from cutaway.labs.catalogue import LABS
from cutaway.labs.moe import experts_counted
from cutaway.models.cost import Cost


def test_every_limit_of_the_map_is_shown_by_a_lab() -> None:
    assert set(model_map.LIMITS.values()) <= set(LABS)


@pytest.mark.parametrize(
    ("name", "batch", "context", "limit"),
    [
        ("llama-3-8b", 1, 1, "weights"),
        ("llama-3-8b", 1000, 1, "compute"),
        ("llama-3-8b", 1000, 8192, "cache"),
        ("mixtral-8x7b", 8, 100, "experts' weights"),
        ("bert-base", 1, 1, "weights"),
        ("bert-base", 64, 512, "compute"),
    ],
)
def test_what_limits_a_model(name: str, batch: int, context: int, limit: str) -> None:
    assert model_map.limit(Cost(PUBLISHED[name].spec), "h100-sxm", batch, context) == limit


def test_choices_are_found_where_they_were_introduced() -> None:
    places = [model_map.place(name, PUBLISHED[name], "h200", 1, 100) for name in ("gpt-3", "llama-3-8b", "deepseek-v3")]
    first = {name: model_map.first_at(places, has) for name, has in model_map.CHOICES.items()}
    assert first["latent attention"] == first["blocks ahead"] == places[2]
    assert first["keys and values shared by heads"] == first["a head of its own"] == places[1]
    assert first["windows"] is None


@pytest.mark.parametrize("parameters", [50_000, 1_000_000])
def test_shapes_of_one_size_lie_near_it(parameters: int) -> None:
    sizes = [Cost(depth_width.fitting(layers, parameters)).parameters for layers in depth_width.DEPTHS]
    assert max(abs(n / parameters - 1) for n in sizes) < (0.06 if parameters < 10**6 else 0.015)


def test_a_training_step_costs_three_forward_passes() -> None:
    spec = depth_width.fitting(2, 50_000)
    one = Cost(spec).flops(depth_width.LENGTH, rows=depth_width.LENGTH)
    assert depth_width.step_flops(spec) == 3 * depth_width.ROWS * one


@pytest.mark.parametrize("count", [4, 32])
def test_work_of_experts_is_what_the_formula_says(count: int) -> None:
    with torch.no_grad():
        work = experts_counted.worked(count, 32, torch.Generator().manual_seed(0), tokens=7)
    assert work.counted == work.formula == 7 * 2 * (3 * 32 * 64) * 2
    assert work.router == 7 * 2 * count * 32


def test_rows_sent_once_reach_at_most_the_groups_that_may_be_chosen() -> None:
    with torch.no_grad():
        sent = experts_counted.exchanged(800, torch.Generator().manual_seed(0))
    row = sent.formula / 8
    assert sent.once <= 4 * row, "DeepSeek-V3 chooses within four of eight groups"
    assert sent.leaving == pytest.approx(sent.formula * 7 / 8, rel=0.05), "one of eight machines is a token's own"


def test_gpt_2_is_larger_than_its_paper_says() -> None:
    found = {g.name: gpt_generations.recount(g) for g in gpt_generations.LINE[:3]}
    assert found["gpt-2-small"].counted == found["gpt-2-small"].held == 124_439_808
    assert found["gpt-2-small"].off == pytest.approx(117 / 124.439808 - 1)
