"""`cutaway inside` on a tiny model whose tokens are letters: what it prints, its JSON, and what it refuses."""

from __future__ import annotations

import json
import string
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from tokenizers import Tokenizer as Reference
from tokenizers import models
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from cutaway.cli.heat import field, heat_map
from cutaway.cli.main import app
from cutaway.errors import CutawayError
from kit import twins
from kit.precision import all_float64
from kit.threads import one_thread  # noqa: F401

Invoke = Callable[..., Any]
PROMPT = "from:A,to:B"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llama")
    with all_float64():
        twins.twin("llama").reference.save_pretrained(folder)
    Reference(models.BPE({c: i for i, c in enumerate(string.printable[:90])}, [])).save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture
def invoke(monkeypatch: pytest.MonkeyPatch, tiny: Path) -> Invoke:
    """Run `cutaway inside COMMAND`; an error of ours is raised, as `run` would meet it."""
    monkeypatch.setenv("COLUMNS", "200")

    def run(command: str, *arguments: object) -> Any:
        result = CliRunner().invoke(app, ["inside", command, str(tiny), *map(str, arguments)])
        if isinstance(result.exception, CutawayError):
            raise result.exception
        assert result.exit_code == 0, result.output
        return result.stdout

    return run


def test_attention(invoke: Invoke) -> None:
    assert "head 5" in invoke("attention", "-p", PROMPT)
    shown = invoke("attention", "-p", PROMPT, "--layer", 1, "--head", 4)
    assert "Layer 1, head 4" in shown
    assert "10 ␣B" in shown
    found = json.loads(invoke("attention", "-p", PROMPT, "--layer", 1, "--json"))
    assert torch.tensor(found["weights"]).shape == (1, 6, 11, 11)
    assert found["tokens"] == [f"␣{letter}" for letter in PROMPT]


def test_rollout(invoke: Invoke) -> None:
    found = json.loads(invoke("rollout", "-p", PROMPT, "--position", 4, "--json"))
    assert found["position"] == 4
    assert sum(found["rollout"]) == pytest.approx(1)
    assert found["rollout"][5:] == [0] * 6
    assert found["flow"][5:] == [0] * 6
    assert "What reaches" in invoke("rollout", "-p", PROMPT)


def test_lens(invoke: Invoke) -> None:
    found = json.loads(invoke("lens", "-p", PROMPT, "--top", 2, "--json"))
    assert [view["blocks"] for view in found["views"][0]] == [0, 1, 2, 3]
    assert found["views"][0][3]["best"][0] == found["final"][0]
    assert len(invoke("lens", "-p", PROMPT).splitlines()) == 6
    everywhere = invoke("lens", "-p", PROMPT, "--all").splitlines()
    assert everywhere[1].split() == ["blocks", *(f"␣{letter}" for letter in PROMPT)]
    assert [line.split()[0] for line in everywhere[2:]] == ["0", "1", "2", "3"]


def test_ablate(invoke: Invoke) -> None:
    found = json.loads(invoke("ablate", "-p", PROMPT, "--json"))
    assert [(e["layer"], e["index"]) for e in found["effects"]] == [(n, h) for n in range(3) for h in range(6)]
    assert all(e["change"] == pytest.approx(e["loss"] - found["loss"]) for e in found["effects"])
    for arguments in ((), ("--part", "ffn"), ("--part", "neurons", "--layer", 1), ("--layer", 1, "--head", 2)):
        assert "Greatest changes" in invoke("ablate", "-p", PROMPT, "--how", "mean", *arguments)
    only = json.loads(invoke("ablate", "-p", PROMPT, "--part", "neurons", "--layer", 2, "--neuron", 52, "--json"))
    assert [(e["part"], e["layer"], e["index"]) for e in only["effects"]] == [("neurons", 2, 52)]


def test_induction(invoke: Invoke) -> None:
    found = json.loads(invoke("induction", "--length", 9, "--sequences", 2, "--json"))
    assert torch.tensor(found["scores"]).shape == (3, 6)
    assert "the second" in invoke("induction", "--length", 9)


def test_patch(invoke: Invoke) -> None:
    arguments = "-p", PROMPT, "--corrupt", "from:C,to:B", "--answer", "x", "--other", "y"
    found = json.loads(invoke("patch", *arguments, "--json"))
    assert found["answers"] == ["␣x", "␣y"]
    assert found["effects"]["residual"][0] == pytest.approx([0] * 5 + [1] + [0] * 5, abs=1e-4)
    assert "ffn: how much of the way" in invoke("patch", *arguments)


def test_edit(invoke: Invoke, tiny: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text(string.ascii_letters * 3)
    arguments = ["-p", "from:A,to:", "--subject", "A", "--answer", "Z", "--layer", 1, "--text", text]
    asked = ["--paraphrase", "A,to:", "--neighbor", "from:B,to:"]
    report = json.loads(invoke("edit", *arguments, *asked, "--out", tmp_path / "edited", "--json"))
    assert [a["kind"] for a in report["asked"]] == ["fact", "paraphrase", "neighbor"]
    assert report["losses"][-1] < report["losses"][0]
    before, after = (AutoModelForCausalLM.from_pretrained(path).state_dict() for path in (tiny, tmp_path / "edited"))
    differing = [name for name, tensor in after.items() if not torch.equal(tensor, before[name])]
    assert differing == ["model.layers.1.mlp.down_proj.weight"]
    shown = invoke("edit", *arguments, "--matrix", "attention")
    assert "attention 1: 2,880 numbers" in shown


def test_geometry(invoke: Invoke) -> None:
    assert len(json.loads(invoke("neighbors", "k", "--top", 3, "--json"))["neighbors"]) == 3
    assert "Closest to 'k'" in invoke("neighbors", "k")
    found = json.loads(invoke("analogy", "a", "b", "c", "--json"))
    assert not {"␣a", "␣b", "␣c"} & {n["token"] for n in found["nearest"]}
    assert "b - a + c" in invoke("analogy", "a", "b", "c")
    assert sum(json.loads(invoke("plane", *"abcd", "--json"))["explained"]) <= 1
    assert all(f"•{word}" in invoke("plane", *"abcd") for word in "ab")


def test_trace(invoke: Invoke) -> None:
    found = json.loads(invoke("trace", "-p", PROMPT, "--json"))
    assert bytes(found["bytes"]).decode() == PROMPT
    assert found["steps"][-1]["shape"] == [11, twins.VOCAB]
    shown = invoke("trace", "-p", PROMPT)
    assert "layers.0.attention.q" in shown
    assert "layers.1.attention.q" not in shown
    assert "layers.1.attention.q" in invoke("trace", "-p", PROMPT, "--all")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("attention", "-p", PROMPT, "--layer", 3), "3 is not one of the layers 0 to 2"),
        (("attention", "-p", PROMPT, "--head", 0), "not a head of one layer"),
        (("attention", "-p", PROMPT, "--layer", 0, "--head", 6), "0 to 5"),
        (("ablate", "-p", PROMPT, "--part", "neurons"), "needs a layer"),
        (("ablate", "-p", PROMPT, "--layer", 0, "--head", 6), "6 is not one of the 6 heads"),
        (("patch", "-p", PROMPT, "--corrupt", "short"), "different numbers of tokens"),
        (("patch", "-p", PROMPT, "--corrupt", "from:C,to:B", "--answer", "x"), "come together"),
        (("edit", "-p", PROMPT, "--subject", "X", "--answer", "Z"), "stands in the prompt"),
        (("edit", "-p", PROMPT, "--subject", "A", "--answer", "Z", "--text", "/no/such/file"), "cannot be read"),
        (("induction", "--length", 99), "cannot be repeated"),
        (("neighbors", "two"), "not one token"),
        (("lens", "-p", ""), "has 0 tokens"),
    ],
)
def test_bad_input_is_named(invoke: Invoke, arguments: tuple[object, ...], says: str) -> None:
    with pytest.raises(CutawayError, match=says):
        invoke(*arguments)


def drawn(what: object) -> list[str]:
    console = Console(width=120, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(what)
    return console.export_text().splitlines()


def test_a_heat_map_shades_by_size() -> None:
    wide = drawn(heat_map([[0.0, 0.5, 1.0]], ["a"], ["x", "y", "z"]))
    assert wide[1].split() == ["a", "0.00", "0.50", "1.00"]
    narrow = drawn(heat_map([[i / 19 for i in range(20)]], ["a"], [str(i) for i in range(20)]))
    assert narrow[0].split() == ["01234567890123456789"]
    assert narrow[1].split()[1].startswith("···") or "·" in narrow[1]
    assert narrow[1].rstrip().endswith("█")


def test_a_field_puts_words_where_they_are() -> None:
    lines = field([("low", 0.0, 0.0), ("high", 1.0, 1.0), ("left", 0.0, 1.0)]).plain.split("\n")
    assert lines[0].startswith("•left")
    assert lines[0].endswith("•high")
    assert lines[-1] == "•low"
