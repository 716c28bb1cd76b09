"""`cutaway serve`: models behind OpenAI's API, and the studio."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from cutaway.cli.running import CacheDtype, Context, Device, Draft, Dtype, Speculate, Threads, compute_with
from cutaway.errors import CutawayError

if TYPE_CHECKING:  # PyTorch takes a second to import, `cutaway --help` should not
    from types import FrameType

    from fastapi import FastAPI

    from cutaway.serve.app import Models, Served
    from cutaway.weights.checkpoint import Loaded

console = Console(stderr=True)

LOOPBACK = ("127.0.0.1", "localhost", "::1")

Names = Annotated[list[str], typer.Argument(help="Models: paths or names, see `cutaway models`.", metavar="MODEL...")]
Encoders = Annotated[list[str] | None, typer.Option(help="An encoder for /v1/embeddings. May be repeated.")]
Host = Annotated[str, typer.Option(help="Address to listen on.")]
Port = Annotated[int, typer.Option(help="0 takes a free one.", min=0, max=65535)]
CacheMb = Annotated[
    int | None,
    typer.Option("--cache-mb", help="Megabytes for keys and values; if not given 1,074, on a GPU most of it.", min=1),
]
Running = Annotated[int, typer.Option(help="Sequences computed at the same time.", min=1)]
Waiting = Annotated[int, typer.Option(help="Sequences that may queue; more are refused with 429.", min=0)]
Keys = Annotated[
    list[str] | None,
    typer.Option(
        "--api-key",
        help="Clients must show this key; if none is given, that in CUTAWAY_API_KEY. May be repeated: clients with "
        "different keys share time, and nothing kept.",
    ),
]
Timeout = Annotated[float | None, typer.Option(help="Seconds that a reply may take; then it ends with 504.", min=0.001)]
Origins = Annotated[list[str] | None, typer.Option(help='A web origin that may use the server, "*" for all.')]
Hosts = Annotated[list[str] | None, typer.Option(help="A further name the server is called by.")]
Drain = Annotated[float, typer.Option(help="Seconds that running requests have to end after SIGTERM.", min=0)]
Prompts = Annotated[bool, typer.Option("--log-prompts", help="Log what is asked, not only that and how long.")]
Adapter = Annotated[
    list[str] | None,
    typer.Option(
        help="A LoRA adapter that PEFT saved, for the only decoder; clients name it as a model. May be repeated.",
        metavar="NAME=FOLDER",
    ),
]
AdaptersFrom = Annotated[
    Path | None, typer.Option(help="Let clients have adapters loaded that lie below this folder.", metavar="FOLDER")
]
Open = Annotated[bool, typer.Option("--no-api-key", help="Listen beyond this machine without a key.")]


def serve(
    models: Names,
    *,
    embeddings: Encoders = None,
    host: Host = "127.0.0.1",
    port: Port = 8000,
    dtype: Dtype = "stored",
    device: Device = "cpu",
    threads: Threads = None,
    context: Context = None,
    running: Running = 16,
    speculate: Speculate = False,
    cache_dtype: CacheDtype = None,
    cache_mb: CacheMb = None,
    draft: Draft = None,
    max_waiting: Waiting = 64,
    timeout: Timeout = None,
    api_key: Keys = None,
    allow_origin: Origins = None,
    allow_host: Hosts = None,
    no_api_key: Open = False,
    drain: Drain = 30,
    log_prompts: Prompts = False,
    adapter: Adapter = None,
    adapters_from: AdaptersFrom = None,
) -> None:
    """Serve models over HTTP, and the studio. Example: cutaway serve smollm2-135m-instruct --port 8000"""
    keys = keys_of(api_key)
    if host not in LOOPBACK and not keys and not no_api_key:
        hint = "give --api-key KEY, or --no-api-key if everyone there may use the models"
        raise CutawayError(f"{host} can be reached from other machines", "--host", hint)
    with listening(host, port) as taken, ExitStack() as stack:
        from cutaway.serve.app import Policy, create_app

        compute_with(threads)
        loaded = load_all(models, embeddings or [], dtype, device)
        smaller = next(iter(load_all([draft] if draft else [], [], dtype, device).values()), None)
        settings = {"context": context, "running": running, "max_waiting": max_waiting, "speculate": speculate,
                    "draft": smaller, "cache_dtype": cache_dtype,
                    "cache": None if cache_mb is None else cache_mb * 10**6}  # fmt: skip
        served = {name: stack.enter_context(started(model, settings)) for name, model in loaded.items()}
        load_adapters(served, adapter or [])
        known = frozenset(name.lower() for name in [*LOOPBACK, host, *(allow_host or [])])
        named = known if allow_host or host in LOOPBACK else None
        policy = Policy(keys, named, frozenset(allow_origin or []), timeout=timeout)
        app = create_app(served, policy, log_prompts, adapters_from)
        mount_studio(app, served)
        log_requests()
        app.state.lifecycle.proven()
        run(app, taken, f"http://{f'[{host}]' if ':' in host else host}:{taken.getsockname()[1]}", drain)


def keys_of(given: list[str] | None) -> tuple[str, ...]:
    """The keys given, else the one in the environment, spaces and all."""
    return tuple(given or filter(None, [os.environ.get("CUTAWAY_API_KEY")]))


@contextmanager
def listening(host: str, port: int) -> Iterator[socket.socket]:
    """Take the port before the models are loaded, to tell at once if it is in use. It does not accept yet."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # Without the protocol's number asyncio would not set TCP_NODELAY, and every small message wait 40 ms.
    with socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP) as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with told_of_the_port(host, port):
            taken.bind((host, port))
        yield taken


@contextmanager
def told_of_the_port(host: str, port: int) -> Iterator[None]:
    """Blame the address for what the system refuses."""
    try:
        yield
    except OSError as error:
        hint = "another server may be running; --port 0 takes a free one"
        raise CutawayError(f"cannot listen on {host}:{port}: {error.strerror}", "--port", hint) from None


def load_all(sources: list[str], encoders: list[str], dtype: str, device: str) -> dict[str, Loaded]:
    """Models by name. Errors: two of the same name; a decoder among the encoders."""
    from cutaway.weights.checkpoint import load

    models: dict[str, Loaded] = {}
    for i, source in enumerate([*sources, *encoders]):
        with console.status(f"loading {escape(Path(source).name)}"):
            loaded = load(source, dtype, device)
        if i >= len(sources) and not loaded.spec.pooling:
            raise CutawayError(f"{source} is a decoder", "--embeddings", "name it as a MODEL, without the option")
        if loaded.name in models:
            raise CutawayError(f"two models are called {loaded.name!r}", source, "name each once")
        models[loaded.name] = loaded
    return models


def load_adapters(served: Models, given: list[str]) -> None:
    """Adapters as NAME=FOLDER. Errors: another form; those of `load`."""
    from cutaway.serve.adapters import load

    for each in given:
        name, equals, folder = each.partition("=")
        if not equals:
            raise CutawayError(f"{each!r} is not NAME=FOLDER", "--adapter")
        load(served, name, Path(folder))


@contextmanager
def started(loaded: Loaded, settings: dict[str, Any]) -> Iterator[Served]:
    """A model at work, that has shown it by an answer."""
    from cutaway.serve.app import serve_model

    served = serve_model(loaded, **settings)
    try:
        with console.status(f"asking {escape(served.name)}"):
            prove(served)
        yield served
    finally:
        served.close()


def prove(served: Served) -> None:
    """Compute one token, or one vector."""
    import asyncio

    from cutaway.embed.sentences import encode
    from cutaway.engine.params import SamplingParams

    tokenizer = served.loaded.tokenizer
    if served.service:
        prompt = tokenizer.encode("Hello")[: served.context - 1]
        asyncio.run(served.service.complete(prompt, SamplingParams(temperature=0, max_tokens=1)))
    elif served.encoder:
        encode(served.encoder, tokenizer, ["Hello"])


def mount_studio(app: FastAPI, served: Models) -> None:
    """The studio's routes and pages, as far as they are there."""
    import cutaway
    from cutaway.studio.app import mount

    mount(app, served)
    if not (Path(cutaway.__file__).parent / "studio" / "static" / "index.html").exists():
        console.print("The studio is not built, so only the APIs are served; `make studio` builds it.")


def log_requests() -> None:
    """A line of JSON on stderr for each request."""
    import logging

    from cutaway.serve.requestlog import log

    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False


def run(app: FastAPI, taken: socket.socket, url: str, drain: float) -> None:
    """Serve until SIGINT or SIGTERM; print the URL once connections are accepted.

    SIGTERM lets what runs end, at most `drain` seconds; SIGINT, and a second SIGTERM, do not wait.
    """
    import signal

    import uvicorn

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            with told_of_the_port(*taken.getsockname()[:2]):
                await super().startup(sockets)
            if self.started:
                typer.echo(f"Cutaway answers at {url}")

        def handle_exit(self, sig: int, frame: FrameType | None) -> None:
            if sig == signal.SIGTERM and lifecycle.phase != "draining":
                lifecycle.drain(drain)
            else:
                super().handle_exit(sig, frame)

        async def on_tick(self, counter: int) -> bool:
            return await super().on_tick(counter) or lifecycle.over

    lifecycle = app.state.lifecycle
    # After a clean shutdown uvicorn raises the signal again; it has been obeyed by then.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)
    # Clients close an idle connection after 5 s or so; who closes later never closes one on which a request is coming.
    config = uvicorn.Config(
        app, log_level="warning", timeout_graceful_shutdown=3, timeout_keep_alive=75, server_header=False
    )
    Server(config).run(sockets=[taken])
