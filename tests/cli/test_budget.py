"""`cutaway budget` as a user and as a program meet it."""

from __future__ import annotations

import json
import re

import pytest
from typer.testing import CliRunner

from cutaway.cli.budget import spelled
from cutaway.cli.main import app
from cutaway.errors import CutawayError


def invoke(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["budget", *arguments], env={"COLUMNS": "220"})
    if isinstance(result.exception, CutawayError):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.mark.parametrize(
    ("arguments", "lines"),
    [
        ("models", ["gpt-3 174,604,259,328 174,579,093,504 4.50 MiB Brown et al. 2020"]),
        ("chips", ["h200 989.4 TFLOP/s 67 TFLOP/s 141 GB 4.8 TB/s NVIDIA H200"]),
        ("parameters deepseek-v3 --parts", ["parameters 671,026,419,200", "active per token 36,625,639,936"]),
        ("flops llama-3-8b --context 8192", ["head 1.05 GFLOP 2·V·D = 2 × 128,256 × 4,096", "rule of thumb 11.79 %"]),
        ("flops t5-small --source 100", ["cross 1.23 MFLOP L·4·H·K·S = 6 × 4 × 8 × 64 × 100"]),
        ("kv gpt-oss-120b --context 131072", ["KV cache 4.50 GiB", "if every layer saw everything 9.00 GiB"]),
        ("kv bert-base", ["KV cache 0 B"]),
        ("memory llama-3-8b", ["activations, all layers 97.00 GiB L·s·B·D·(34 + 5·H·s/D)"]),
        ("roofline llama-3-8b --context 256", ["ridge 295.3 FLOP/byte", "batch at balance 754.8"]),
        ("context llama-3-8b --factor 4", ["NTK: base 2,044,497 θ·f^(K/(K − 2))", "KV then 4.00 GiB"]),
        ("scale 10", ["depth and width, each 2.154 times f^(1/3) = 10^(1/3)"]),
        ("experts deepseek-v3 --batch 32", ["distinct experts read 163.3", "exchanged 168.00 KiB"]),
        ("attention 4096", ["naive 130.00 MiB"]),
        ("rows 30000 --width 768 --narrow 128", ["numbers, factorized 3,938,304 V·E + E·D"]),
    ],
)
def test_what_is_printed(arguments: str, lines: list[str]) -> None:
    shown = re.sub(r" +", " ", invoke(*arguments.split()))
    for line in lines:
        assert line in shown, shown


def test_programs_get_values_units_and_formulas() -> None:
    told = {f["name"]: f for f in json.loads(invoke("kv", "llama-3-8b", "--json"))["figures"]}
    assert told["KV per token"] == {
        "name": "KV per token", "value": 131072, "unit": "bytes",
        "formula": "L·2·G·K·b", "numbers": "32 × 2 × 8 × 128 × 2",
    }  # fmt: skip
    assert told["sequences that fit"]["value"] == 52
    assert len(json.loads(invoke("models", "--json"))["rows"]) >= 25
    assert {row["chip"] for row in json.loads(invoke("chips", "--json"))["rows"]} >= {"a100-80gb", "h100-sxm"}


def test_unknown_names_get_the_nearest() -> None:
    with pytest.raises(CutawayError, match="did you mean h200 or h100-sxm"):
        invoke("roofline", "llama-3-8b", "--chip", "h100")
    with pytest.raises(CutawayError, match="published shapes: gpt-oss-120b"):
        invoke("experts", "gpt-oss-12b")


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0.00788, "s", "7.88 ms"),
        (3e-9, "s", "3 ns"),
        (12, "s", "12 s"),
        (0, "s", "0 s"),
        (1.5, "%", "1.5 %"),
        (2**30, "bytes", "1.00 GiB"),
        (754.75, "", "754.8"),
        (40889.9, "", "40,890"),
        (1e-4, "", "0.0001"),
    ],
)
def test_numbers_are_rounded_for_readers(value: float, unit: str, text: str) -> None:
    assert spelled(value, unit) == text
