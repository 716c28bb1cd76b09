"""What models cost, over HTTP: the calculators' own figures, for served models and published shapes."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from cutaway.budget import running, training
from cutaway.budget.chips import CHIPS
from cutaway.budget.figures import evaluate
from cutaway.budget.published import PUBLISHED
from cutaway.budget.roofline import roofline
from cutaway.models.cost import Cost
from cutaway.serve.app import Models
from studio.test_api import API


def budget(http: httpx.Client, **body: Any) -> dict[str, list[dict[str, Any]]]:
    answer = http.post(f"{API}/budget", json={"model": "llama-3-8b", "published": True, **body})
    assert answer.status_code == 200, answer.text
    return {section["name"]: section["figures"] for section in answer.json()["sections"]}


def test_shapes_and_chips_are_listed(http: httpx.Client) -> None:
    answer = http.get(f"{API}/budget").json()
    sizes = {one["name"]: one["parameters"] for one in answer["models"]}
    assert list(sizes) == list(PUBLISHED)
    assert sizes["llama-3-8b"] == 8_030_261_248
    chips = {one["name"]: one for one in answer["chips"]}
    assert list(chips) == list(CHIPS)
    assert chips["m1-max"]["dtypes"] == ["float32"]
    assert chips["h100-sxm"]["memory"] == 80e9


def test_serving_has_the_calculators_figures(http: httpx.Client) -> None:
    found = budget(http, chip="a100-80gb", context=8192, batch=4)
    cost, chip = Cost(PUBLISHED["llama-3-8b"].spec), CHIPS["a100-80gb"]
    assert found["cache"] == [f._asdict() for f in running.kv(cost, 8192, 4, "bfloat16")]
    assert found["cache"][0]["value"] == 131072
    best = roofline(cost, chip, "bfloat16", batch=4, context=8192)
    assert found["roofline"] == [f._asdict() for f in best]
    assert not {"backward", "training step"} & {f["name"] for f in found["flops"]}


def test_training_has_the_calculators_figures(http: httpx.Client) -> None:
    found = budget(http, purpose="training", context=2048, batch=2, tokens=1e12)
    cost = Cost(PUBLISHED["llama-3-8b"].spec)
    assert found["memory"] == [f._asdict() for f in training.training_memory(cost, 2048, 2)]
    assert next(f["value"] for f in found["time"] if f["name"] == "training") == 6 * cost.active * 1e12
    assert {"backward", "training step"} <= {f["name"] for f in found["flops"]}


@pytest.mark.parametrize("purpose", ["serving", "training"])
def test_every_number_is_what_its_formula_comes_to(http: httpx.Client, purpose: str) -> None:
    for name in ("llama-3-8b", "gpt-2-small", "bert-base"):
        for figures in budget(http, model=name, purpose=purpose).values():
            for figure in figures:
                if "..." not in figure["numbers"] and "min" not in figure["numbers"]:
                    assert evaluate(figure["numbers"]) == pytest.approx(figure["value"], rel=1e-9), figure


def test_a_served_model_is_counted_as_it_is(http: httpx.Client, models: Models) -> None:
    found = budget(http, model="chatty", published=False, context=64)
    assert found["parameters"][0]["value"] == models["chatty"].loaded.model.cost.parameters


@pytest.mark.parametrize("name", list(PUBLISHED))
def test_every_shape_has_a_budget_for_both_purposes(http: httpx.Client, name: str) -> None:
    for purpose in ("serving", "training"):
        assert all(budget(http, model=name, purpose=purpose).values())


@pytest.mark.parametrize(
    ("body", "status", "named"),
    [
        ({"model": "nobody"}, 404, "model"),
        ({"model": "../../etc"}, 404, "model"),
        ({"model": "nobody", "published": False}, 404, "model"),
        ({"chip": "abacus"}, 404, "chip"),
        ({"chip": "m1-max"}, 404, "dtype"),
        ({"dtype": "int4"}, 400, "dtype"),
        ({"context": 0}, 400, "context"),
        ({"context": 2**40}, 400, "context"),
        ({"batch": 0}, 400, "batch"),
        ({"tokens": 0}, 400, "tokens"),
        ({"purpose": "fun"}, 400, "purpose"),
        ({"beams": 2}, 400, "beams"),
    ],
)
def test_refusals_have_openais_shape(http: httpx.Client, body: dict[str, Any], status: int, named: str) -> None:
    answer = http.post(f"{API}/budget", json={"model": "llama-3-8b", "published": True, **body})
    assert (answer.status_code, answer.json()["error"]["param"]) == (status, named), answer.text
