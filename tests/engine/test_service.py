"""One engine, many listeners: they hear their own events, may leave at any time, and learn of failures."""

from __future__ import annotations

import asyncio
import time

import pytest

from cutaway.engine.drafter import PromptLookup
from cutaway.engine.engine import Engine, Failed
from cutaway.engine.params import SamplingParams
from cutaway.engine.service import Busy, Gate, Service, Stopped
from cutaway.errors import CutawayError
from engine.test_engine import GREEDY, ids, run
from engine.tiny import decoder, tokenizer, told

LONG = SamplingParams(temperature=0, max_tokens=200, ignore_eos=True)


@pytest.fixture
def service():
    made = Service(Engine(decoder(), tokenizer(), running=4), max_waiting=8)
    yield made
    made.close()


def idle(service: Service) -> bool:
    """Does everything come to rest within a moment?"""
    end = time.monotonic() + 5
    while time.monotonic() < end:
        if not service.engine.busy and not service._listeners and not service.gate.inside:
            return True
        time.sleep(0.005)
    return False


def test_concurrent_listeners_hear_their_own_events(service):
    requests = [(ids(5 + n, n), SamplingParams(seed=n, max_tokens=10 + n, ignore_eos=True)) for n in range(10)]
    alone = [run(Engine(decoder(), tokenizer()), [request])[0] for request in requests]

    async def all_at_once():
        return await asyncio.gather(*(service.complete(*request) for request in requests))

    replies = asyncio.run(all_at_once())
    assert [[e.choice.token for e in events] for events in replies] == alone
    assert idle(service)


def test_several_sequences_in_one_stream(service):
    requests = [(ids(4, n), SamplingParams(seed=n, max_tokens=3 + n, ignore_eos=True)) for n in range(6)]

    async def listen():
        replies = [[] for _ in requests]
        async for index, event in service.stream_all(requests):
            replies[index].append(event.choice.token)
        return replies

    assert asyncio.run(listen()) == run(Engine(decoder(), tokenizer()), requests)
    assert idle(service)


def test_leaving_a_stream_stops_the_sequence(service):
    async def leave():
        events = service.stream(ids(5), LONG)
        await anext(events)
        await events.aclose()

    asyncio.run(leave())
    assert idle(service)


@pytest.mark.parametrize("delay", [0, 0.01])
def test_cancelling_a_task_stops_the_sequence(service, delay):
    async def cancel():
        task = asyncio.create_task(service.complete(ids(5), LONG))
        await asyncio.sleep(delay)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancel())
    assert idle(service)


def test_an_event_loop_that_dies_does_not_take_the_service_along(service):
    loop = asyncio.new_event_loop()
    events = service.stream(ids(5), LONG)
    loop.run_until_complete(anext(events))
    loop.close()
    assert len(asyncio.run(service.complete(ids(5), GREEDY))) == 12
    del events


def test_beyond_its_room_it_is_busy(service):
    async def crowd():
        streams = [service.stream(ids(5, n), LONG) for n in range(12)]
        await asyncio.gather(*(anext(s) for s in streams[:4]))
        waiting = [asyncio.create_task(anext(s)) for s in streams[4:]]
        await asyncio.sleep(0)
        with pytest.raises(Busy):
            await service.complete(ids(5), LONG)
        with pytest.raises(Busy):
            await anext(service.stream_all([(ids(5), LONG)] * 13))
        await streams[0].aclose()
        assert len(await service.complete(ids(5), GREEDY)) == 12
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        for stream in streams:
            await stream.aclose()

    asyncio.run(crowd())
    assert idle(service)


def test_an_impossible_prompt_is_refused_before_it_takes_a_place(service):
    for prompt in ([], [10**6]):
        with pytest.raises(CutawayError):
            asyncio.run(service.complete(prompt, GREEDY))
    with pytest.raises(CutawayError):
        asyncio.run(anext(service.stream_all([(ids(3), GREEDY), ([], GREEDY)])))
    assert idle(service)


def test_a_step_that_fails_once_costs_nobody_anything(service, monkeypatch):
    requests, model, calls = [(ids(4, n), GREEDY) for n in range(3)], service.engine.runner.model, iter(range(1000))
    alone = [run(Engine(decoder(), tokenizer()), [request])[0] for request in requests]
    logits = model.logits
    monkeypatch.setattr(model, "logits", lambda rows: 1 / 0 if next(calls) in (0, 5) else logits(rows))

    async def three():
        return await asyncio.gather(*(service.complete(*request) for request in requests))

    assert [[e.choice.token for e in events] for events in asyncio.run(three())] == alone
    assert idle(service)


@pytest.mark.parametrize("where", ["run", "logits"])
def test_who_cannot_be_computed_fails_alone(service, monkeypatch, caplog, where):
    """It is told, the others say what they would have said, and pages are those of who is left."""
    prompts, run_all, runner = [ids(40, n) for n in range(3)], service.engine.runner.run, service.engine.runner
    alone = [run(Engine(decoder(), tokenizer()), [(prompt, GREEDY)])[0] for prompt in prompts]

    def failing(spans, wanted):
        guilty = [s.sequence.prompt == prompts[1] and len(s.sequence.reply) == 5 for s in spans]
        if where == "run" and any(guilty):
            raise MemoryError("as it were")
        made = run_all(spans, wanted)
        return [row._replace(total=float("nan")) if bad else row for row, bad in zip(made, guilty, strict=True)]

    async def three():
        replies = asyncio.gather(*(service.complete(prompt, GREEDY) for prompt in prompts), return_exceptions=True)
        first, second, third = await replies
        assert isinstance(second, Failed)
        return [[event.choice.token for event in events] for events in (first, third)]

    monkeypatch.setattr(runner, "run", failing)
    assert asyncio.run(three()) == [alone[0], alone[2]]
    assert "a sequence failed" in caplog.text
    assert idle(service)
    service.engine.scheduler.pages.check([])
    assert not runner.memories
    monkeypatch.setattr(runner, "run", run_all)
    assert [e.choice.token for e in asyncio.run(service.complete(prompts[1], GREEDY))] == alone[1]


def test_guessing_that_fails_costs_no_reply(monkeypatch, caplog):
    service = Service(Engine(decoder(), tokenizer(), drafter=PromptLookup()))
    monkeypatch.setattr(PromptLookup, "draft", lambda *_: 1 / 0)
    events = asyncio.run(service.complete(ids(5), GREEDY))
    service.close()
    assert [e.choice.token for e in events] == run(Engine(decoder(), tokenizer()), [(ids(5), GREEDY)])[0]
    assert "guessing failed" in caplog.text


def test_a_failure_beside_all_sequences_is_told_to_all_and_survived(service, monkeypatch, caplog):
    plan, calls = service.engine.scheduler.plan, iter(range(1000))

    def failing(now):
        if next(calls) == 3:
            raise MemoryError("as it were")
        return plan(now)

    monkeypatch.setattr(service.engine.scheduler, "plan", failing)

    async def three():
        return await asyncio.gather(*(service.complete(ids(4, n), LONG) for n in range(3)), return_exceptions=True)

    assert {type(r) for r in asyncio.run(three())} == {Stopped}
    assert "as it were" in caplog.text
    assert idle(service)
    assert len(asyncio.run(service.complete(ids(4), GREEDY))) == 12


def test_closing_ends_who_still_listens():
    service = Service(told("x" * 200))

    async def closing():
        events = service.stream(tokenizer().encode("?"), LONG)
        await anext(events)
        await asyncio.to_thread(service.close)
        with pytest.raises(Stopped):
            async for _ in events:
                pass
        with pytest.raises(Stopped):
            await service.complete(tokenizer().encode("?"), LONG)

    asyncio.run(closing())
    assert not service.alive
    assert not service.engine.busy


def test_a_gate_counts():
    gate = Gate(3)
    with gate.enter(2), gate.enter(), pytest.raises(Busy):
        gate.enter().__enter__()
    with pytest.raises(ZeroDivisionError), gate.enter(3):
        raise ZeroDivisionError
    assert gate.inside == 0


@pytest.mark.parametrize("count", [0, 1, 7])
def test_a_reply_can_be_taken_up_in_the_middle(service, count):
    prompt, params = ids(9), SamplingParams(seed=3, max_tokens=15, frequency_penalty=1, ignore_eos=True)
    whole = asyncio.run(service.complete(prompt, params))
    kept = [e.choice.token for e in whole[:count]]

    async def go_on():
        return [event async for event in service.stream(prompt, params, kept=kept)]

    rest = asyncio.run(go_on())
    assert [e.choice.token for e in rest] == [e.choice.token for e in whole[count:]]
    assert tokenizer().decode(kept + [e.choice.token for e in rest]) == "".join(e.text for e in whole)
