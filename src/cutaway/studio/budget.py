"""GET /budget and POST /budget: what models cost before anybody runs them, each number with its formula."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, Literal, get_args

from fastapi import APIRouter, Request
from pydantic import Field

from cutaway.budget.chips import CHIPS, Chip
from cutaway.budget.counting import parameters
from cutaway.budget.figures import Figure
from cutaway.budget.published import PUBLISHED
from cutaway.budget.roofline import latency, roofline
from cutaway.budget.running import attention_share, fit, flops, kv, kv_by_sharing
from cutaway.budget.training import training_memory, training_time
from cutaway.errors import NotFound
from cutaway.models.cost import Cost
from cutaway.serve.generation import find
from cutaway.serve.schemas import Body

Json = dict[str, Any]

CONTEXT = 2**24  # tokens: beyond any model, within what formulas can show
BATCH = 2**20

router = APIRouter()


Dtype = Literal["float32", "bfloat16"]
DTYPES: tuple[Dtype, ...] = get_args(Dtype)


class BudgetRequest(Body):
    """model: one that is served, or a published shape. tokens: that training goes through in all."""

    model: str
    published: bool = False
    purpose: Literal["serving", "training"] = "serving"
    chip: str = "h100-sxm"
    context: int = Field(4096, ge=1, le=CONTEXT)
    batch: int = Field(1, ge=1, le=BATCH)
    dtype: Dtype = "bfloat16"
    tokens: float = Field(1e9, gt=0, le=1e18)


TRAINED = frozenset({"forward, all logits", "backward", "training step", "training step, rule of thumb"})
Section = Callable[[Cost, Chip, BudgetRequest], list[Figure]]

SECTIONS: dict[str, dict[str, Section]] = {
    "serving": {
        "parameters": lambda cost, chip, body: parameters(cost),
        "flops": lambda cost, chip, body: _flops(cost, body, training=False),
        "cache": lambda cost, chip, body: kv(cost, body.context, body.batch, body.dtype),
        "sharing": lambda cost, chip, body: kv_by_sharing(cost, body.dtype),
        "fit": lambda cost, chip, body: fit(cost, chip, body.context, body.dtype),
        "roofline": lambda cost, chip, body: roofline(cost, chip, body.dtype, batch=body.batch, context=body.context),
        "latency": lambda cost, chip, body: latency(cost, chip, body.dtype, body.context),
    },
    "training": {
        "parameters": lambda cost, chip, body: parameters(cost),
        "flops": lambda cost, chip, body: _flops(cost, body, training=True),
        "attention": lambda cost, chip, body: attention_share(cost, body.context),
        "memory": lambda cost, chip, body: training_memory(cost, body.context, body.batch),
        "time": lambda cost, chip, body: training_time(cost.active, body.tokens, chip, body.dtype),
    },
}


@router.get("/budget")
def known() -> Json:
    """Published shapes and chips to choose from."""
    return {"models": _shapes(), "chips": [_chip(chip) for chip in CHIPS.values()]}


@router.post("/budget")
def budget(body: BudgetRequest, request: Request) -> Json:
    """Every section's figures. Errors: no such model or chip; numbers that the chip has no rate for."""
    if body.chip not in CHIPS:
        raise NotFound(f"no chip {body.chip!r}", "chip", f"known: {', '.join(CHIPS)}")
    chip, cost = CHIPS[body.chip], _cost(body, request)
    chip.rate(body.dtype)
    sections = {name: section(cost, chip, body) for name, section in SECTIONS[body.purpose].items()}
    return {
        "request": body.model_dump(),
        "sections": [{"name": name, "figures": [f._asdict() for f in fs]} for name, fs in sections.items()],
    }


def _cost(body: BudgetRequest, request: Request) -> Cost:
    if not body.published:
        return find(request, body.model).loaded.model.cost
    if body.model not in PUBLISHED:
        raise NotFound(f"no published shape {body.model!r}", "model", "GET /budget lists them")
    return Cost(PUBLISHED[body.model].spec)


def _flops(cost: Cost, body: BudgetRequest, *, training: bool) -> list[Figure]:
    """Those that belong to the purpose."""
    return [f for f in flops(cost, body.context) if (f.name in TRAINED) is training]


@cache
def _shapes() -> list[Json]:
    return [
        {"name": name, "parameters": Cost(shape.spec).parameters, "source": shape.source}
        for name, shape in PUBLISHED.items()
    ]


def _chip(chip: Chip) -> Json:
    return {
        "name": chip.name,
        "dtypes": [dtype for dtype in chip.flops if dtype in DTYPES],
        "flops": dict(chip.flops),
        "memory": chip.memory,
        "bandwidth": chip.bandwidth,
        "source": chip.source,
    }
