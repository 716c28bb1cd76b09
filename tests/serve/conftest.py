"""A server whose models answer in milliseconds, and clients for it."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import openai
import pytest
import torch

from cutaway.serve.app import Served, serve_model
from engine.tiny import decoder, tokenizer
from serve.servers import encoder, loaded, serving


@pytest.fixture(autouse=True, scope="package")
def one_thread() -> Iterator[None]:
    """Models of a few thousand weights gain nothing from more."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


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
