"""Adapters at work against models that PEFT merged them into."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from functools import cache, partial

import torch
from torch import Tensor

from cutaway.engine.engine import Engine
from cutaway.engine.matrices import OfModel
from cutaway.engine.params import SamplingParams
from cutaway.engine.runner import Native
from cutaway.engine.span import Span
from cutaway.errors import CutawayError
from cutaway.weights.adapters import read_adapter
from kit import lora, twins

MIX = ("", "a", "b", "a", "", "c")  # who has which adapter
LENGTHS = (19, 11, 40, 1, 7, 33)


def engine(name: str, native: bool, kind: str = "", dtype: torch.dtype = torch.float32, **limits: int) -> Engine:
    """For a base, all its adapters loaded, or for one with an adapter merged in."""
    model = lora.ours(name, kind, dtype)
    made = Engine(Native(model.spec, OfModel(model), 1) if native else model, twins.Tokenizerless(), **limits)  # type: ignore[arg-type]
    for each in kinds_of(name) if not kind else ():
        made.adapters.load(each, lora.adapter(name, each).folder)
    return made


def kinds_of(name: str) -> tuple[str, ...]:
    return ("latent",) if name == "deepseek_v2" else tuple(lora.KINDS)


def mix_of(name: str) -> tuple[str, ...]:
    """Who has which adapter."""
    return MIX if name != "deepseek_v2" else tuple("latent" if kind else "" for kind in MIX)


def logits(made: Engine, prompts: list[list[int]], kinds: tuple[str, ...]) -> list[Tensor]:
    """Of every token of each prompt, computed in one batch."""
    spans, page = [], 0
    for prompt, kind in zip(prompts, kinds, strict=True):
        sequence = made.prepare(prompt, SamplingParams(adapter=kind))
        sequence.table = [page, page + 1]
        page += 2
        spans.append(Span(sequence, 0, len(prompt)))
    with torch.inference_mode():
        rows = made.runner.run(spans, [*range(sum(map(len, prompts)))])
        found_RV = torch.stack([row.values_V for row in rows])
    return [*found_RV.clone().split([*map(len, prompts)])]


def prompts() -> list[list[int]]:
    return [tokens_T.tolist() for tokens_T in twins.prompts(LENGTHS)]


def off(got: Tensor, wanted: Tensor) -> float:
    return float((got.double() - wanted.double()).norm() / wanted.double().norm())


@cache
def merged(name: str, kind: str, ids: tuple[int, ...]) -> Tensor:
    """What transformers computes with the adapter merged in by PEFT."""
    return lora.answers(lora.adapter(name, kind).merged if kind else lora.base(name), [*ids])


def modules(name: str, dtype: torch.dtype = torch.float64, tolerance: float = 1e-7) -> None:
    """On the model's own modules: each row as in its merged model, in one batch with the others."""
    found = logits(engine(name, False, dtype=dtype), prompts(), mix_of(name))
    for got, ids, kind in zip(found, prompts(), mix_of(name), strict=True):
        distance = off(got, merged(name, kind, tuple(ids)))
        assert distance < tolerance, f"{distance} off with adapter {kind!r}"


def native(name: str) -> None:
    """On native kernels: as they compute the merged model. Keys are float16, of which the last digit is worth 1e-3."""
    found = logits(engine(name, True), prompts(), MIX)
    for got, ids, kind in zip(found, prompts(), MIX, strict=True):
        (wanted,) = logits(engine(name, True, kind), [ids], ("",))
        beyond, nearest = off(got, merged(name, kind, tuple(ids))), min(map(off, got, wanted))
        assert off(got, wanted) < 1e-3, f"{off(got, wanted)} off with adapter {kind!r}"
        assert nearest < 1e-4, f"no row is nearer than {nearest} with adapter {kind!r}"
        assert beyond < 5e-3, f"{beyond} from transformers with adapter {kind!r}"


def pages(name: str) -> None:
    """One prompt under several adapters, and under another one of the same name: nobody finds the others' pages."""
    made, prompt = engine(name, False), twins.prompts((70,))[0].tolist()
    made.adapters.load("reloaded", lora.adapter(name, "a").folder)
    asked = ["", "a", "b", "reloaded", "a", ""]
    found = [_reply(made, prompt, kind) for kind in asked]
    assert made.scheduler.pages.hits == 2 * 64, "who comes again finds its own pages"
    made.adapters.unload("reloaded")
    made.adapters.load("reloaded", lora.adapter(name, "c").folder)
    found.append(_reply(made, prompt, "reloaded"))
    for got, kind in zip(found, ["", "a", "b", "a", "a", "", "c"], strict=True):
        alone = _reply(engine(name, False, kind), prompt, "")
        assert torch.allclose(got, alone, atol=1e-4), f"adapter {kind!r} answers otherwise after the others"


def leaving(name: str) -> None:
    """Who has an adapter that is unloaded ends with it; nobody else gets it, and then its memory is free."""
    made, prompt = engine(name, False), prompts()[0]
    params = SamplingParams(temperature=0, max_tokens=4, ignore_eos=True, adapter="a")
    sequence, kept = (
        made.add(prompt, params),
        weakref.ref(made.adapters.loaded["a"].made["layers.0.attention.q.weight"][0]),
    )
    made.step()
    made.adapters.unload("a")
    assert "a" not in made.adapters.loaded
    refused = _refused(lambda: made.prepare(prompt, params))
    assert "no adapter 'a' is loaded" in refused, f"was told {refused!r}"
    for _ in range(9):
        made.step()
    assert sequence.reply == _reply(engine(name, False, "a"), prompt, "", 4)[:, 0].tolist()
    del sequence
    gc.collect()
    assert kept() is None, "something still holds the adapter"


def _refused(ask: Callable[[], object]) -> str:
    try:
        ask()
    except CutawayError as error:
        return str(error)
    return ""


def reading(name: str) -> None:
    """Every update is what PEFT adds when it merges, by the names of our parameters, and no other weight changes."""
    for kind in lora.KINDS:
        updates = read_adapter(lora.adapter(name, kind).folder, lora.ours(name).spec)
        before, after = (dict(lora.ours(name, k, torch.float64).named_parameters()) for k in ("", kind))
        for ours, was in before.items():
            change = after[ours] - was
            a_RK, b_NR, scale = updates.get(ours, (torch.zeros(1, change.shape[-1]), torch.zeros(len(change), 1), 0.0))
            wanted = scale * (b_NR.double() @ a_RK.double()) if change.dim() == 2 else torch.zeros_like(change)
            assert torch.allclose(change, wanted, atol=1e-6), f"{ours} changes otherwise in {kind!r}"
        assert {*updates} <= {*before}


def _reply(made: Engine, prompt: list[int], kind: str, count: int = 3) -> Tensor:
    params = SamplingParams(temperature=0, max_tokens=count, ignore_eos=True, adapter=kind)
    chosen = [event.choice for event in made.generate(prompt, params)]
    return torch.tensor([[choice.token, choice.logprob] for choice in chosen])


FAMILIES = ("llama", "qwen2", "phi3", "gemma2", "gpt2", "opt")
PROOFS: dict[str, Callable[[], None]] = {
    **{f"adapters modules {name}": partial(modules, name) for name in FAMILIES},
    **{f"adapters native {name}": partial(native, name) for name in FAMILIES},
    "adapters modules deepseek_v2": partial(modules, "deepseek_v2"),
    "adapters modules llama in float32": partial(modules, "llama", torch.float32, 1e-4),
    "adapters pages llama": partial(pages, "llama"),
    "adapters leaving llama": partial(leaving, "llama"),
    **{f"adapters reading {name}": partial(reading, name) for name in ("llama", "phi3", "gpt2")},
}
