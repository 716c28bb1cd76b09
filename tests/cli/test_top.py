"""`cutaway top`: one look at an engine, and how it is drawn."""

from __future__ import annotations

import json

import pytest
from rich.console import Console
from typer.testing import CliRunner

from cutaway.cli.main import app
from cutaway.cli.top import bars, look, page_map, screen, state
from cutaway.errors import CutawayError
from cutaway.serve.app import Policy, create_app, serve_model
from cutaway.studio.app import mount
from engine.tiny import decoder, tokenizer
from serve.servers import loaded, running


@pytest.fixture(scope="module")
def url():
    served = serve_model(loaded("tiny", decoder(), tokenizer()))
    server = create_app({"tiny": served}, Policy(api_keys=("key",)))
    mount(server, {"tiny": served})
    with running(server) as url:
        yield url
    served.close()


def test_one_look_as_json(url):
    done = CliRunner().invoke(app, ["top", url, "--json", "--api-key", "key"])
    found = json.loads(done.stdout)
    assert (found["model"], found["running"], found["steps"]) == ("tiny", 0, [])


@pytest.mark.parametrize(
    ("server", "model", "key", "says"),
    [
        ("{url}", None, "wrong", "API key"),
        ("{url}", "other", "key", "no model"),
        ("http://127.0.0.1:1", None, None, "no Cutaway"),
    ],
)
def test_what_goes_wrong_is_said(url, server, model, key, says):
    with pytest.raises(CutawayError, match=says):
        look(server.format(url=url), model, key)


def test_the_screen_fits_and_tells_everything(url):
    found = look(url, None, "key")
    holders = [1, 2, -1, 0] * 200
    sequence = {"id": 7, "state": "running", "prompt": 5, "cached": 0, "computed": 6, "reply": 2, "pages": [0],
                "priority": 3, "preempted": 1}  # fmt: skip
    steps = [{"spans": [[7, 0, count, 0, 0]]} for count in (1, 8, 4)]
    found |= {
        "pages": found["pages"] | {"count": 800, "holders": holders},
        "steps": steps,
        "sequences": [sequence] * 99,
    }
    console = Console(width=80, height=30)
    with console.capture() as capture:
        console.print(screen(found, 80, 30))
    text = capture.get()
    assert len(text.splitlines()) <= 30
    assert "▁█▄" in text
    assert "running 0/16" in text
    assert text.splitlines()[-1].split() == ["7", "running", "5", "0", "6", "2", "1", "3", "1"]


def test_pages_become_marks():
    assert [state(n) for n in (-1, 0, 1, 2, 9)] == ["cached", "free", "held", "shared", "shared"]
    assert page_map([1, 2, -1, 0], 80, 5).plain == "██▒·"
    assert page_map([0, -1, 0, 0, 3, 0], 1, 3).plain == "▒·█"


def test_bars_have_the_height_of_the_highest():
    assert bars([0, 1, 8, 4], 80) == " ▁█▄"
    assert bars([1, 2, 3], 2) == "▆█"
    assert bars([], 5) == ""
