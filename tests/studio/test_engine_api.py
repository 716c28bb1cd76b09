"""GET /engine: what the engine itself would say."""

from __future__ import annotations

import asyncio
import threading

import httpx
import pytest

from cutaway.engine.engine import Engine
from cutaway.engine.params import SamplingParams
from cutaway.engine.service import Service
from cutaway.serve.app import Models
from cutaway.studio.engine import snapshot
from engine.tiny import decoder, tokenizer
from studio.test_api import API

LONG = SamplingParams(max_tokens=200, ignore_eos=True)


@pytest.fixture
def engine() -> Engine:
    return Engine(decoder(), tokenizer(), running=2, budget=64)


def test_sequences_pages_and_who_shares_them(engine: Engine) -> None:
    size = engine.scheduler.pages.size
    prompt = tokenizer().encode("x" * (2 * size + 3))
    for _ in range(3):
        engine.add(prompt, LONG)
    while len(engine.scheduler.running) < 2 or any(s.computed < len(s.prompt) for s in engine.scheduler.running):
        engine.step()
    found = snapshot(engine)
    first, second, third = found["sequences"]
    assert [s["state"] for s in found["sequences"]] == ["running", "running", "waiting"]
    assert (found["running"], found["waiting"]) == (2, 1)
    shared = {*first["pages"]} & {*second["pages"]}
    assert len(shared) == 2
    assert second["cached"] == 2 * size
    assert third["pages"] == []
    holders = found["pages"]["holders"]
    assert {page for page, many in enumerate(holders) if many == 2} == shared
    assert sum(many for many in holders if many > 0) == len(first["pages"]) + len(second["pages"])
    assert found["pages"]["held"] == sum(many > 0 for many in holders)
    engine.abort(next(iter(engine.scheduler.running)))
    engine.scheduler.plan()
    after = snapshot(engine)["pages"]
    assert after["cached"] == sum(many == -1 for many in after["holders"])


def test_steps_are_told_once(engine: Engine) -> None:
    engine.add(tokenizer().encode("abc"), LONG)
    for _ in range(5):
        engine.step()
    found = snapshot(engine)
    assert [step["number"] for step in found["steps"]] == [0, 1, 2, 3, 4]
    assert [step["spans"] for step in found["steps"]] == [
        ((1, 0, 3, 0, 0),),
        *(((1, n, 1, 0, 0),) for n in (3, 4, 5, 6)),
    ]
    assert all(0 < step["runner_s"] <= step["whole_s"] for step in found["steps"])
    assert [step["number"] for step in snapshot(engine, since=3)["steps"]] == [3, 4]
    assert (found["counted"]["tokens"], found["counted"]["replied"]) == (7, 5)
    rates = found["rates"]
    whole = sum(step["whole_s"] for step in found["steps"])
    assert rates["replied_per_s"] == pytest.approx(5 / whole)
    assert rates["tokens_per_s"] == pytest.approx(7 / whole)
    assert rates["acceptance"] is None


def test_the_oldest_steps_are_forgotten_but_counted(engine: Engine) -> None:
    engine.steps = type(engine.steps)(maxlen=4)
    list(engine.generate(tokenizer().encode("abc"), SamplingParams(max_tokens=10, ignore_eos=True)))
    assert [step["number"] for step in snapshot(engine)["steps"]] == [6, 7, 8, 9]


def test_a_question_is_answered_between_steps() -> None:
    service = Service(Engine(decoder(context=4096), tokenizer()))

    async def asked() -> list[str]:
        events = service.stream(tokenizer().encode("a"), SamplingParams(max_tokens=4000, ignore_eos=True))
        await anext(events)
        threads = [await service.ask(lambda engine: threading.current_thread().name) for _ in range(3)]
        assert await service.ask(lambda engine: len(engine.scheduler.spans)) == 0
        with pytest.raises(ZeroDivisionError):
            await service.ask(lambda engine: 1 // 0)
        await events.aclose()
        return threads

    assert set(asyncio.run(asked())) == {"cutaway-engine"}
    service.close()


def test_over_http(http: httpx.Client, models: Models) -> None:
    found = http.get(f"{API}/engine").json()
    assert found["models"] == [name for name, model in models.items() if model.service]
    assert found["model"] == found["models"][0]
    other = http.get(f"{API}/engine", params={"model": found["models"][1]}).json()
    assert other["model"] == found["models"][1]
    assert http.get(f"{API}/engine", params={"model": "vectors"}).status_code == 400
    assert http.get(f"{API}/engine", params={"model": "none"}).status_code == 404
    asked = {"model": found["model"], "messages": [{"role": "user", "content": "a secret"}], "max_tokens": 3}
    assert http.post("/v1/chat/completions", json=asked).status_code == 200
    after = http.get(f"{API}/engine")
    assert after.json()["counted"]["steps"] > found["counted"]["steps"]
    assert after.json()["rates"]["weights_per_s"] > 0
    assert "secret" not in after.text
