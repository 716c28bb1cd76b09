"""GET /budget and POST /budget: what models cost before anybody runs them, each number with its formula."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, Literal

from fastapi import APIRouter, Request
from pydantic import Field

from cutaway.budget.chips import CHIPS, Chip
from cutaway.budget.counting import parameters
from cutaway.budget.figures import Figure
from cutaway.budget.published import PUBLISHED
from cutaway.budget.roofline import latency, roofline
from cutaway.budget.running import attention_share, fit, flops, kv, kv_by_sharing
from cutaway.budget.training import training_memory, training_time
from cutaway.errors import CutawayError, NotFound
from cutaway.models.cost import Cost
from cutaway.serve.generation import find
from cutaway.serve.schemas import Body

Json = dict[str, Any]

CONTEXT = 2**24  # tokens: beyond any model, within what formulas can show
BATCH = 2**20

router = APIRouter()


class BudgetRequest(Body):
    """model: one that is served, or a published shape. tokens: that training goes through in all."""

    model: str
    published: bool = False
    purpose: Literal["serving", "training"] = "serving"
    chip: str = "h100-sxm"
    context: int = Field(4096, ge=1, le=CONTEXT)
    batch: int = Field(1, ge=1, le=BATCH)
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    tokens: float = Field(1e9, gt=0, le=1e18)


Section = Callable[[Cost, Chip, BudgetRequest], list[Figure]]

SECTIONS: dict[str, dict[str, Section]] = {
    "serving": {
        "parameters": lambda cost, chip, body: parameters(cost),
        "flops": lambda cost, chip, body: _per_reply(flops(cost, body.context)),
        "cache": lambda cost, chip, body: kv(cost, body.context, body.batch, body.dtype),
        "sharing": lambda cost, chip, body: kv_by_sharing(cost, body.dtype),
        "fit": lambda cost, chip, body: fit(cost, chip, body.context, body.dtype),
        "roofline": lambda cost, chip, body: roofline(
            cost, chip, body.dtype, batch=body.batch, context=body.context
        ),
        "latency": lambda cost, chip, body: latency(cost, chip, body.dtype, body.context),
    },
    "training": {
        "parameters": lambda cost, chip, body: parameters(cost),
        "flops": lambda cost, chip, body: _per_step(flops(cost, body.context)),
        "attention": lambda cost, chip, body: attention_share(cost, body.context),
        "memory": lambda cost, chip, body: training_memory(cost, body.context, body.batch),
        "time": lambda cost, chip, body: training_time(cost.active, body.tokens, chip, body.dtype),
    },
}
