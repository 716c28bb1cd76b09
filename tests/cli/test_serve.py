"""`cutaway serve`: from the command to an answer, and to a clean end."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys

import httpx
import numpy as np
import openai
import pytest

from cutaway.cli.serve import keys_of, listening, load_adapters, started
from cutaway.embed.sentences import encode
from cutaway.errors import CutawayError
from cutaway.native.build import library
from cutaway.weights.checkpoint import load, open_checkpoint
from engine.tiny import adapter

COMMAND = [sys.executable, "-m", "cutaway", "serve"]


@pytest.fixture(scope="module")
def server(smollm2_gguf, minilm_dir, tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapters")
    for name in ("given", "later"):
        adapter(folder / name, open_checkpoint(smollm2_gguf).spec, rank=8)
    arguments = [str(smollm2_gguf), "--embeddings", str(minilm_dir), "--port", "0", "--context", "512", "--drain", "3"]
    arguments += ["--adapter", f"given={folder / 'given'}", "--adapters-from", str(folder)]
    process = subprocess.Popen([*COMMAND, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        yield process, process.stdout.readline()
    finally:
        process.kill()
        process.communicate()


@pytest.fixture(scope="module")
def url(server) -> str:
    return re.search(r"http://127\.0\.0\.1:\d+", server[1]).group()


@pytest.fixture(scope="module")
def client(url):
    return openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)


def test_it_says_where_it_answers(url):
    assert httpx.get(f"{url}/health").json()["status"] == "ok"
    assert httpx.get(f"{url}/", follow_redirects=True).headers["content-type"].startswith("text/html")
    assert "models" in httpx.get(f"{url}/studio/api/models").json()


def test_the_real_model_chats(client):
    decoder, _, encoder = (m.id for m in client.models.list())
    asked = {"messages": [{"role": "user", "content": "Name the capital of France."}], "temperature": 0}
    answer = client.chat.completions.create(model=decoder, **asked, logprobs=True, top_logprobs=2)
    text = answer.choices[0].message.content
    assert "Paris" in text
    assert answer.choices[0].finish_reason == "stop"
    entries = answer.choices[0].logprobs.content
    assert b"".join(bytes(e.bytes) for e in entries[:-1]).decode() == text
    assert all(e.top_logprobs[0].token == e.token for e in entries)
    streamed = client.chat.completions.create(model=decoder, **asked, stream=True)
    assert "".join(c.choices[0].delta.content or "" for c in streamed) == text
    with pytest.raises(openai.BadRequestError, match="encoder"):
        client.chat.completions.create(model=encoder, **asked)


def test_the_real_model_completes(client):
    decoder = client.models.list().data[0].id
    asked = {"model": decoder, "prompt": ["The capital of France is", "1, 2, 3,"], "temperature": 0, "max_tokens": 3}
    first, second = client.completions.create(**asked).choices
    assert (first.text[:6], second.text[:2]) == (" Paris", " 4")


def test_the_real_encoder_embeds(client, minilm_dir):
    texts = ["A cat sits on the mat.", "猫坐在垫子上。", "GPU prices fell."]
    encoder = client.models.list().data[-1].id
    ours = np.array([d.embedding for d in client.embeddings.create(model=encoder, input=texts).data])
    model = load(str(minilm_dir))
    np.testing.assert_allclose(ours, encode(model.model, model.tokenizer, texts), atol=1e-5)


def test_the_real_model_takes_adapters(client, url):
    """Quantized weights, adapted on native kernels where there are any: the two say the same, the bare model not."""
    named = {"lora_name": "later", "lora_path": "later"}
    assert httpx.post(f"{url}/v1/load_lora_adapter", json=named, timeout=60).status_code == 200
    decoder = client.models.list().data[0].id
    asked = {"prompt": "The capital of France is", "temperature": 0, "max_tokens": 5}
    bare, given, later = (
        client.completions.create(model=m, **asked).choices[0].text for m in (decoder, "given", "later")
    )
    assert given == later != bare
    assert httpx.post(f"{url}/v1/unload_lora_adapter", json={"lora_name": "later"}).status_code == 200


def test_adapters_have_names():
    with pytest.raises(CutawayError, match="'folder' is not NAME=FOLDER"):
        load_adapters({}, ["folder"])
    with pytest.raises(CutawayError, match="names no decoder here"):
        load_adapters({}, ["name=folder"])


def test_the_port_cannot_be_taken_twice(url):
    port = url.rpartition(":")[2]
    done = subprocess.run([*COMMAND, "no-such-model", "--port", port], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert "--port 0" in done.stderr
    assert "Traceback" not in done.stderr


def test_sigterm_lets_what_is_short_end_and_cuts_what_is_long(server, client):
    process, line = server
    decoder = client.models.list().data[0].id
    asked = {"messages": [{"role": "user", "content": "Count to a thousand."}], "extra_body": {"ignore_eos": True}}
    asked |= {"model": decoder, "stream": True}
    long, short = (iter(client.chat.completions.create(**asked, n=n, max_tokens=m)) for n, m in ((12, 470), (1, 8)))
    next(long), next(short)
    process.send_signal(signal.SIGTERM)
    assert [*short][-1].choices[0].finish_reason == "length"
    assert process.wait(15) == 0
    rest = process.stdout.read()
    assert line.count("http://") == 1
    assert rest == "", "one line on stdout, no more"


@pytest.mark.skipif(library() is None, reason="no native kernels")
def test_a_cache_of_8_bits_is_what_it_says(smollm2_gguf):
    with started(load(str(smollm2_gguf), "stored"), {"cache_dtype": "int8", "context": 64}) as served:
        engine = served.service.engine
        assert (engine.runner.cache, engine.runner.page_bytes) == ("int8", 30 * 2 * 3 * 64 * 34)


def test_keys(monkeypatch):
    monkeypatch.setenv("CUTAWAY_API_KEY", "a key of words")
    assert keys_of(None) == ("a key of words",), "not four keys"
    assert keys_of(["one", "two"]) == ("one", "two")
    monkeypatch.setenv("CUTAWAY_API_KEY", "")
    assert keys_of(None) == ()


def test_an_open_address_needs_a_key():
    done = subprocess.run([*COMMAND, "x", "--host", "0.0.0.0"], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "--api-key" in done.stderr


def test_a_port_is_held_but_not_open_before_the_models_are_there():
    with listening("127.0.0.1", 0) as taken:
        address = taken.getsockname()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(address, timeout=1)
