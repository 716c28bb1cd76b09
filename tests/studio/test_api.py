"""The studio's API over HTTP: what it says of models, how it generates, how it runs labs, what it refuses."""

from __future__ import annotations

import itertools
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import httpx
import pytest

from cutaway.labs import catalogue
from cutaway.labs.evidence import Check, Column, Finding, Table, Words
from cutaway.labs.knobs import Knob
from cutaway.labs.lab import Run, lab
from cutaway.models.anatomy import PACKAGE
from cutaway.serve.app import Models
from serve.servers import at_rest
from weights import checkpoints

API = "/studio/api"
HI = [{"role": "user", "content": "Hi"}]
TRUE = Words(en="true", zh="真")


def items(lines: Iterator[str]) -> Iterator[dict[str, Any]]:
    """The objects of a stream of server-sent events."""
    return (json.loads(line.removeprefix("data: ")) for line in lines if line)


def generated(http: httpx.Client, **body: Any) -> list[dict[str, Any]]:
    asked = {"model": "chatty", "messages": HI, "max_tokens": 8, "seed": 1, **body}
    answer = http.post(f"{API}/generate", json=asked)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/event-stream")
    return list(items(iter(answer.text.split("\n"))))


# ---- models


def test_models_are_listed_with_what_they_can(http: httpx.Client) -> None:
    answer = http.get(f"{API}/models").json()
    found = {m["id"]: (m["kind"], m["family"], m["chat"], m["context"], m["dtype"]) for m in answer["models"]}
    assert found == {
        "chatty": ("decoder", "llama", True, 128, "float32"),
        "base": ("decoder", "llama", False, 128, "float32"),
        "vectors": ("encoder", "bert", False, 128, "float32"),
    }


@pytest.mark.parametrize("name", ["chatty", "vectors"])
def test_an_opened_model_adds_up(http: httpx.Client, models: Models, name: str) -> None:
    answer = http.get(f"{API}/model/{name}").json()
    held = {n: p.numel() for n, p in models[name].loaded.model.named_parameters()}
    tensors = {t["name"]: t["parameters"] for node in nodes(answer["tree"]) for t in node["tensors"]}
    facts = {fact["key"]: fact["value"] for fact in answer["facts"]}
    assert tensors == held
    assert facts["parameters"] == answer["tree"]["parameters"] == sum(held.values())
    assert facts["flops_per_token"] == answer["tree"]["flops_per_token"]
    assert answer["spec"]["width"] == facts["width"] == 64
    assert {t["stored"] for node in nodes(answer["tree"]) for t in node["tensors"]} == {"F32"}


def nodes(node: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield node
    for child in node["children"]:
        yield from nodes(child)


def test_every_code_pointer_leads_to_the_definition(http: httpx.Client) -> None:
    tree = http.get(f"{API}/model/chatty").json()["tree"]
    pointers = {json.dumps(node["code"]): node["kind"] for node in nodes(tree) if node["code"]}
    assert {"Decoder", "Block", "Attention", "FeedForward", "RMSNorm", "Rope", "Attend", "Head"} <= {*pointers.values()}
    for pointer, kind in pointers.items():
        place = json.loads(pointer)
        code = http.get(f"{API}/code", params={"path": place["path"]}).json()
        first = code["text"].splitlines()[place["line"] - 1]
        assert first.lstrip().startswith(("class ", "def ")), f"{kind} points to {first!r}"
        assert place["line"] < place["end"] <= code["lines"]


def test_costs_follow_the_question(http: httpx.Client, models: Models) -> None:
    asked = {"context": 100, "batch": 3, "dtype": "bfloat16"}
    answer = http.get(f"{API}/model/chatty/cost", params=asked).json()
    rows = {row["part"]: row["bytes"] for row in answer["rows"]}
    cost = models["chatty"].loaded.model.cost
    assert rows["weights"] == 2 * cost.parameters
    assert rows["KV cache"] == 2 * 2 * 2 * 8 * 100 * 3 * 2
    assert rows["total"] == sum(bytes for part, bytes in rows.items() if part != "total")
    assert answer["flops_per_token"] == cost.flops_per_token(100)
    default = http.get(f"{API}/model/chatty/cost").json()
    assert (default["context"], default["batch"], default["dtype"]) == (128, 1, "float32")


@pytest.mark.parametrize(
    ("path", "status", "named"),
    [
        ("/model/nobody", 404, "model"),
        ("/model/nobody/cost", 404, "model"),
        ("/model/chatty/cost?context=129", 400, "context"),
        ("/model/chatty/cost?context=0", 400, "context"),
        ("/model/chatty/cost?batch=0", 400, "batch"),
        ("/model/chatty/cost?batch=many", 400, "batch"),
        ("/model/chatty/cost?dtype=int4", 400, "dtype"),
        ("/code", 400, "path"),
        ("/nothing", 404, None),
    ],
)
def test_refusals_have_openais_shape(http: httpx.Client, path: str, status: int, named: str | None) -> None:
    answer = http.get(API + path)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (status, named)
    assert set(error) == {"message", "type", "param", "code"}


@pytest.mark.parametrize(
    "path",
    [
        "../../../pyproject.toml",
        "../cutaway/errors.py",
        "/etc/passwd",
        str(PACKAGE / "errors.py"),
        "nn/../errors.py",
        "./errors.py",
        "errors.pyc",
        "studio/static/index.html",
        "nn",
        "",
        "errors.py\0",
        "..%2f..%2fpyproject.toml",
        "\\..\\errors.py",
    ],
)
def test_code_is_this_packages_source_and_nothing_else(http: httpx.Client, path: str) -> None:
    assert http.get(f"{API}/code", params={"path": path}).status_code == 404


def test_code_is_given_as_it_is(http: httpx.Client) -> None:
    answer = http.get(f"{API}/code", params={"path": "errors.py"}).json()
    text = (PACKAGE / "errors.py").read_text("utf-8")
    assert answer == {"path": "errors.py", "text": text, "lines": text.count("\n")}


def test_a_text_is_shown_as_tokens(http: httpx.Client) -> None:
    text = "a 中<|im_end|>"
    tokens = http.post(f"{API}/tokenize", json={"model": "chatty", "text": text}).json()["tokens"]
    assert "".join(t["text"] for t in tokens) == text
    assert [t["text"] for t in tokens] == ["a", " ", "", "", "中", "<|im_end|>"]
    assert [t["display"] for t in tokens] == ["a", "␣", "⟨E4⟩", "⟨B8⟩", "⟨AD⟩", "<|im_end|>"]


# ---- generation


def test_a_reply_comes_with_its_prompt_and_an_end(http: httpx.Client) -> None:
    prompt, *tokens, done = generated(http)
    expected = checkpoints.tokenizer().chat(HI)
    assert prompt["type"] == "prompt"
    assert prompt["count"] == len(expected)
    assert [t["id"] for t in prompt["tokens"]] == expected
    assert "".join(t["text"] for t in prompt["tokens"]) == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert [t["index"] for t in tokens] == list(range(len(tokens)))
    assert done["text"] == "".join(t["text"] for t in tokens)
    assert done["usage"] == {"prompt_tokens": len(expected), "kept_tokens": 0, "completion_tokens": len(tokens)}
    assert done["finish_reason"] == ("length" if len(tokens) == 8 else "stop")
    assert done["timing"]["prefill_s"] > 0


def test_a_token_tells_what_else_could_have_come(http: httpx.Client) -> None:
    _, *tokens, _ = generated(http, top_k=3, temperature=0.8)
    for token in tokens:
        best = token["alternatives"][:10]
        assert [a["probability"] for a in best] == sorted((a["probability"] for a in best), reverse=True)
        assert token["candidates"] == 3
        assert [a["cut"] for a in best] == [None] * 3 + ["top_k"] * 7
        assert sum(a["sampled"] for a in best) == pytest.approx(1)
        assert all((a["sampled"] == 0) == (a["cut"] is not None) for a in best)
        assert best[token["rank"]]["id"] == token["id"]
        assert best[token["rank"]]["probability"] == pytest.approx(token["probability"])
        assert token["entropy"] > 0
        assert token["display"]


def test_the_chosen_token_is_among_the_alternatives_even_if_improbable(http: httpx.Client) -> None:
    _, *tokens, _ = generated(http, temperature=5.0, max_tokens=40)
    far = [t for t in tokens if t["rank"] >= 10]
    assert far, "no improbable token was drawn"
    assert all(len(t["alternatives"]) == 11 and t["alternatives"][-1]["id"] == t["id"] for t in far)


def test_a_greedy_reply_cuts_nothing(http: httpx.Client) -> None:
    _, *tokens, _ = generated(http, temperature=0)
    assert all(t["rank"] == 0 for t in tokens)
    assert {a["cut"] for t in tokens for a in t["alternatives"]} == {None}
    assert {t["alternatives"][0]["sampled"] for t in tokens} == {1.0}


@pytest.mark.parametrize("settings", [{}, {"presence_penalty": 1.5, "frequency_penalty": 1.0, "temperature": 1.3}])
def test_a_kept_beginning_changes_nothing_of_what_follows(http: httpx.Client, settings: dict[str, float]) -> None:
    """The same seed goes on as it did: kept tokens count as the reply's, in penalties and in noise."""
    _, *whole, ended = generated(http, max_tokens=12, **settings)
    assert len(whole) == 12
    kept = [t["id"] for t in whole[:5]]
    prompt, *rest, done = generated(http, continue_tokens=kept, max_tokens=7, **settings)
    assert [t["id"] for t in rest] == [t["id"] for t in whole[5:]]
    assert [t["index"] for t in rest] == list(range(5, 12))
    assert done["text"] == ended["text"]
    assert done["usage"] == {"prompt_tokens": prompt["count"], "kept_tokens": 5, "completion_tokens": 7}


def test_a_character_that_was_cut_in_two_becomes_whole(http: httpx.Client) -> None:
    """The reader keeps two bytes of three; if the third follows, the character comes with it."""
    first, second, third = checkpoints.tokenizer().encode("中")
    _, *tokens, done = generated(http, continue_tokens=[first, second, third], max_tokens=1)
    assert done["text"].startswith("中")
    _, *tokens, _ = generated(http, continue_tokens=[first, second], max_tokens=1)
    assert tokens[0]["text"][:1] in ("中", "\ufffd") or tokens[0]["id"] == third


def test_stop_strings_end_a_reply(http: httpx.Client) -> None:
    *_, whole = generated(http, max_tokens=30)
    letter = next(c for c in whole["text"][3:] if c.isprintable() and c != "\ufffd")
    *_, done = generated(http, max_tokens=30, stop=[letter])
    assert (done["finish_reason"], done["text"]) == ("stop", whole["text"].partition(letter)[0])


def test_a_base_model_continues_the_text(http: httpx.Client) -> None:
    prompt, *_ = generated(http, model="base", messages=[{"role": "user", "content": "Once"}])
    assert [t["text"] for t in prompt["tokens"]] == list("Once")


def test_a_seed_that_was_not_given_is_told(http: httpx.Client) -> None:
    *first, done = generated(http, seed=None, temperature=1.5)
    *again, _ = generated(http, seed=done["seed"], temperature=1.5)
    assert [i.get("id") for i in first] == [i.get("id") for i in again]


@pytest.mark.parametrize(
    ("body", "status", "named"),
    [
        ({"model": "nobody"}, 404, "model"),
        ({"model": "vectors"}, 400, "model"),
        ({"messages": []}, 400, "messages"),
        ({"messages": [{"role": "user", "content": "x" * 200}]}, 400, "messages"),
        ({"messages": [{"role": "wizard", "content": "x"}]}, 400, "messages[0].role"),
        ({"temperature": -1}, 400, "temperature"),
        ({"top_p": 1.5}, 400, "top_p"),
        ({"max_tokens": 0}, 400, "max_tokens"),
        ({"max_tokens": "many"}, 400, "max_tokens"),
        ({"continue_tokens": [99999]}, 400, "messages"),
        ({"continue_tokens": [-1]}, 400, "messages"),
        ({"continue_tokens": ["a"]}, 400, "continue_tokens[0]"),
        ({"stop": [""]}, 400, "stop"),
        ({"beams": 4}, 400, "beams"),
    ],
)
def test_generation_refuses_what_it_cannot_do(
    http: httpx.Client, body: dict[str, Any], status: int, named: str
) -> None:
    answer = http.post(f"{API}/generate", json={"model": "chatty", "messages": HI} | body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (status, named), answer.text


def test_leaving_stops_the_generation(http: httpx.Client, models: Models) -> None:
    body = {"model": "chatty", "messages": HI, "max_tokens": 100, "stop": ["never said"]}
    with http.stream("POST", f"{API}/generate", json=body) as answer:
        first = list(itertools.islice(items(answer.iter_lines()), 2))
    assert [item["type"] for item in first] == ["prompt", "token"]
    assert at_rest(models["chatty"])


def test_generation_is_counted(http: httpx.Client) -> None:
    def counted() -> float:
        lines = http.get("/metrics").text.splitlines()
        found = [line for line in lines if line.startswith('cutaway:generation_tokens_total{model_name="chatty"}')]
        return float(found[0].split()[-1]) if found else 0.0

    before = counted()
    _, *tokens, _ = generated(http)
    assert counted() - before == len(tokens)


# ---- labs

go_on = threading.Event()


@lab("toy", title=Words(en="Toy", zh="玩具"), question=Words(en="Well?", zh="如何？"), seconds={"quick": 0, "full": 0})
def toy(
    run: Run,
    steps: Annotated[int, Knob("how many", "几步", quick=3, min=1, max=1000)] = 5,
    mood: Annotated[str, Knob("how it ends", "结局")] = "well",
) -> Finding:
    for _ in run.each(range(steps), "stepping"):
        if mood == "slowly":
            time.sleep(0.02)
        if mood == "badly":
            raise ZeroDivisionError
        if mood == "at a sign":
            go_on.wait(10)
    table = Table(columns=[Column(name="steps")], rows=[[steps]])
    return Finding(table=table, plot=None, verdict=TRUE, checks=[Check(claim=TRUE, holds=True)])


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> None:
    """The toy alone."""
    monkeypatch.setattr(catalogue, "LABS", {"toy": toy})
    monkeypatch.setattr("cutaway.labs.lab.PACKAGE", Path(__file__).parent)
    go_on.clear()


def run(http: httpx.Client, **body: Any) -> list[dict[str, Any]]:
    answer = http.post(f"{API}/labs/toy/run", json=body)
    assert answer.status_code == 200, answer.text
    return list(items(iter(answer.text.split("\n"))))


def test_the_real_labs_are_described(http: httpx.Client) -> None:
    described = http.get(f"{API}/labs").json()["labs"]
    assert [one["id"] for one in described] == list(catalogue.LABS)
    for one in described:
        assert {"id", "title", "question", "knobs", "seconds", "code", "latest"} <= set(one)
        assert http.get(f"{API}/code", params={"path": one["code"]["path"]}).status_code == 200


@pytest.mark.usefixtures("bench")
def test_a_run_reports_progress_then_evidence_and_keeps_it(http: httpx.Client) -> None:
    assert http.get(f"{API}/labs").json()["labs"][0]["latest"] is None
    *progress, evidence, done = run(http, knobs={"steps": 4}, seed=7)
    assert {item["type"] for item in progress} == {"progress"}
    assert [item["done"] for item in progress] == [0, 0, 1, 2, 3, 4]
    assert (evidence["type"], done["type"]) == ("evidence", "done")
    found = evidence["evidence"]
    assert (found["lab"], found["knobs"], found["seed"]) == ("toy", {"steps": 4, "mood": "well"}, 7)
    assert http.get(f"{API}/labs").json()["labs"][0]["latest"] == found


@pytest.mark.usefixtures("bench")
@pytest.mark.parametrize("profile", ["quick", "full"])
def test_a_profile_sets_the_other_knobs(http: httpx.Client, profile: str) -> None:
    *_, evidence, _ = run(http, profile=profile)
    assert evidence["evidence"]["knobs"]["steps"] == {"quick": 3, "full": 5}[profile]


@pytest.mark.usefixtures("bench")
def test_one_run_at_a_time(http: httpx.Client, url: str) -> None:
    with http.stream("POST", f"{API}/labs/toy/run", json={"knobs": {"mood": "at a sign"}}) as first:
        said = items(first.iter_lines())
        next(said)
        second = httpx.post(f"{url}{API}/labs/toy/run", json={})
        assert (second.status_code, second.json()["error"]["code"]) == (409, "lab_running")
        go_on.set()
        assert [item["type"] for item in said][-2:] == ["evidence", "done"]
    assert run(http)[-1] == {"type": "done"}, "the room is not free again"


@pytest.mark.usefixtures("bench")
def test_leaving_cancels_a_run_and_nothing_is_kept(http: httpx.Client) -> None:
    with http.stream("POST", f"{API}/labs/toy/run", json={"knobs": {"mood": "slowly", "steps": 1000}}) as answer:
        next(items(answer.iter_lines()))
    until = time.monotonic() + 5
    while http.post(f"{API}/labs/toy/run", json={"knobs": {"steps": 1, "mood": "badly"}}).status_code == 409:
        assert time.monotonic() < until, "the run goes on although nobody waits for it"
    assert http.get(f"{API}/labs").json()["labs"][0]["latest"] is None


@pytest.mark.usefixtures("bench")
def test_a_lab_that_fails_says_so_and_frees_the_room(http: httpx.Client) -> None:
    last = run(http, knobs={"mood": "badly"})[-1]
    assert (last["type"], last["error"]["code"]) == ("error", "internal_error")
    assert run(http)[-1]["type"] == "done"


@pytest.mark.usefixtures("bench")
def test_damaged_evidence_does_not_hide_the_labs(http: httpx.Client, tmp_path: Path) -> None:
    (tmp_path / "results" / "toy").mkdir(parents=True)
    (tmp_path / "results" / "toy" / "20260101T000000.000000Z.json").write_text("{")
    assert http.get(f"{API}/labs").json()["labs"][0]["latest"] is None


@pytest.mark.usefixtures("bench")
@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("nothing", {}, 404),
        ("toy", {"knobs": {"wings": 2}}, 400),
        ("toy", {"knobs": {"steps": "many"}}, 400),
        ("toy", {"knobs": {"steps": 0}}, 400),
        ("toy", {"profile": "sloppy"}, 400),
        ("toy", {"seed": -1}, 400),
        ("toy", {"color": "red"}, 400),
    ],
)
def test_a_senseless_run_is_refused(http: httpx.Client, path: str, body: dict[str, Any], status: int) -> None:
    answer = http.post(f"{API}/labs/{path}/run", json=body)
    assert (answer.status_code, set(answer.json())) == (status, {"error"}), answer.text


def test_a_lab_takes_no_path_from_a_page(http: httpx.Client) -> None:
    answer = http.post("/studio/api/labs/where-parameters/run", json={"knobs": {"model": "/etc"}})
    assert answer.status_code == 404
    assert answer.json()["error"]["param"] == "knob model"
