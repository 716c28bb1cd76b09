"""`docs/serving.md` keeps its word: what it links exists, and one command without a network serves both formats."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest

from cutaway.labs.catalogue import LABS
from cutaway.weights.convert import convert
from serve.told import LOOK

PAGE = Path(__file__).parents[2] / "docs" / "serving.md"
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in PAGE.read_text("utf-8").splitlines()
    if line.startswith("| ")
]
ASKED = [{"role": "user", "content": "Name the capital of France."}]
DEAD = {f"{kind}_proxy": "http://127.0.0.1:9" for kind in ("http", "https", "all")}  # nobody listens there


def test_what_the_page_links_exists() -> None:
    links = re.findall(r"\]\(([^)]+)\)", PAGE.read_text("utf-8"))
    assert len(links) > 30
    assert [link for link in links if not (PAGE.parent / link).exists()] == []


def test_labs_that_the_page_names_exist() -> None:
    named = [lab for row in ROWS if len(row) == 4 for lab in re.findall(r"`([^`]+)`", row[3])]
    assert len(named) > 20
    assert [lab for lab in named if lab not in LABS] == []


@pytest.fixture(scope="module")
def client(smollm2_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[openai.OpenAI]:
    """One command serves a GGUF file and a directory of safetensors; it can reach nothing but this machine."""
    folder = tmp_path_factory.mktemp("served") / "safetensors"
    convert(str(smollm2_gguf), folder)
    command = [sys.executable, "-m", "cutaway", "serve", str(smollm2_gguf), str(folder)]
    settings = ["--port", "0", "--context", "512", "--running", "2"]
    process = subprocess.Popen(
        [*command, *settings], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=os.environ | DEAD
    )
    try:
        assert process.stdout is not None
        url = re.search(r"http://127\.0\.0\.1:\d+", process.stdout.readline())
        assert url
        with openai.OpenAI(base_url=f"{url.group()}/v1", api_key="none", max_retries=0) as found:
            yield found
    finally:
        process.kill()
        process.communicate()


@pytest.fixture(params=[0, 1], ids=["gguf", "safetensors"])
def model(request: pytest.FixtureRequest, client: openai.OpenAI) -> str:
    served = client.models.list().data
    assert len(served) == 2
    return served[request.param].id


def test_a_stream_of_chat_with_log_probs(client: openai.OpenAI, model: str) -> None:
    asked = {
        "model": model,
        "messages": ASKED,
        "temperature": 0,
        "max_tokens": 12,
        "logprobs": True,
        "top_logprobs": 2,
    }
    choices = [c for chunk in client.chat.completions.create(**asked, stream=True) for c in chunk.choices]
    assert "Paris" in "".join(c.delta.content or "" for c in choices)
    told = [entry for c in choices if c.logprobs for entry in c.logprobs.content]
    assert len(told) > 3
    assert all(entry.logprob <= 0 and entry.top_logprobs[0].token == entry.token for entry in told)


def test_a_stream_of_a_call(client: openai.OpenAI, model: str) -> None:
    asked = {"model": model, "messages": ASKED, "temperature": 0, "max_tokens": 100, "tool_choice": "required"}
    stream = client.chat.completions.create(**asked, tools=[{"type": "function", "function": LOOK}], stream=True)
    choices = [c for chunk in stream for c in chunk.choices]
    calls = [call for c in choices for call in c.delta.tool_calls or []]
    assert calls[0].function.name == "look"
    assert json.loads("".join(call.function.arguments or "" for call in calls))["city"] in {"Ulm", "Rom"}
    assert choices[-1].finish_reason == "tool_calls"
