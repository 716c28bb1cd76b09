"""GET /engine: what an engine does at this moment, and did in its last steps; nothing of what is said."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter, Request

from cutaway.engine.engine import Engine, Step
from cutaway.engine.runner import Modules
from cutaway.engine.sequence import Sequence as Reply
from cutaway.errors import NotFound
from cutaway.serve.generation import decoder_service, find
from cutaway.serve.served import Served

Json = dict[str, Any]

WINDOW = 3.0  # seconds that rates are taken over
SHOWN = 256  # sequences

router = APIRouter()


@router.get("/engine")
async def engine(request: Request, model: str | None = None, since: int = 0) -> Json:
    """Of one model, by default the first that generates. since: steps that are known already are not told again."""
    models = request.app.state.models
    names = [served.name for served in models.values() if served.service]
    if not names:
        raise NotFound("no model here generates", "model")
    served = find(request, model or names[0])
    found = await decoder_service(served).ask(lambda engine: snapshot(engine, since))
    found["rates"]["weights_per_s"] = found["rates"]["steps_per_s"] * weight_bytes(served)
    return {"model": served.name, "models": names} | found


def snapshot(engine: Engine, since: int = 0) -> Json:
    """All that is shown; to be called between two steps."""
    scheduler, now = engine.scheduler, time.monotonic()
    first = engine.stats.steps - len(engine.steps)
    last = [step for step in engine.steps if step.ended > now - WINDOW]
    order = [*((s, "running") for s in scheduler.running), *((s, "waiting") for s in scheduler.waiting)]
    return {
        "places": scheduler.places,
        "budget": scheduler.budget,
        "running": len(scheduler.running),
        "waiting": len(scheduler.waiting),
        "steps": [told(first + i, step, now) for i, step in enumerate(engine.steps) if first + i >= since],
        "sequences": [described(sequence, state) for sequence, state in order[:SHOWN]],
        "pages": pages(engine),
        "counted": counted(engine),
        "rates": rates(last),
    }


def told(number: int, step: Step, now: float) -> Json:
    """A step; ago: seconds since its end. spans: [who, start, count, drafts, accepted]."""
    free, cached, held = step.pages
    return {
        "number": number,
        "ago": now - step.ended,
        "runner_s": step.seconds[0],
        "whole_s": step.seconds[1],
        "spans": step.spans,
        "replied": step.replied,
        "waiting": step.waiting,
        "free": free,
        "cached": cached,
        "held": held,
    }


def described(sequence: Reply, state: str) -> Json:
    """A sequence by its number; its pages in order."""
    return {
        "id": sequence.rank[1],
        "state": state,
        "prompt": len(sequence.prompt),
        "reply": len(sequence.reply),
        "computed": sequence.computed,
        "cached": sequence.cached,
        "limit": sequence.limit,
        "priority": sequence.priority,
        "preempted": sequence.preempted,
        "pages": [*sequence.table],
    }


def pages(engine: Engine) -> Json:
    """holders: per page, how many sequences hold it; 0 free, -1 cached."""
    kept = engine.scheduler.pages
    counts = {"count": kept.count, "free": kept.free, "cached": kept.cached, "held": kept.held}
    return counts | {"size": kept.size, "bytes": engine.runner.page_bytes, "holders": kept.states()}


def counted(engine: Engine) -> Json:
    """Since the beginning; drafted, accepted: by place in the draft."""
    stats, kept = engine.stats, engine.scheduler.pages
    places = range(max(stats.drafted, default=-1) + 1)
    return {
        "steps": stats.steps,
        "tokens": stats.tokens,
        "replied": stats.replied,
        "lookups": kept.lookups,
        "hits": kept.hits,
        "evictions": kept.evictions,
        "preemptions": engine.scheduler.preemptions,
        "drafted": [stats.drafted[i] for i in places],
        "accepted": [stats.accepted[i] for i in places],
    }


def rates(steps: Sequence[Step]) -> Json:
    """Of the last steps, over the time that they took, pauses between them not counted."""
    whole, ran = (sum(step.seconds[i] for step in steps) for i in (1, 0))
    drafts = sum(span[3] for step in steps for span in step.spans)
    right = sum(span[4] for step in steps for span in step.spans)
    return {
        "busy": min(1.0, whole / WINDOW),
        "steps_per_s": len(steps) / whole if whole else 0.0,
        "tokens_per_s": sum(span[2] for step in steps for span in step.spans) / whole if whole else 0.0,
        "replied_per_s": sum(step.replied for step in steps) / whole if whole else 0.0,
        "overhead": 1 - ran / whole if whole else 0.0,
        "acceptance": right / drafts if drafts else None,
    }


def weight_bytes(served: Served) -> int:
    """What a step reads of the weights, as they are kept: all of them, which for experts is too much."""
    runner = served.service.engine.runner if served.service else None
    if isinstance(runner, Modules):
        return sum(weight.nbytes for weight in runner.model.parameters())
    path = served.loaded.checkpoint.path
    return sum(file.stat().st_size for file in (path.glob("*.safetensors") if path.is_dir() else [path]))
