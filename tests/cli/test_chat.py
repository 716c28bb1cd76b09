"""`cutaway chat`: what it prints, what it refuses, and its exit codes."""

from __future__ import annotations

import io
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from cutaway.cli import main
from cutaway.cli.conversation import Talk
from cutaway.engine.engine import Engine
from cutaway.engine.params import SamplingParams
from cutaway.engine.search import Beams, beam_search
from cutaway.errors import CutawayError
from cutaway.weights import checkpoint
from engine.tiny import adapter, decoder, tokenizer, told
from serve.servers import encoder, loaded

COMMAND = [sys.executable, "-m", "cutaway"]
MODELS = {
    "tiny": loaded("tiny", decoder(), tokenizer()),
    "base": loaded("base", decoder(), tokenizer(None)),
    "vectors": loaded("vectors", encoder(), tokenizer()),
}


@pytest.fixture
def cutaway(monkeypatch, capsys):
    """Run the command in this process: (exit status, stdout, stderr)."""
    monkeypatch.setattr(checkpoint, "load", lambda source, dtype, device: MODELS[source])

    def run(*arguments: str, stdin: bytes = b""):
        monkeypatch.setattr(sys, "argv", ["cutaway", *arguments])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin), "utf-8"))
        status = 0
        try:
            main.run()
        except SystemExit as left:
            status = left.code or 0
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        return status, captured.out, captured.err

    return run


def reply(prompt: list[int], **settings):
    return list(Engine(decoder(), tokenizer()).generate(prompt, SamplingParams(**settings), 2))


def test_json(cutaway):
    asked = ("chat", "tiny", "-p", "hé", "--seed", "3", "--max-tokens", "9", "--temperature", "0.9", "--json")
    status, out, _ = cutaway(*asked)
    told, prompt = json.loads(out), tokenizer().chat([{"role": "user", "content": "hé"}])
    events = reply(prompt, seed=3, max_tokens=9, temperature=0.9)
    assert status == 0
    timing = told.pop("timing")
    assert set(timing) == {"prefill_s", "decode_s", "tokens_per_s"}
    assert told == {
        "model": "tiny",
        "prompt": "hé",
        "text": "".join(e.text for e in events),
        "finish_reason": events[-1].finish,
        "seed": 3,
        "usage": {
            "prompt_tokens": len(prompt),
            "completion_tokens": len(events),
            "total_tokens": len(prompt) + len(events),
        },
    }
    tokens = json.loads(cutaway(*asked, "--logprobs", "2")[1])["tokens"]
    assert [t["id"] for t in tokens] == [e.choice.token for e in events]
    assert [t["logprob"] for t in tokens] == pytest.approx([e.choice.logprob for e in events])
    assert [[a["id"] for a in t["alternatives"]] for t in tokens] == [
        [a.id for a in e.choice.alternatives[:2]] for e in events
    ]


def test_guesses_change_nothing(cutaway):
    """One that agrees, one that does not, and the text's own."""
    asked = ("chat", "tiny", "-p", "hé", "--seed", "3", "--max-tokens", "30")
    _, out, _ = cutaway(*asked)
    for guessing in (["--draft-model", "tiny"], ["--draft-model", "base", "--speculate"]):
        assert cutaway(*asked, *guessing)[:2] == (0, out)


def test_plain_text_and_nothing_else(cutaway):
    asked = ("chat", "tiny", "--prompt", "hi", "--seed", "4", "--max-tokens", "9")
    status, out, _ = cutaway(*asked)
    events = reply(tokenizer().chat([{"role": "user", "content": "hi"}]), seed=4, max_tokens=9, temperature=0.7)
    assert (status, out) == (0, "".join(e.text for e in events) + "\n")
    assert cutaway("chat", "tiny", "--prompt", "-", "--seed", "4", "--max-tokens", "9", stdin=b"hi")[1] == out


def test_the_template_can_be_told_not_to_think(cutaway):
    asked = ("chat", "tiny", "-p", "hi", "--temperature", "0", "--max-tokens", "9")
    prompt = tokenizer().chat([{"role": "user", "content": "hi"}]) + tokenizer().encode("<think>\n\n</think>\n\n")
    status, out, _ = cutaway(*asked, "--chat-template-kwargs", '{"enable_thinking": false}')
    assert (status, out) == (0, "".join(e.text for e in reply(prompt, temperature=0, max_tokens=9)) + "\n")


def test_with_an_adapter(cutaway, tmp_path):
    asked = ("chat", "tiny", "-p", "hi", "--temperature", "0", "--max-tokens", "9")
    engine, prompt = Engine(decoder(), tokenizer()), tokenizer().chat([{"role": "user", "content": "hi"}])
    engine.adapters.load("a", adapter(tmp_path, decoder().spec))
    events = engine.generate(prompt, SamplingParams(temperature=0, max_tokens=9, adapter="a"))
    status, out, _ = cutaway(*asked, "--adapter", str(tmp_path))
    assert (status, out) == (0, "".join(e.text for e in events) + "\n")
    assert out != cutaway(*asked)[1]
    status, _, err = cutaway(*asked, "--adapter", str(tmp_path / "gone"))
    assert status == 1
    assert "adapter_config.json" in err


def test_a_reply_can_be_held_to_something(cutaway, tmp_path):
    (tmp_path / "words").write_text("llama\nthe", encoding="utf-8")
    (tmp_path / "schema").write_text('{"const": 7}', encoding="utf-8")
    (tmp_path / "grammar").write_text('root ::= "a" "b"', encoding="utf-8")
    for option, value, expected in (
        ("--choice", "yes", "yes"),
        ("--regex", "[0-9]{3}", r"\d{3}"),
        ("--json-schema", str(tmp_path / "schema"), "7"),
        ("--grammar", str(tmp_path / "grammar"), "ab"),
        ("--words", str(tmp_path / "words"), r"[^a-zA-Z]*((?i:llama|the)[^a-zA-Z]+)*[a-zA-Z]{0,5}"),
    ):
        status, out, _ = cutaway("chat", "tiny", "-p", "hi", "--max-tokens", "30", option, value)
        assert status == 0
        assert re.fullmatch(expected, out.strip()), (option, out)


def test_beams_find_the_likeliest_replies(cutaway):
    asked = ("chat", "tiny", "--raw", "-p", "hi", "--beams", "3", "--max-tokens", "5")
    out, told = cutaway(*asked)[1], json.loads(cutaway(*asked, "--json")[1])
    params = SamplingParams(max_tokens=5)
    found = beam_search(Engine(decoder(), tokenizer()), tokenizer().encode("hi"), params, Beams(width=3))
    assert [(r["logprob"], r["rank"], r["finish_reason"]) for r in told["replies"]] == [r[1:] for r in found]
    assert out == told["replies"][0]["text"] + "\n"


def test_threads(cutaway, monkeypatch):
    told = []
    monkeypatch.setattr(torch, "set_num_threads", told.append)
    for options in ((), ("--threads", "3")):
        assert cutaway("chat", "tiny", "-p", "hi", "--max-tokens", "1", *options)[0] == 0
    assert told == [3]


def test_system_and_raw(cutaway):
    status, out, _ = cutaway("chat", "tiny", "-p", "hi", "-s", "be", "--temperature", "0", "--max-tokens", "9")
    messages = [{"role": "system", "content": "be"}, {"role": "user", "content": "hi"}]
    assert out == "".join(e.text for e in reply(tokenizer().chat(messages), temperature=0, max_tokens=9)) + "\n"
    status, out, _ = cutaway("chat", "base", "--raw", "-p", "hi", "--temperature", "0", "--max-tokens", "9")
    assert out == "".join(e.text for e in reply(tokenizer().encode("hi"), temperature=0, max_tokens=9)) + "\n"
    assert status == 0


def test_a_conversation_from_a_pipe(cutaway):
    lines = b"/help\nhi\n\nagain\n/nothing [bold]\n/system be\n/reset\nhi\n/exit\nnever"
    status, out, _ = cutaway("chat", "tiny", "--max-tokens", "5", "--seed", "1", stdin=lines)
    assert status == 0
    assert out.count("tokens/s") == 3
    assert "no command /nothing" in out
    assert "/system TEXT" in out


def test_messages_are_remembered_and_forgotten():
    talk = Talk("tiny", told("yes"), SamplingParams(temperature=0, max_tokens=3))
    talk.begin("be brief")
    talk.answer("one")
    talk.answer("two")
    assert [m["role"] for m in talk.messages] == ["system", "user", "assistant", "user", "assistant"]
    talk.begin()
    assert talk.messages == [{"role": "system", "content": "be brief"}]
    with pytest.raises(CutawayError):
        talk.answer("x" * 999)
    assert len(talk.messages) == 1


WRONG = [
    (("--json",), "--json"),
    (("--logprobs", "2", "-p", "x"), "--logprobs"),
    (("--raw", "--system", "x"), "--system"),
    (("-p", ""), None),
    (("-p", "x" * 300), "context"),
    (("-p", "caf\udce9"), "--prompt"),
    (("-p", "x", "--stop", "\udce9"), "--stop"),
    (("-p", "x", "--temperature", "-1"), "temperature"),
    (("-p", "x", "--top-p", "1.5"), "top_p"),
    (("-p", "x", "--max-tokens", "0"), "max_tokens"),
    (("-p", "x", "--cache-dtype", "int8"), "--cache-dtype"),
    (("-p", "x", "--regex", "a", "--choice", "b"), "choices and regex"),
    (("-p", "x", "--regex", "("), "regex"),
    (("-p", "x", "--words", "/nowhere"), "/nowhere"),
    (("--beams", "2"), "--beams"),
    (("-p", "x", "--beams", "99"), "99"),
    (("-p", "x", "--stop", ""), "stop"),
    (("-p", "x", "--draft-model", "vectors"), "draft model"),
    (("-p", "x", "--chat-template-kwargs", "{"), "--chat-template-kwargs"),
    (("-p", "x", "--chat-template-kwargs", "[]"), "--chat-template-kwargs"),
    (("-p", "x", "--chat-template-kwargs", '{"thinking": 1}'), "enable_thinking"),
    (("-p", "x", "--chat-template-kwargs", "{}", "--raw"), "--chat-template-kwargs"),
]


@pytest.mark.parametrize(("arguments", "named"), WRONG, ids=str)
def test_what_is_wrong_is_named(cutaway, arguments, named):
    status, out, err = cutaway("chat", "tiny", *arguments)
    if named is None:  # an empty message is a message
        assert status == 0
    else:
        assert (status, out) == (1, "")
        assert named in err


def test_models_that_cannot_chat(cutaway):
    status, _, err = cutaway("chat", "vectors", "-p", "x")
    assert (status, "encoder" in err) == (1, True)
    status, _, err = cutaway("chat", "base", "-p", "x")
    assert (status, "--raw" in err) == (1, True)


@pytest.mark.parametrize("arguments", [("-p", "-"), ()])
def test_stdin_must_be_utf8(cutaway, arguments):
    status, _, err = cutaway("chat", "tiny", *arguments, stdin=b"caf\xe9\n")
    assert (status, "not UTF-8" in err) == (1, True)


def test_unknown_options_are_a_usage_error(cutaway):
    assert cutaway("chat", "tiny", "--tempreature", "1")[0] == 2
    assert cutaway("chat")[0] == 2


def test_the_real_model_knows_the_capital_of_france(smollm2_gguf):
    question = "Name the capital of France."
    asked = ["chat", str(smollm2_gguf), "--prompt", question, "--temperature", "0", "--json"]
    done = subprocess.run([*COMMAND, *asked], capture_output=True, check=True)
    told = json.loads(done.stdout)
    assert "Paris" in told["text"]
    assert told["finish_reason"] == "stop"


SLOW_TALKER = """
import sys, time
import torch
sys.path.insert(0, {tests!r})
from engine.tiny import told, tokenizer
from serve.servers import loaded
from cutaway.cli.main import run
from cutaway.models.decoder import Decoder
from cutaway.weights import checkpoint

engine = told("la " * 900, context=4000)
model = engine.runner.model
class Slow(type(model), Decoder):
    dtype, device = torch.float32, torch.device("cpu")
    def logits(self, hidden_RD):
        time.sleep(0.02)
        return super().logits(hidden_RD)
model.__class__ = Slow
checkpoint.load = lambda source, dtype, device: loaded(source, model, tokenizer())
run()
"""


class Terminal:
    """A command behind a pseudo-terminal, with a model that says "la la la ..." for a minute."""

    def __init__(self, *arguments: str) -> None:
        self.screen, there = pty.openpty()
        script = SLOW_TALKER.format(tests=str(Path(__file__).parent.parent))
        streams = {"stdin": there, "stdout": there, "stderr": there}
        self.process = subprocess.Popen([sys.executable, "-c", script, *arguments], **streams, start_new_session=True)
        os.close(there)
        self.unseen = ""

    def type(self, text: str) -> None:
        os.write(self.screen, text.encode())

    def prompted(self) -> None:
        """Wait for the prompt, and a moment more: before readline is ready, it loses keys and signals."""
        self.until("> ")
        time.sleep(0.5)

    def until(self, text: str, seconds: float = 60) -> None:
        """Read on until `text` appears behind what was waited for before."""
        end = time.monotonic() + seconds
        while text not in self.unseen:
            assert time.monotonic() < end, (text, self.unseen)
            if select.select([self.screen], [], [], 0.1)[0]:
                self.unseen += os.read(self.screen, 65536).decode(errors="replace")
        self.unseen = self.unseen.partition(text)[2]


def test_at_a_terminal_ctrl_c_stops_the_reply_and_ctrl_d_leaves():
    terminal = Terminal("chat", "slow", "--max-tokens", "3000")
    try:
        terminal.prompted()
        terminal.type("Sing!\n")
        terminal.until("la la la")
        terminal.process.send_signal(signal.SIGINT)
        terminal.until("tokens/s")
        terminal.prompted()
        terminal.process.send_signal(signal.SIGINT)
        terminal.until("leaves")
        terminal.prompted()
        terminal.type("/help\n")
        terminal.until("/system TEXT")
        terminal.prompted()
        terminal.type("\x04")
        assert terminal.process.wait(30) == 0
    finally:
        terminal.process.kill()
        os.close(terminal.screen)
