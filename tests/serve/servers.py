"""Real servers on free ports of the loopback interface."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
import uvicorn

from cutaway.models.encoder import Encoder
from cutaway.models.spec import LayerSpec, PoolingSpec, Spec
from cutaway.nn.attention import AttentionSpec
from cutaway.nn.embedding import EmbeddingSpec
from cutaway.nn.feed_forward import FeedForwardSpec
from cutaway.nn.norms import NormSpec
from cutaway.serve.app import Policy, Served, create_app
from cutaway.weights.checkpoint import Loaded
from engine.tiny import VOCAB


def loaded(name: str, model: Any, tokenizer: Any) -> Loaded:
    return Loaded(name, model.spec, tokenizer, cast(Any, None), lambda: model)


def encoder() -> Encoder:
    torch.manual_seed(0)
    norm = NormSpec("layer", 1e-6)
    attention = AttentionSpec(2, 2, 8, 8**-0.5, causal=False, bias=True)
    layer = LayerSpec(attention, FeedForwardSpec(32, "gelu", False, True), norm, "post")
    return Encoder(Spec("bert", VOCAB, 16, 64, EmbeddingSpec(64), (layer,), None, pooling=PoolingSpec())).eval()


@contextmanager
def running(app: Any) -> Iterator[str]:
    """The URL of a server in a thread."""
    listening = socket.socket(proto=socket.IPPROTO_TCP)
    listening.bind(("127.0.0.1", 0))
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


def at_rest(served: Served, seconds: float = 5) -> bool:
    """Does the engine come to rest before it could have finished by itself?"""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if not served.service.engine.busy and not served.service.gate.inside:
            return True
        time.sleep(0.005)
    return False
