"""A conversation in the terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape

from cutaway.errors import CutawayError

if TYPE_CHECKING:  # PyTorch takes a second to import, `cutaway --help` should not
    from cutaway.engine.engine import Engine
    from cutaway.engine.params import SamplingParams
    from cutaway.engine.sequence import Event

HELP = """\
/system TEXT   say how the model should behave, and start anew
/reset         start anew
/help          this list
/exit          leave, as does Ctrl-D; Ctrl-C stops a reply"""


@dataclass
class Reply:
    """A reply, and when it came: seconds until the first token, and from there to the last."""

    prompt_tokens: int
    events: list[Event]
    prefill_s: float
    decode_s: float

    @property
    def text(self) -> str:
        return "".join(event.text for event in self.events)

    @property
    def speed(self) -> float:
        """Tokens per second, the first one not counted: it belongs to the prompt."""
        return (len(self.events) - 1) / self.decode_s if self.decode_s else 0.0


@dataclass
class Talk:
    """A conversation with a model: the messages so far, and how to get the next one.

    raw: texts are continued, there are no messages. interruptible: Ctrl-C ends a reply, not the talk.
    variables: what the chat template is told besides, see `Tokenizer.chat_variables`.
    """

    name: str
    engine: Engine
    settings: SamplingParams
    raw: bool = False
    interruptible: bool = False
    messages: list[dict[str, str]] = field(default_factory=list)
    variables: dict[str, Any] = field(default_factory=dict)

    def begin(self, system: str | None = None) -> None:
        """Forget everything but the system message; `system` replaces it."""
        kept = [m for m in self.messages if m["role"] == "system"][:1]
        self.messages = kept if system is None else [{"role": "system", "content": system}]

    def answer(self, text: str, show: Callable[[str], None] = lambda _: None) -> Reply:
        """Say something and get the reply, shown as it comes.

        Errors: the conversation outgrows the context; it is then as before.
        """
        reply = self._listen(self.prompt(text), show)
        self.messages += [{"role": "user", "content": text}, {"role": "assistant", "content": reply.text}]
        return reply

    def prompt(self, text: str) -> list[int]:
        """The tokens that ask for a reply to it. Errors: they leave no room for one in the context."""
        messages, tokenizer = [*self.messages, {"role": "user", "content": text}], self.engine.tokenizer
        prompt = tokenizer.encode(text) if self.raw else tokenizer.chat(messages, **self.variables)
        self.engine.check(prompt)
        return prompt

    def _listen(self, prompt: list[int], show: Callable[[str], None]) -> Reply:
        times, events = [time.perf_counter()], []
        try:
            for event in self.engine.generate(prompt, self.settings):
                times.append(time.perf_counter())
                events.append(event)
                show(event.text)
        except KeyboardInterrupt:
            if not self.interruptible:
                raise
        first = times[min(1, len(times) - 1)]
        return Reply(len(prompt), events, first - times[0], times[-1] - first)


def interactive(talk: Talk) -> None:
    """Ask, answer, ask again. Lines from a pipe are taken as well."""
    talk.interruptible = sys.stdin.isatty()
    if talk.interruptible:
        import readline  # noqa: F401  (gives `input` its editing and history)
    console = Console(highlight=False)
    console.print(f"[bold]{escape(talk.name)}[/] — /help for commands, Ctrl-D to leave")
    while (line := _line(console, talk.interruptible)) is not None:
        command, _, rest = line.strip().partition(" ")
        if command in COMMANDS:
            COMMANDS[command](talk, console, rest.strip())
        elif command == "/exit":
            return
        elif command.startswith("/"):
            console.print(f"no command {command}, see /help", style="red", markup=False)
        elif command:
            respond(talk, console, line)


def respond(talk: Talk, console: Console, line: str) -> None:
    """One turn. At a terminal an error ends the turn, not the conversation."""
    try:
        reply = talk.answer(line, lambda text: _show(console, text))
    except CutawayError as error:
        if not talk.interruptible:
            raise
        console.print(f"{error} (/reset starts anew)", style="red", markup=False)
        return
    speed = f"{len(reply.events)} tokens, {reply.speed:.1f} tokens/s, first after {reply.prefill_s:.2f} s"
    console.print(f"\n[dim]{speed}[/]")


def _system(talk: Talk, console: Console, text: str) -> None:
    talk.begin(text or None)
    console.print("[dim]a new conversation[/]")


COMMANDS: dict[str, Callable[[Talk, Console, str], None]] = {
    "/help": lambda talk, console, rest: console.print(HELP, markup=False),
    "/reset": lambda talk, console, rest: _system(talk, console, ""),
    "/system": _system,
}

# A model may say anything; a terminal must not take it for a command.
HARMLESS = {code: "\ufffd" for code in [*range(32), *range(127, 160)] if chr(code) not in "\n\t"}


def _show(console: Console, text: str) -> None:
    console.out(text.translate(HARMLESS), end="", highlight=False)
    console.file.flush()


def _line(console: Console, terminal: bool) -> str | None:
    """The next line; None at the end of the input. Errors: not UTF-8."""
    while True:
        try:
            return utf8(input("\n> " if terminal else ""), "stdin")
        except EOFError:
            return None
        except UnicodeDecodeError:
            raise CutawayError("is not UTF-8", "stdin", "convert it first") from None
        except KeyboardInterrupt:
            if not terminal:
                raise
            console.print("\n[dim]Ctrl-D or /exit leaves[/]")


def utf8(value: str, where: str) -> str:
    """`value` if it is Unicode proper: what is not UTF-8 on the command line arrives as lone surrogates."""
    try:
        value.encode()
    except UnicodeEncodeError:
        raise CutawayError("is not UTF-8", where, "convert it first") from None
    return value


def text_of(path: Path) -> str:
    """What a text file holds. Errors: it cannot be read; it is not UTF-8."""
    try:
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CutawayError(f"cannot be read: {error}", str(path), "name a text file in UTF-8") from None
