"""`cutaway chat`: talk to a model, or ask it once from a script."""

from __future__ import annotations

import json
import secrets
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from cutaway.cli.conversation import HARMLESS, Reply, Talk, interactive, text_of, utf8
from cutaway.cli.running import CacheDtype, Context, Device, Draft, Dtype, Speculate, Threads, compute_with
from cutaway.errors import CutawayError

if TYPE_CHECKING:  # PyTorch takes a second to import, `cutaway --help` should not
    from cutaway.engine.constraints.spec import ConstraintSpec
    from cutaway.engine.engine import Engine
    from cutaway.engine.sequence import Event

Model = Annotated[str, typer.Argument(help="A path or a name, see `cutaway models`.")]
Prompt = Annotated[str | None, typer.Option("--prompt", "-p", help='Ask this and leave; "-" reads it from stdin.')]
System = Annotated[str | None, typer.Option("--system", "-s", help="How the model should behave.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object (needs --prompt).")]
Raw = Annotated[bool, typer.Option("--raw", help="Continue the prompt as text, without chat template.")]
Variables = Annotated[
    str | None, typer.Option("--chat-template-kwargs", help='A JSON object, such as {"enable_thinking": false}.')
]
Logprobs = Annotated[int | None, typer.Option(help="Tokens with N alternatives each (needs --json).", min=0, max=100)]
Temperature = Annotated[float, typer.Option(help="0 always takes the likeliest token.")]
TopK = Annotated[int, typer.Option(help="Draw from the K likeliest tokens; 0 is off.")]
TopP = Annotated[float, typer.Option(help="Draw from the likeliest tokens of mass P; 1 is off.")]
MinP = Annotated[float, typer.Option(help="Draw from tokens at least P times as likely as the best; 0 is off.")]
TypicalP = Annotated[float, typer.Option(help="Draw from the most typical tokens of mass P; 1 is off.")]
NoRepeat = Annotated[int, typer.Option("--no-repeat-ngram", help="No run of N tokens comes twice; 0 is off.")]
Repetition = Annotated[float, typer.Option(help="Divide scores of tokens that occurred; 1 is off.")]
Presence = Annotated[float, typer.Option(help="Subtract from scores of tokens of the reply; 0 is off.")]
Frequency = Annotated[float, typer.Option(help="The same per occurrence.")]
Seed = Annotated[int | None, typer.Option(help="The same seed gives the same reply.")]
Stop = Annotated[list[str] | None, typer.Option(help="End the reply before this text. May be repeated.")]
Choice = Annotated[list[str] | None, typer.Option(help="The reply is one of these texts. May be repeated.")]
Regex = Annotated[str | None, typer.Option(help="The whole reply matches this regular expression.")]
Schema = Annotated[
    Path | None, typer.Option("--json-schema", help="The reply is JSON that the schema in a file allows.")
]
Grammar = Annotated[
    Path | None, typer.Option(help="The reply follows the grammar in a file: Lark, or llama.cpp's EBNF.")
]
Words = Annotated[Path | None, typer.Option(help="The reply is made of the words in a file, such as a learner's list.")]
NumBeams = Annotated[
    int,
    typer.Option(
        "--beams", help="Search for the likeliest reply, N beginnings wide; 0 is off (needs --prompt).", min=0
    ),
]
LengthPenalty = Annotated[float, typer.Option(help="Of beams: a reply ranks by its log-probability / length^P.")]
MaxTokens = Annotated[int, typer.Option(help="Longest reply.")]
Adapter = Annotated[Path | None, typer.Option(help="A folder with a LoRA adapter that PEFT saved.")]


def chat(
    model: Model,
    *,
    prompt: Prompt = None,
    system: System = None,
    as_json: AsJson = False,
    raw: Raw = False,
    variables: Variables = None,
    logprobs: Logprobs = None,
    temperature: Temperature = 0.7,
    top_k: TopK = 0,
    top_p: TopP = 1.0,
    min_p: MinP = 0.0,
    typical_p: TypicalP = 1.0,
    repetition_penalty: Repetition = 1.0,
    presence_penalty: Presence = 0.0,
    frequency_penalty: Frequency = 0.0,
    no_repeat_ngram: NoRepeat = 0,
    choice: Choice = None,
    regex: Regex = None,
    json_schema: Schema = None,
    grammar: Grammar = None,
    words: Words = None,
    beams: NumBeams = 0,
    length_penalty: LengthPenalty = 1.0,
    seed: Seed = None,
    stop: Stop = None,
    max_tokens: MaxTokens = 512,
    context: Context = None,
    speculate: Speculate = False,
    cache_dtype: CacheDtype = None,
    draft: Draft = None,
    adapter: Adapter = None,
    dtype: Dtype = "stored",
    device: Device = "cpu",
    threads: Threads = None,
) -> None:
    """Talk to a model. Example: cutaway chat smollm2-135m-instruct --prompt "What is a llama?" --json"""
    _refuse(as_json and prompt is None, "--json", "needs --prompt")
    _refuse(logprobs is not None and not as_json, "--logprobs", "needs --json")
    _refuse(beams > 0 and prompt is None, "--beams", "needs --prompt")
    _refuse(raw and system is not None, "--system", "has no place in raw text")
    _refuse(raw and variables is not None, "--chat-template-kwargs", "has no place in raw text")
    from cutaway.engine.params import SamplingParams

    settings = SamplingParams(
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        typical_p=typical_p,
        repetition_penalty=repetition_penalty,
        presence_penalty=presence_penalty,
        frequency_penalty=frequency_penalty,
        no_repeat_ngram=no_repeat_ngram,
        constraint=_constraint(choices=choice, regex=regex, schema=json_schema, grammar=grammar, words=words),
        seed=secrets.randbits(31) if seed is None else seed,
        stop=tuple(utf8(s, "--stop") for s in stop or []),
        max_tokens=max_tokens,
        top_logprobs=logprobs or 0,
        adapter="adapter" if adapter else "",
    )
    asked = None if prompt is None else _stdin() if prompt == "-" else utf8(prompt, "--prompt")
    limits = {"context": context, "cache_dtype": cache_dtype, "speculate": speculate, "draft": draft}
    compute_with(threads)
    talk = Talk(*_open(model, raw, dtype, device, limits), settings, raw)
    if adapter:
        talk.engine.adapters.load("adapter", adapter)
    talk.variables = talk.engine.tokenizer.chat_variables(_object(variables))
    talk.begin(None if system is None else utf8(system, "--system"))
    if asked is None:
        interactive(talk)
    elif beams:
        _search(talk, asked, as_json, width=beams, length_penalty=length_penalty)
    elif as_json:
        reply = talk.answer(asked)
        print(json.dumps(report(talk, asked, reply, logprobs is not None), ensure_ascii=False))
    else:
        table = HARMLESS if sys.stdout.isatty() else {}
        talk.answer(asked, lambda text: print(text.translate(table), end="", flush=True))
        print()


def _search(talk: Talk, asked: str, as_json: bool, **rules: Any) -> None:
    from cutaway.engine.search import Beams, beam_search

    found = beam_search(talk.engine, talk.prompt(asked), talk.settings, Beams(**rules))
    texts = [talk.engine.tokenizer.decode(reply.reply) for reply in found]
    replies = [
        {"text": text, "logprob": reply.logprob, "rank": reply.rank, "finish_reason": reply.finish}
        for text, reply in zip(texts, found, strict=True)
    ]
    told = {"model": talk.name, "prompt": asked, "replies": replies}
    print(json.dumps(told, ensure_ascii=False) if as_json else texts[0])


def _constraint(**given: Any) -> ConstraintSpec | None:
    """What the reply must be. given: by kind. Errors: two; a file that cannot be read."""
    from cutaway.engine.constraints.spec import ConstraintSpec

    named = {kind: value for kind, value in given.items() if value}
    _refuse(len(named) > 1, " and ".join(named), "cannot be combined")
    for kind, value in named.items():
        source = text_of(value) if isinstance(value, Path) else value
        make: Callable[[Any], ConstraintSpec] = getattr(ConstraintSpec, kind)
        return make(source.split() if kind == "words" else source)
    return None


def report(talk: Talk, asked: str, reply: Reply, tokens: bool) -> dict[str, Any]:
    """What --json prints."""
    count = len(reply.events)
    usage = {
        "prompt_tokens": reply.prompt_tokens,
        "completion_tokens": count,
        "total_tokens": reply.prompt_tokens + count,
    }
    timing = {"prefill_s": reply.prefill_s, "decode_s": reply.decode_s, "tokens_per_s": reply.speed}
    told = {
        "model": talk.name,
        "prompt": asked,
        "text": reply.text,
        "finish_reason": reply.events[-1].finish,
        "seed": talk.settings.seed,
        "usage": usage,
        "timing": {name: round(value, 4) for name, value in timing.items()},
    }
    return told | {"tokens": [describe(talk, event) for event in reply.events]} if tokens else told


def describe(talk: Talk, event: Event) -> dict[str, Any]:
    """A token with the alternatives that were asked for."""

    def entry(token: int, logprob: float) -> dict[str, Any]:
        piece = talk.engine.tokenizer.token_bytes(token)
        return {"id": token, "text": piece.decode("utf-8", "replace"), "logprob": logprob}

    best = event.choice.alternatives[: talk.settings.top_logprobs]
    chosen = entry(event.choice.token, event.choice.logprob)
    return chosen | {"alternatives": [entry(a.id, a.logprob) for a in best]}


def _open(model: str, raw: bool, dtype: str, device: str, limits: dict[str, Any]) -> tuple[str, Engine]:
    from cutaway.engine.engine import engine_of
    from cutaway.weights.checkpoint import load

    with Console(stderr=True).status(f"loading {escape(Path(model).name)}"):
        loaded = load(model, dtype, device)
        draft = load(limits["draft"], dtype, device) if limits["draft"] else None
    if loaded.spec.pooling:
        raise CutawayError(f"{loaded.name} is an encoder, it cannot generate", "MODEL", "name a decoder")
    if not raw and loaded.tokenizer.chat_template is None:
        raise CutawayError(f"{loaded.name} is a base model without chat template", "MODEL", "--raw continues text")
    return loaded.name, engine_of(loaded, **limits | {"draft": draft})


def _object(text: str | None) -> dict[str, Any]:
    try:
        value = json.loads(text or "{}")
    except ValueError as error:
        raise CutawayError(f"is not JSON: {error}", "--chat-template-kwargs") from None
    _refuse(not isinstance(value, dict), "--chat-template-kwargs", "must be a JSON object")
    return value


def _stdin() -> str:
    try:
        return sys.stdin.buffer.read().decode()
    except UnicodeDecodeError as error:
        raise CutawayError(f"is not UTF-8 (byte {error.start})", "stdin", "convert it first") from None


def _refuse(wrong: bool, option: str, what: str) -> None:
    if wrong:
        raise CutawayError(what, option)
