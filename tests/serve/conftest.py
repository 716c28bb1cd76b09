"""A real server on a free port of the loopback interface, with models that answer in milliseconds."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import httpx
import openai
import pytest
import torch
import uvicorn

from cutaway.models.encoder import Encoder
from cutaway.models.spec import LayerSpec, PoolingSpec, Spec
from cutaway.nn.attention import AttentionSpec
from cutaway.nn.embedding import EmbeddingSpec
from cutaway.nn.feed_forward import FeedForwardSpec
from cutaway.nn.norms import NormSpec
from cutaway.serve.app import Policy, Served, create_app, serve_model
from cutaway.weights.checkpoint import Loaded
from engine.tiny import VOCAB, decoder, tokenizer


def loaded(name: str, model: Any, tokenizer: Any) -> Loaded:
    return Loaded(name, model, tokenizer, cast(Any, None))


def encoder() -> Encoder:
    torch.manual_seed(0)
    norm = NormSpec("layer", 1e-6)
    attention = AttentionSpec(2, 2, 8, 8**-0.5, causal=False, bias=True)
    layer = LayerSpec(attention, FeedForwardSpec(32, "gelu", False, True), norm, "post")
    return Encoder(
        Spec("bert", VOCAB, 16, 64, EmbeddingSpec(64), (layer,), None, pooling=PoolingSpec())
    ).eval()


@contextmanager
def running(app: Any) -> Iterator[str]:
    """The URL of a server in a thread."""
    listening = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="critical", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    while not server.started:
        time.sleep(0.005)
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


@contextmanager
def serving(*models: Served, policy: Policy | None = None) -> Iterator[str]:
    try:
        with running(create_app({m.name: m for m in models}, policy)) as url:
            yield url
    finally:
        for model in models:
            model.close()


@pytest.fixture(scope="session")
def tiny() -> Served:
    """Chats, in random bytes."""
    return serve_model(loaded("tiny", decoder(), tokenizer()), running=4, max_waiting=60)


@pytest.fixture(scope="session")
def url(tiny) -> Iterator[str]:
    base = serve_model(loaded("base", decoder(context=40, seed=1), tokenizer(None)))
    vectors = serve_model(loaded("vectors", encoder(), tokenizer()))
    with serving(tiny, base, vectors) as url:
        yield url


@pytest.fixture
def http(url) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=url, timeout=20) as client:
        yield client


@pytest.fixture
def client(url) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        yield client


def at_rest(served: Served, seconds: float = 5) -> bool:
    """Does the engine come to rest before it could have finished by itself?"""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if not served.service.engine.busy and not served.service.gate.inside:
            return True
        time.sleep(0.005)
    return False
