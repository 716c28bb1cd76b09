"""`cutaway pull`, `models`, `inspect`, `convert` as a user and as a program meet them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from cutaway.cli.main import app
from cutaway.cli.portrait import amount, folded, spans
from cutaway.errors import CutawayError
from cutaway.models.anatomy import Anatomist
from cutaway.weights import sources
from cutaway.weights.checkpoint import load
from weights import checkpoints

Invoke = Callable[..., Any]


@pytest.fixture
def invoke(monkeypatch: pytest.MonkeyPatch) -> Invoke:
    """Run the command; an error of ours is raised, as `run` would meet it."""
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments: str | Path) -> Any:
        result = CliRunner().invoke(app, [str(a) for a in arguments])
        if isinstance(result.exception, CutawayError):
            raise result.exception
        assert result.exit_code == 0, result.output
        return result

    return run


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoints.directory(tmp_path_factory.mktemp("models") / "tiny")


# ---- inspect


def test_inspect_shows_where_the_134515008_parameters_are(invoke: Invoke, smollm2_gguf: Path) -> None:
    shown = re.sub(r" +", " ", invoke("inspect", smollm2_gguf).stdout)
    for line in (
        "parameters 134,515,008",
        "embedding.tokens 28,311,552 21.0% V·D = 49,152 × 576",
        "layers.*.attention.q 9,953,280 7.4% L·D·(H·K) = 30 × 576 × 576",
        "weights 513.13 MiB",
        "134,515,008 × 4",
        "0-29 Block 30 × 3,540,096 79.0%",
        "tokens Embedding 49152×576 Q8_0 28,311,552",
        "q Linear 576×576 Q4_1 30 × 331,776",
        "KV cache 90.00 MiB",
        "30 × 2 × 3 × 64 × 2,048 × 1 × 4",
    ):
        assert line in shown, line


def test_inspect_folds_layers_that_are_alike(invoke: Invoke, gemma3_gguf: Path) -> None:
    shown = re.sub(r" +", " ", invoke("inspect", gemma3_gguf, "--depth", 2).stdout)
    assert "├ 0-4, 6-10, 12-16 Block 15 × 5,573,632" in shown
    assert "└ 5, 11, 17 Block 3 × 5,573,632" in shown
    assert "attention Attention" not in shown, "that would be the third level"


def test_inspect_tells_programs_the_same(invoke: Invoke, tiny: Path) -> None:
    told = json.loads(invoke("inspect", tiny, "--json", "--context", 100, "--batch", 3, "--dtype", "bfloat16").stdout)
    cost = load(str(tiny)).model.cost
    memory = {term["name"]: term["value"] for term in told["memory"]}
    assert told["name"] == "tiny"
    assert told["tree"]["parameters"] == sum(part["value"] for part in told["parts"]) == cost.parameters
    assert sum(term["value"] for term in told["flops"]) == cost.flops_per_token(100) == told["tree"]["flops_per_token"]
    assert memory == {term.name: term.value for term in cost.memory(100, 3, "bfloat16")}
    assert told["stored"] == {"F32": 20}
    assert told["spec"] == json.loads(json.dumps(load(str(tiny)).model.spec.to_dict()))


def test_inspect_reads_no_weight(invoke: Invoke, tmp_path: Path) -> None:
    """It works on a file whose weights are holes."""
    path = checkpoints.directory(tmp_path / "holes")
    file = path / "model.safetensors"
    header = 8 + int.from_bytes(file.read_bytes()[:8], "little")
    file.write_bytes(file.read_bytes()[:header] + b"\xff" * (file.stat().st_size - header))
    assert "tokens" in invoke("inspect", path).stdout


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--context", "129"], "context: must be between 1 and 128"),
        (["--context", "0"], "context"),
        (["--batch", "0"], "batch"),
        (["--dtype", "int4"], "dtype"),
    ],
)
def test_inspect_refuses_by_name(invoke: Invoke, tiny: Path, options: list[str], named: str) -> None:
    with pytest.raises(CutawayError, match=named):
        invoke("inspect", tiny, *options)


def test_inspect_fits_a_narrow_terminal(invoke: Invoke, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert max(map(len, invoke("inspect", tiny).stdout.splitlines())) <= 80


def test_amounts_and_spans_read_well() -> None:
    assert [amount(n, "bytes") for n in (0, 1023, 1024, 1536 * 1024)] == ["0 B", "1023 B", "1.00 KiB", "1.50 MiB"]
    assert [amount(n, "FLOP") for n in (999, 2_500_000)] == ["999 FLOP", "2.50 MFLOP"]
    assert spans([0, 1, 2, 5, 7, 8]) == "0-2, 5, 7-8"


def test_layers_that_differ_are_not_folded() -> None:
    model = checkpoints.model("gemma3", sliding_window=4, num_hidden_layers=7, query_pre_attn_scalar=8)
    layers = Anatomist(model, 9).draw().children[1]
    assert [fold.label for fold in folded([layers])] == ["0-4, 6", "5"]


# ---- convert


@pytest.mark.parametrize("target", ["made", "made.gguf"])
def test_convert_says_what_became_of_what(invoke: Invoke, tiny: Path, tmp_path: Path, target: str) -> None:
    told = json.loads(invoke("convert", tiny, tmp_path / target, "--json").stdout)
    assert (told["path"], told["type"]) == (str(tmp_path / target), "BF16")
    assert told["parameters"] == load(str(tmp_path / target)).model.cost.parameters
    said = invoke("convert", tiny, tmp_path / target, "--force", "--type", "F32")
    assert said.stdout == ""
    assert "F32, " in said.stderr


def test_convert_refuses_to_overwrite(invoke: Invoke, tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "made.gguf").write_text("mine")
    with pytest.raises(CutawayError, match="--force"):
        invoke("convert", tiny, tmp_path / "made.gguf")
    assert (tmp_path / "made.gguf").read_text() == "mine"


# ---- models, pull


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CUTAWAY_HOME", str(tmp_path))
    return tmp_path


@pytest.mark.usefixtures("home")
def test_models_lists_the_catalogue_before_anything_is_pulled(invoke: Invoke) -> None:
    told = json.loads(invoke("models", "--json").stdout)["models"]
    assert {model["name"] for model in told} == set(sources.CATALOGUE)
    assert all(model["path"] is None and model["bytes"] > 0 and model["license"] for model in told)
    shown = invoke("models").stdout
    assert all(name in shown for name in sources.CATALOGUE)


def test_models_lists_what_was_pulled(invoke: Invoke, home: Path) -> None:
    folder = checkpoints.directory(home / "models" / "hf:org--name".replace(":", "--"))
    files = {p.name: {"bytes": p.stat().st_size, "sha256": ""} for p in folder.iterdir()}
    record = {"source": "hf:org/name", "license": "MIT", "pulled": "2026-01-02T03:04:05+00:00", "files": files}
    (folder / sources.RECORD).write_text(json.dumps(record))
    told = {model["name"]: model for model in json.loads(invoke("models", "--json").stdout)["models"]}
    assert set(told) == {"hf:org/name", *sources.CATALOGUE}
    mine = told["hf:org/name"]
    assert (mine["path"], mine["license"]) == (str(folder), "MIT")
    assert mine["bytes"] == sum(file["bytes"] for file in files.values())
    assert "2026-01-02" in invoke("models").stdout


def test_pull_reports_and_shows_the_license(invoke: Invoke, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fetch(source: str, progress: sources.Progress) -> Path:
        for received in (0, 50, 100):
            progress(received, 100 if received else None)
        return tiny

    monkeypatch.setattr(sources, "pull", fetch)
    told = invoke("pull", "gemma-3-270m", "all-minilm-l6-v2", "--json")
    assert json.loads(told.stdout) == {
        "pulled": [
            {"source": "gemma-3-270m", "path": str(tiny), "license": "Gemma Terms of Use"},
            {"source": "all-minilm-l6-v2", "path": str(tiny), "license": "Apache-2.0"},
        ]
    }
    assert "ai.google.dev/gemma/terms" in told.stderr


@pytest.mark.usefixtures("home")
def test_pulling_a_path_needs_no_network(invoke: Invoke, tiny: Path) -> None:
    assert str(tiny) in invoke("pull", tiny).stdout


@pytest.mark.usefixtures("home")
def test_what_was_not_pulled_says_how(invoke: Invoke) -> None:
    with pytest.raises(CutawayError, match="cutaway pull smollm2-135m-instruct"):
        invoke("inspect", "smollm2-135m-instruct")
