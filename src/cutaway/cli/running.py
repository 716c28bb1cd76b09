"""Options of whatever runs an engine: how the model is computed, and with how much."""

from __future__ import annotations

from typing import Annotated

import typer

Dtype = Annotated[str, typer.Option(help="stored: the file's own; or float32, bfloat16, float16, float64.")]
Device = Annotated[str, typer.Option(help='Where to compute, such as "cpu" or "cuda".')]
Threads = Annotated[int | None, typer.Option(help="Threads that compute; if not given, one for each core.", min=1)]
Context = Annotated[int | None, typer.Option(help="Tokens of prompt and reply, if fewer than the model's.", min=2)]
Speculate = Annotated[
    bool, typer.Option(help="Guess tokens from the text so far, checked before they count: faster where text repeats.")
]
CacheDtype = Annotated[
    str | None, typer.Option(help="Of keys and values: float16, or int8, in which nearly twice as many tokens fit.")
]
Draft = Annotated[
    str | None,
    typer.Option("--draft-model", help="A smaller model of the same vocabulary that guesses tokens as well."),
]


def compute_with(threads: int | None) -> None:
    """From now on."""
    import torch  # takes a second

    if threads:
        torch.set_num_threads(threads)
