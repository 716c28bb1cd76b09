"""Adapters over HTTP: asked for as models, loaded and unloaded while the server runs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import anthropic
import httpx
import openai
import pytest

from cutaway.engine.engine import Engine
from cutaway.engine.params import SamplingParams
from cutaway.serve.adapters import load
from cutaway.serve.app import Policy, Served, create_app, serve_model
from engine.tiny import adapter, decoder, spec, tokenizer
from serve.servers import encoder, loaded, running
from serve.test_metrics import read

HI = [{"role": "user", "content": "hi"}]
ASK = {"max_tokens": 6, "temperature": 0, "extra_body": {"ignore_eos": True}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Two adapters, one that does not fit, and one that lies elsewhere but is linked to."""
    kept = tmp_path_factory.mktemp("adapters")
    for seed, name in enumerate(("one", "two")):
        adapter(kept / name, spec(), seed)
    adapter(kept / "dora", spec(), use_dora=True)
    adapter(tmp_path_factory.mktemp("elsewhere") / "secret", spec())
    (kept / "linked").symlink_to(next(tmp_path_factory.getbasetemp().glob("elsewhere*/secret")))
    (kept / "empty").mkdir()
    return kept


@pytest.fixture
def models() -> Iterator[dict[str, Served]]:
    made = [serve_model(loaded("tiny", decoder(), tokenizer())), serve_model(loaded("vectors", encoder(), tokenizer()))]
    yield {served.name: served for served in made}
    for served in made:
        served.close()


@pytest.fixture
def url(models, folder) -> Iterator[str]:
    with running(create_app(models, adapters_from=folder)) as url:
        yield url


@pytest.fixture
def client(url) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture
def http(url) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=url, timeout=20) as client:
        yield client


def put(http: httpx.Client, name: str, path: str, **more: str) -> httpx.Response:
    return http.post(
        "/v1/load_lora_adapter", json={"lora_name": name, "lora_path": path, "load_inplace": False, **more}
    )


def expected(prompt: list[int], folder: Path, name: str = "") -> str:
    """What an engine says to it, by itself."""
    engine = Engine(decoder(), tokenizer())
    if name:
        engine.adapters.load(name, folder / name)
    params = SamplingParams(temperature=0, max_tokens=6, ignore_eos=True, adapter=name)
    return "".join(event.text for event in engine.generate(prompt, params))


def test_load_use_unload(client, http, folder):
    before = client.models.list().data
    assert [(m.id, m.parent) for m in before] == [("tiny", None), ("vectors", None)]
    for name in ("one", "two"):
        answer = put(http, name, name)
        assert (answer.status_code, answer.text) == (200, f"Success: LoRA adapter '{name}' added successfully.")
    assert [m.id for m in client.models.list()] == ["tiny", "one", "two", "vectors"]
    assert client.models.retrieve("two").parent == "tiny"
    prompt, replies = tokenizer().chat(HI), []
    for model in ("tiny", "one", "two"):
        answer = client.chat.completions.create(model=model, messages=HI, **ASK)
        assert answer.model == model
        replies.append(answer.choices[0].message.content)
        assert replies[-1] == expected(prompt, folder, model.replace("tiny", ""))
    assert len({*replies}) == 3
    answer = http.post("/v1/unload_lora_adapter", json={"lora_name": "one"})
    assert (answer.status_code, answer.text) == (200, "Success: LoRA adapter 'one' removed successfully.")
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(model="one", messages=HI, **ASK)
    assert caught.value.code == "model_not_found"
    assert client.chat.completions.create(model="two", messages=HI, **ASK).choices[0].message.content == replies[2]


def test_every_endpoint_takes_an_adapter_for_a_model(client, http, url, folder):
    put(http, "one", "one")
    prompt = tokenizer().chat(HI)
    wanted = expected(prompt, folder, "one")
    assert expected(prompt, folder) != wanted
    assert client.completions.create(model="one", prompt=prompt, **ASK).choices[0].text == wanted
    chunks = client.completions.create(model="one", prompt=prompt, stream=True, **ASK)
    assert {c.model for c in chunks} == {"one"}
    asked = {"temperature": 0, "extra_body": {"ignore_eos": True}}
    response = client.responses.create(model="one", input="hi", max_output_tokens=6, **asked)
    assert (response.output_text, response.model) == (wanted, "one")
    with anthropic.Anthropic(base_url=url, api_key="none", max_retries=0) as claude:
        message = claude.messages.create(
            model="one", messages=HI, max_tokens=6, extra_body={"ignore_eos": True, "temperature": 0}
        )
        assert (message.content[0].text, message.model) == (wanted, "one")
        assert claude.messages.count_tokens(model="one", messages=HI).input_tokens == len(prompt)
    assert http.post("/tokenize", json={"model": "one", "prompt": "a"}).json()["count"] == 1


REFUSED = {  # body: status, param, words
    "outside": ({"lora_path": "../elsewhere"}, 404, "lora_path", "no such folder of adapters"),
    "absolute": ({"lora_path": "/etc"}, 404, "lora_path", "no such folder of adapters"),
    "a link to elsewhere": ({"lora_path": "linked"}, 404, "lora_path", "no such folder of adapters"),
    "a file": ({"lora_path": "one/adapter_config.json"}, 404, "lora_path", "no such folder of adapters"),
    "nothing there": ({"lora_path": "nothing"}, 404, "lora_path", "no such folder of adapters"),
    "a null byte": ({"lora_path": "a\0b"}, 404, "lora_path", "no such folder of adapters"),
    "an empty folder": ({"lora_path": "empty"}, 404, None, "holds no adapter_config.json"),
    "not implemented": ({"lora_path": "dora"}, 400, None, "use_dora = True is not implemented"),
    "the model's name": ({"lora_name": "tiny"}, 400, "lora_name", "'tiny' is the name of a model or adapter already"),
    "a name that is taken": ({"lora_name": "two"}, 400, "lora_name", "'two' is the name of"),
    "no name": ({"lora_name": ""}, 400, "adapter", "is empty"),
    "a model that is not there": ({"model": "gone"}, 400, "model", "there is tiny"),
    "an encoder": ({"model": "vectors"}, 400, "model", "there is tiny"),
    "another field": ({"load_inplace": True}, 400, "load_inplace", "is not supported here"),
}


@pytest.mark.parametrize("why", REFUSED)
def test_what_is_not_loaded(why, http):
    body, status, param, words = REFUSED[why]
    put(http, "two", "two")
    answer = http.post("/v1/load_lora_adapter", json={"lora_name": "new", "lora_path": "one"} | body)
    error = answer.json()["error"]
    assert answer.status_code == status, error
    assert words in error["message"]
    assert param is None or error["param"] == param
    assert [m["id"] for m in http.get("/v1/models").json()["data"]] == ["tiny", "two", "vectors"]


def test_unknown_names_cannot_be_unloaded(http):
    for name in ("tiny", "gone"):
        answer = http.post("/v1/unload_lora_adapter", json={"lora_name": name})
        assert (answer.status_code, answer.json()["error"]["param"]) == (404, "lora_name")


def test_nothing_comes_or_goes_unless_the_server_allows_it(models, folder):
    load(models, "one", folder / "one")
    with running(create_app(models, Policy(("key",)))) as url:
        for path, body in (
            ("load_lora_adapter", {"lora_name": "x", "lora_path": "one"}),
            ("unload_lora_adapter", {"lora_name": "one"}),
        ):
            assert httpx.post(f"{url}/v1/{path}", json=body).status_code == 401
            answer = httpx.post(f"{url}/v1/{path}", json=body, headers={"Authorization": "Bearer key"})
            assert (answer.status_code, answer.json()["error"]["code"]) == (403, "adapters_not_allowed")
        assert "--adapters-from" in answer.json()["error"]["message"]
        with openai.OpenAI(base_url=f"{url}/v1", api_key="key") as client:
            assert client.chat.completions.create(model="one", messages=HI, **ASK).model == "one"


def test_unloaded_while_it_answers(client, http, folder):
    """The stream goes on to its end, with the adapter."""
    put(http, "one", "one")
    asked = {**ASK, "max_tokens": 40}
    whole = client.completions.create(model="one", prompt=[1, 2, 3], **asked).choices[0].text
    stream = client.completions.create(model="one", prompt=[1, 2, 3], stream=True, **asked)
    text = next(iter(stream)).choices[0].text
    assert http.post("/v1/unload_lora_adapter", json={"lora_name": "one"}).status_code == 200
    assert text + "".join(chunk.choices[0].text for chunk in stream) == whole
    with pytest.raises(openai.NotFoundError):
        client.completions.create(model="one", prompt=[1, 2, 3], **asked)


def test_figures(client, http):
    put(http, "one", "one")
    put(http, "two", "two")
    for _ in range(2):
        client.completions.create(model="two", prompt=[1, 2, 3], **ASK)
    with client.completions.create(model="two", prompt=[1], stream=True, max_tokens=200) as stream:
        next(iter(stream))
        text = http.get("/metrics").text
        figures = read(http)
    assert figures["adapters", "tiny"] == 2
    assert figures["adapter_requests_total", "tiny", "two"] == 3
    assert figures["request_success_total", "length", "tiny"] == 2
    assert 'vllm:lora_requests_info{max_lora="16",model_name="tiny",running_lora_adapters="two"' in text


def test_several_decoders_must_be_told_apart(models, folder):
    other = serve_model(loaded("other", decoder(seed=1), tokenizer()))
    both = {**models, "other": other}
    try:
        with running(create_app(both, adapters_from=folder)) as url, httpx.Client(base_url=url) as http:
            error = put(http, "one", "one").json()["error"]
            assert "there is tiny, other" in error["message"]
            assert put(http, "one", "one", model="other").status_code == 200
            described = http.get("/v1/models/one").json()
            assert described["parent"] == "other"
            assert put(http, "one", "two", model="tiny").status_code == 400
    finally:
        other.close()


def test_the_studio_opens_models_not_adapters(models, folder):
    from cutaway.studio.app import mount

    load(models, "one", folder / "one")
    app = create_app(models)
    mount(app, models)
    with running(app) as url:
        assert [m["id"] for m in httpx.get(f"{url}/studio/api/models").json()["models"]] == ["tiny", "vectors"]
        assert httpx.get(f"{url}/studio/api/model/one/cost").status_code == 404
