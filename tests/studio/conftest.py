"""A server with the studio, whose models answer in milliseconds."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from cutaway.serve.app import Models, create_app, serve_model
from cutaway.studio.app import mount
from cutaway.weights.checkpoint import load
from serve.servers import running
from weights.checkpoints import directory

BERT = {"architectures": ["BertModel"], "num_key_value_heads": 4}


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Models]:
    """One that chats, one that continues texts, one that makes vectors."""
    folder = tmp_path_factory.mktemp("models")
    paths = [
        directory(folder / "chatty"),
        directory(folder / "base", template=None),
        directory(folder / "vectors", family="bert"),
    ]
    served = {path.name: serve_model(load(str(path))) for path in paths}
    yield served
    for model in served.values():
        model.close()


@pytest.fixture(scope="session")
def url(models: Models) -> Iterator[str]:
    app = create_app(models)
    mount(app, models)
    with running(app) as url:
        yield url


@pytest.fixture
def http(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[httpx.Client]:
    """A client; evidence of this test goes to its own folder."""
    monkeypatch.setenv("CUTAWAY_RESULTS", str(tmp_path / "results"))
    with httpx.Client(base_url=url, timeout=30) as client:
        yield client
