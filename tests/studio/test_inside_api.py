"""Looking into a served model over HTTP: what every view says, what it refuses, and that nothing is changed."""

from __future__ import annotations

import threading
from dataclasses import asdict
from typing import Any

import httpx
import pytest
import torch

from cutaway.inside import ablation, attention, editing, geometry, induction, lens, patching
from cutaway.inside.rome import Place, Search
from cutaway.serve.app import Models
from cutaway.studio import inside
from studio.test_api import API, items

PROMPT = "Hello you"
TEXT = "Hello you and me, hi there. " * 4


def post(http: httpx.Client, view: str, **body: Any) -> httpx.Response:
    return http.post(f"{API}/inside/{view}", json={"model": "chatty", **body})


def found(http: httpx.Client, view: str, **body: Any) -> Any:
    """What a view says, after any number of reports of progress."""
    answer = post(http, view, **body)
    assert answer.status_code == 200, answer.text
    *progress, result, done = items(iter(answer.text.split("\n")))
    assert {item["type"] for item in progress} <= {"progress"}
    assert (result["type"], done) == ("found", {"type": "done"})
    return result["found"]


def near(value: Any) -> Any:
    """The same, as closely as the six figures that are sent tell."""
    if isinstance(value, float):
        return pytest.approx(value, rel=1e-4, abs=1e-6)
    if isinstance(value, dict):
        return {key: near(one) for key, one in value.items()}
    return [near(one) for one in value] if isinstance(value, list | tuple) else value


def test_attention_is_the_library_s_for_one_head_and_for_their_mean(http: httpx.Client, models: Models) -> None:
    theirs = attention.attention(models["chatty"].loaded, PROMPT)
    one = found(http, "attention", prompt=PROMPT, layer=1, head=2)
    assert one["tokens"] == theirs.tokens
    assert one["weights"] == near(theirs.weights[1][2])
    assert one["reach"] == near(theirs.reach)
    mean = found(http, "attention", prompt=PROMPT, layer=1)
    assert mean["head"] is None
    assert mean["weights"] == near(torch.tensor(theirs.weights[1]).mean(0).tolist())


def test_an_encoder_s_attention_looks_both_ways(http: httpx.Client) -> None:
    weights = found(http, "attention", model="vectors", prompt=PROMPT, layer=0)["weights"]
    assert all(cell > 0 for row in weights for cell in row)


def test_rollout_and_flow_are_the_library_s(http: httpx.Client, models: Models) -> None:
    theirs = attention.influence(models["chatty"].loaded, PROMPT, -2)
    ours = found(http, "rollout", prompt=PROMPT, position=-2)
    assert (ours["tokens"], ours["position"]) == (theirs.tokens, theirs.position)
    assert ours["rollout"] == near(theirs.rollout_all)
    assert ours["flow"] == near(theirs.flow)


def test_flow_is_left_out_where_it_would_take_too_long(http: httpx.Client) -> None:
    ours = found(http, "rollout", prompt="a" * (inside.FLOWING + 1))
    assert ours["flow"] is None
    assert len(ours["rollout"]) == inside.FLOWING + 1


def test_the_lens_looks_at_every_position(http: httpx.Client, models: Models) -> None:
    theirs = asdict(lens.lens(models["chatty"].loaded, PROMPT, None))
    assert found(http, "lens", prompt=PROMPT) == near(theirs)


@pytest.mark.parametrize(
    "asked", [{"part": "heads"}, {"part": "ffn", "how": "mean"}, {"part": "attention"}, {"part": "neurons", "layer": 1}]
)
def test_ablation_is_the_library_s(http: httpx.Client, models: Models, asked: dict[str, Any]) -> None:
    loaded = models["chatty"].loaded
    layers = [asked["layer"]] if "layer" in asked else None
    targets = ablation.every(loaded.model, asked["part"], layers)
    theirs = ablation.ablate(loaded, "Hi", targets, how=asked.get("how", "zero"), top=3)
    assert found(http, "ablation", prompt="Hi", **asked) == near(asdict(theirs))


def test_induction_is_the_library_s(http: httpx.Client, models: Models) -> None:
    theirs = induction.induction(models["chatty"].loaded.model, 6, 2, 3)
    assert found(http, "induction", length=6, sequences=2, seed=3) == near(asdict(theirs))


def test_patching_is_the_library_s(http: httpx.Client, models: Models) -> None:
    theirs = patching.patch(models["chatty"].loaded, "Hello", "Hullo", answers=("a", "b"), parts=["ffn"])
    ours = found(http, "patching", clean="Hello", corrupt="Hullo", answer="a", other="b", part="ffn")
    assert ours == near(asdict(theirs))


def test_an_edit_is_the_library_s_and_leaves_the_served_model_as_it_was(
    http: httpx.Client, models: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inside, "TEXT", TEXT)
    loaded = models["chatty"].loaded
    before = {name: tensor.clone() for name, tensor in loaded.model.state_dict().items()}
    fact, place = editing.Fact("Hello you", "Hello", "b"), Place(1)
    _, theirs = editing.rewrite(loaded, fact, place, TEXT, neighbors=["Hi me"], search=Search(steps=3))
    ours = found(http, "edit", prompt=fact.prompt, subject="Hello", answer="b", layer=1, steps=3, neighbors=["Hi me"])
    assert ours == near(asdict(theirs))
    assert [one["kind"] for one in ours["asked"]] == ["fact", "neighbor"]
    assert ours["asked"][0]["after"] != ours["asked"][0]["before"]
    assert all(torch.equal(tensor, before[name]) for name, tensor in loaded.model.state_dict().items())


def test_embeddings_have_neighbors_analogies_and_a_plane(http: httpx.Client, models: Models) -> None:
    loaded = models["vectors"].loaded
    theirs = [asdict(one) for one in geometry.neighbors(loaded, "a", 3)]
    assert found(http, "neighbors", model="vectors", word="a", count=3)["neighbors"] == near(theirs)
    analogy = found(http, "analogy", a="a", b="b", c="c", count=4)
    assert analogy == near(asdict(geometry.analogy(models["chatty"].loaded, "a", "b", "c", 4)))
    plane = found(http, "plane", words=["a", "b", "c", "d"])
    assert plane == near(asdict(geometry.plane(models["chatty"].loaded, ["a", "b", "c", "d"])))


@pytest.mark.parametrize(
    ("view", "body", "status", "named"),
    [
        ("attention", {"model": "nobody", "prompt": "a"}, 404, "model"),
        ("attention", {}, 400, "prompt"),
        ("attention", {"prompt": ""}, 400, "prompt"),
        ("attention", {"prompt": "a", "layer": 2}, 400, "layer"),
        ("attention", {"prompt": "a", "head": 4}, 400, "head"),
        ("attention", {"prompt": "a", "beams": 2}, 400, "beams"),
        ("attention", {"prompt": "a" * 129}, 400, "prompt"),
        ("rollout", {"prompt": "a", "position": 1}, 400, "position"),
        ("lens", {"prompt": "a" * (inside.READ + 1)}, 400, "prompt"),
        ("lens", {"model": "vectors", "prompt": "a"}, 400, "vectors"),
        ("ablation", {"prompt": "a", "part": "neurons"}, 400, "layer"),
        ("ablation", {"prompt": "a" * (inside.NEURONS + 1), "part": "neurons", "layer": 0}, 400, "prompt"),
        ("ablation", {"prompt": "a", "part": "tails"}, 400, "part"),
        ("induction", {"length": 65}, 400, "length"),
        ("induction", {"sequences": 0}, 400, "sequences"),
        ("patching", {"clean": "abc", "corrupt": "ab"}, 400, "the prompts"),
        ("patching", {"clean": "abc", "corrupt": "abd", "answer": "a"}, 400, "answer and other"),
        ("edit", {"prompt": "Hello you", "subject": "Nobody", "answer": "b"}, 400, "fact"),
        ("edit", {"prompt": "Hello you", "subject": "Hello", "answer": "b", "layer": 9}, 400, "layer"),
        ("neighbors", {"word": "several words"}, 400, "word"),
        ("plane", {"words": ["a", "b"]}, 400, "words"),
        ("plane", {"words": ["a", "a", "a"]}, 400, "words"),
        ("nothing", {}, 404, None),
    ],
)
def test_refusals_have_openais_shape(
    http: httpx.Client, view: str, body: dict[str, Any], status: int, named: str | None
) -> None:
    answer = post(http, view, **body)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (status, named), answer.text
    assert set(error) == {"message", "type", "param", "code"}


def test_leaving_stops_the_work_and_frees_the_turn(
    http: httpx.Client, models: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A view that would go on for ever ends at its next report, once nobody reads it."""
    ended = threading.Event()

    def endless(*_: object, each: Any, **__: object) -> None:
        try:
            while True:
                each(0, 2)
                ended.wait(0.01)
        finally:
            ended.set()

    monkeypatch.setattr(inside.ablation, "ablate", endless)
    body = {"model": "chatty", "prompt": PROMPT}
    with http.stream("POST", f"{API}/inside/ablation", json=body) as answer:
        events = items(answer.iter_lines())
        assert next(events)["type"] == "progress"
        assert models["chatty"].gate.inside == 1
    assert ended.wait(10)
    assert found(http, "attention", prompt=PROMPT)["layer"] == 0
