"""POST /inside/VIEW: looking into a served model. A stream: progress, found, done.

Views of one model take turns, beside its engine: both only read the weights. An edit is made on a twin and dropped.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import asdict
from typing import Annotated, Any, Literal, TypeVar, get_type_hints

import torch
from annotated_types import Len
from fastapi import APIRouter, Request
from pydantic import Field
from starlette.responses import Response

from cutaway.errors import CutawayError
from cutaway.inside import ablation, editing, geometry, induction, lens, patching
from cutaway.inside.attention import flow, maps, reach, rollout
from cutaway.inside.prompt import Each, Prompt, decoder, place_of, read, stack
from cutaway.inside.rome import Place, Search
from cutaway.inside.sites import check_layer
from cutaway.labs.subject import TEXT
from cutaway.serve.connection import EventStream
from cutaway.serve.generation import find
from cutaway.serve.schemas import Body, Utf8
from cutaway.serve.served import Served
from cutaway.studio.background import Report, followed
from cutaway.studio.chat import typed
from cutaway.weights.checkpoint import Loaded

Json = dict[str, Any]

FIGURES = 6  # significant figures that are sent
MAPPED = 256  # tokens of a prompt, at most, whose attention is shown
FLOWING = 32  # of one whose flow is: its graph grows with the square, the ways through it faster
READ = 64  # of one that is read after each block, or anew for each part taken out
NEURONS = 32  # the same where there are thousands of parts

Text = Annotated[Utf8, Len(1, 4000)]
Words = Annotated[Utf8, Len(1, 100)]
Texts = Annotated[list[Text], Len(0, 8)]

router = APIRouter()


class Asked(Body):
    """model: a name that is served."""

    model: str


class AttentionRequest(Asked):
    """head: None for the mean of the layer's heads."""

    prompt: Text
    layer: int = Field(0, ge=0)
    head: int | None = Field(None, ge=0)


class RolloutRequest(Asked):
    """position: whose output, counted from the end if negative."""

    prompt: Text
    position: int = -1


class LensRequest(Asked):
    prompt: Text


class AblationRequest(Asked):
    """layer: None for all of them; neurons need one."""

    prompt: Text
    part: Literal["heads", "neurons", "attention", "ffn"] = "heads"
    layer: int | None = Field(None, ge=0)
    how: Literal["zero", "mean"] = "zero"


class InductionRequest(Asked):
    """length: random tokens before they repeat."""

    length: int = Field(25, ge=2, le=64)
    sequences: int = Field(2, ge=1, le=8)
    seed: int = Field(0, ge=0, lt=2**63)


class PatchingRequest(Asked):
    """answer, other: after the clean and the corrupt prompt; without both, what the model says."""

    clean: Text
    corrupt: Text
    answer: Words | None = None
    other: Words | None = None
    part: Literal["residual", "attention", "ffn"] = "residual"


class EditRequest(Asked):
    """paraphrases should follow the edit, neighbors should not."""

    prompt: Text
    subject: Words
    answer: Words
    layer: int = Field(5, ge=0)
    matrix: Literal["ffn", "attention"] = "ffn"
    steps: int = Field(20, ge=1, le=50)
    paraphrases: Texts = Field(default_factory=list)
    neighbors: Texts = Field(default_factory=list)


class NeighborsRequest(Asked):
    word: Words
    count: int = Field(12, ge=1, le=50)


class AnalogyRequest(Asked):
    a: Words
    b: Words
    c: Words
    count: int = Field(8, ge=1, le=50)


class PlaneRequest(Asked):
    words: Annotated[list[Words], Len(3, 100)]


Look = Callable[[Loaded, Any, Each], Json]
L = TypeVar("L", bound=Look)


def view(name: str) -> Callable[[L], L]:
    """Make a function a route; its second argument's type is the request's body."""

    def register(look: L) -> L:
        async def route(body: Any, request: Request) -> Response:
            return EventStream(typed(_looked(find(request, body.model), body, look)))

        route.__annotations__["body"] = get_type_hints(look)["body"]
        router.add_api_route(f"/inside/{name}", route, methods=["POST"], name=name, description=look.__doc__)
        return look

    return register


async def _looked(served: Served, body: Asked, look: Look) -> AsyncGenerator[Json, None]:
    """The events of one view. Errors: `Busy`; those of the view, before any event if it never reported."""

    def work(report: Report) -> Json:
        found = look(served.loaded, body, lambda done, total: report(done, total, ""))
        return {"type": "found", "found": brief(found)}

    with served.gate.enter():
        async with served.turn, aclosing(followed(work)) as items:
            async for item in items:
                yield item


def brief(value: Any) -> Any:
    """Numbers to `FIGURES` significant figures: a map has tens of thousands of them."""
    if isinstance(value, float):
        return float(f"{value:.{FIGURES}g}")
    if isinstance(value, dict):
        return {key: brief(one) for key, one in value.items()}
    return [brief(one) for one in value] if isinstance(value, list | tuple) else value


def _read(loaded: Loaded, text: str, most: int) -> Prompt:
    """The text as ids. Errors: see `read`; more tokens than this view can show."""
    prompt = read(loaded, text)
    if len(prompt.ids) > most:
        raise CutawayError(f"has {len(prompt.ids)} tokens, this view takes at most {most}", "prompt", "shorten it")
    return prompt


@view("attention")
@torch.inference_mode()
def attention_of(loaded: Loaded, body: AttentionRequest, each: Each) -> Json:
    """The map of one head, or of their mean, [query][key]; and how far every head of the model reaches."""
    model, prompt = stack(loaded), _read(loaded, body.prompt, MAPPED)
    check_layer(model, body.layer)
    found = maps(model, prompt.tensor(model.device))
    weights_HQS = found[body.layer]
    if body.head is not None and body.head >= len(weights_HQS):
        raise CutawayError(f"{body.head} is not one of the {len(weights_HQS)} heads of layer {body.layer}", "head")
    weights_QS = weights_HQS.mean(0) if body.head is None else weights_HQS[body.head]
    return {
        "tokens": prompt.tokens,
        "layer": body.layer,
        "head": body.head,
        "weights": weights_QS.tolist(),
        "reach": [reach(layer_HQS).tolist() for layer_HQS in found],
    }


@view("rollout")
@torch.inference_mode()
def rollout_of(loaded: Loaded, body: RolloutRequest, each: Each) -> Json:
    """Rollout of every output, flow to one of them; flow is left out (null) for long prompts."""
    model, prompt = stack(loaded), _read(loaded, body.prompt, MAPPED)
    position = place_of(body.position, len(prompt.ids))
    found = maps(model, prompt.tensor(model.device))
    flows = flow(found, position) if len(prompt.ids) <= FLOWING else None
    return {"tokens": prompt.tokens, "position": position, "rollout": rollout(found).tolist(), "flow": flows}


@view("lens")
def lens_of(loaded: Loaded, body: LensRequest, each: Each) -> Json:
    """See `lens.lens`, at every position."""
    _read(loaded, body.prompt, READ)
    return asdict(lens.lens(loaded, body.prompt, None))


@view("ablation")
def ablation_of(loaded: Loaded, body: AblationRequest, each: Each) -> Json:
    """See `ablation.ablate`."""
    _read(loaded, body.prompt, NEURONS if body.part == "neurons" else READ)
    if body.part == "neurons" and body.layer is None:
        raise CutawayError("is needed for neurons: all layers have too many", "layer")
    targets = ablation.every(decoder(loaded), body.part, None if body.layer is None else [body.layer])
    return asdict(ablation.ablate(loaded, body.prompt, targets, how=body.how, top=3, each=each))


@view("induction")
def induction_of(loaded: Loaded, body: InductionRequest, each: Each) -> Json:
    """See `induction.induction`."""
    return asdict(induction.induction(decoder(loaded), body.length, body.sequences, body.seed))


@view("patching")
def patching_of(loaded: Loaded, body: PatchingRequest, each: Each) -> Json:
    """See `patching.patch`. Errors: one answer without the other."""
    for prompt in (body.clean, body.corrupt):
        _read(loaded, prompt, READ)
    if (body.answer is None) != (body.other is None):
        raise CutawayError("come together", "answer and other", "name both or neither")
    answers = None if body.answer is None or body.other is None else (body.answer, body.other)
    return asdict(patching.patch(loaded, body.clean, body.corrupt, answers=answers, parts=[body.part], each=each))


@view("edit")
def edit_of(loaded: Loaded, body: EditRequest, each: Each) -> Json:
    """See `editing.rewrite`; the edited twin is dropped."""
    for prompt in (body.prompt, *body.paraphrases, *body.neighbors):
        _read(loaded, prompt, READ)
    fact, place = editing.Fact(body.prompt, body.subject, body.answer), Place(body.layer, body.matrix)
    others = {"paraphrases": body.paraphrases, "neighbors": body.neighbors}
    search = Search(steps=body.steps)
    return asdict(editing.rewrite(loaded, fact, place, TEXT, search=search, each=each, **others)[1])


@view("neighbors")
def neighbors_of(loaded: Loaded, body: NeighborsRequest, each: Each) -> Json:
    """See `geometry.neighbors`."""
    return {"word": body.word, "neighbors": [asdict(n) for n in geometry.neighbors(loaded, body.word, body.count)]}


@view("analogy")
def analogy_of(loaded: Loaded, body: AnalogyRequest, each: Each) -> Json:
    """See `geometry.analogy`."""
    return asdict(geometry.analogy(loaded, body.a, body.b, body.c, body.count))


@view("plane")
def plane_of(loaded: Loaded, body: PlaneRequest, each: Each) -> Json:
    """See `geometry.plane`."""
    return asdict(geometry.plane(loaded, body.words))
