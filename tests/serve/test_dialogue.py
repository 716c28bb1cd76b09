"""Control tokens in calls, and engines that fail in the middle of a stream."""

from __future__ import annotations

import anthropic
import openai
import pytest

from cutaway.engine.engine import Engine
from cutaway.engine.params import SamplingParams
from cutaway.engine.sampler import Choice
from cutaway.engine.sequence import Sequence
from cutaway.errors import CutawayError
from cutaway.serve.dialogue import Plan, Reader, Wish, plan
from cutaway.serve.tool_calls import FORMATS, Part, arguments_of
from engine.tiny import TEMPLATE, decoder, tokenizer
from serve.servers import serving
from serve.told import LOOK, TOOLED, teller

HI = [{"role": "user", "content": "hi"}]


def test_calls_written_with_control_tokens_that_plain_text_leaves_out():
    t = tokenizer()
    mark = t.encode("<|im_start|>")
    text = '[{"name": "look", "arguments": {}}]'
    reader = Reader(Plan([0], None, FORMATS["mistral"], False, False, {mark[0]: "[TOOL_CALLS]"}))
    sequence = Sequence([0], SamplingParams(stop=("so?",)), t)
    for token in [*t.encode("Well so"), *mark, *t.encode(text), max(t.stop_ids)]:
        event = sequence.commit(chosen(token), 9)
        reader.read(event)
    assert reader.parts == [Part("content", "Well so"), Part("call", "{}", "look")]
    assert reader.finish(event) == "tool_calls"


def chosen(token):
    fields = dict.fromkeys(Choice.__dataclass_fields__, 0) | {"token": token, "alternatives": ()}
    return Choice(**fields)


def test_ids_suit_the_format():
    made = Plan([0], None, FORMATS["mistral"], False, False, {}).new_id()
    assert len(made) == 9
    assert made.isalnum()
    assert Plan([0], None, None, False, False, {}).new_id().startswith("call_")


def test_deepseek_is_given_arguments_as_text():
    template = TOOLED.replace("{{ c.function | tojson }}", "{{ c.function.arguments + '' }}")
    call = {"id": "c", "type": "function", "function": {"name": "look", "arguments": {"city": "Ulm"}}}
    wish = Wish([*HI, {"role": "assistant", "content": "", "tool_calls": [call]}, *HI], [LOOK])
    prompt = plan(tokenizer(template), wish, FORMATS["deepseek"]).prompt
    assert '<tool_call>{"city": "Ulm"}' in tokenizer(template).decode(prompt)


def test_what_cannot_be_had_together():
    from cutaway.engine.constraints.spec import ConstraintSpec

    with pytest.raises(CutawayError, match="cannot both"):
        plan(tokenizer(TEMPLATE), Wish(HI, [LOOK], constraint=ConstraintSpec.json()))
    with pytest.raises(CutawayError, match="no tool 'other'"):
        plan(tokenizer(TEMPLATE), Wish(HI, [LOOK], "=other"))
    assert plan(tokenizer(TEMPLATE), Wish(HI, [LOOK], "none", constraint=ConstraintSpec.json())).form is None


@pytest.fixture
def failing():
    """A server whose engine fails after a few tokens."""
    served = teller("Hello there, how are you?")
    runner = served.service.engine.runner
    whole = runner.run

    def run(spans, wanted):
        if any(len(s.sequence.reply) > 3 for s in spans):
            raise RuntimeError("broken")
        return whole(spans, wanted)

    runner.run = run
    with serving(served) as url:
        yield url


def test_a_failure_in_the_middle_of_a_stream_is_told(failing):
    with openai.OpenAI(base_url=f"{failing}/v1", api_key="x", max_retries=0) as client:
        with pytest.raises(openai.APIError):
            list(client.chat.completions.create(model="told", messages=HI, stream=True))
        events = list(client.responses.create(model="told", input="hi", stream=True))
        assert [e.type for e in events][-1] == "error"
    with (
        anthropic.Anthropic(base_url=failing, api_key="x", max_retries=0) as client,
        pytest.raises(anthropic.APIStatusError) as caught,
    ):
        list(client.messages.create(model="told", messages=HI, max_tokens=20, stream=True))
    assert caught.value.body["error"]["type"] == "api_error"


def test_two_hundred_calls_of_a_model_of_random_weights():
    t = tokenizer()
    parameters = {
        "type": "object",
        "properties": {"city": {"enum": ["Ulm", "Rom"]}, "n": {"type": "integer", "minimum": 1, "maximum": 14}},
        "required": ["city", "n"],
        "additionalProperties": False,
    }
    planned = plan(t, Wish(HI, [LOOK | {"parameters": parameters}], "required"))
    engine = Engine(decoder(context=1024), t, running=32)
    # Random weights would else fill every gap with all the white space that JSON may have.
    settings = {
        "temperature": 9.0,
        "max_tokens": 150,
        "constraint": planned.constraint,
        "logit_bias": dict.fromkeys(t.encode(" \n\t\r"), -100),
    }
    readers = {engine.add(planned.prompt, SamplingParams(seed=i, **settings)): Reader(planned) for i in range(200)}
    while engine.busy:
        for sequence, event in engine.step():
            readers[sequence].read(event)
    for sequence, reader in readers.items():
        assert sequence.finish == "stop", sequence.text
        (call,) = reader.parts
        given = arguments_of(call)
        assert (call.name, *given) == ("look", "city", "n")
        assert given["city"] in {"Ulm", "Rom"}
        assert 1 <= given["n"] <= 14
    assert len({reader.parts[0].text for reader in readers.values()}) > 5
