"""The studio on a server: its API under /studio/api, its pages at /.

Nothing here computes: models are described by `cutaway.models`, replies come from the server's own `Service`, claims
from `cutaway.labs`. The studio sees what any client could, and more of it.
"""

from __future__ import annotations

from fastapi import FastAPI

from cutaway.serve.app import Models
from cutaway.studio import budget, chat, code, engine, inside, labs, model, pages

PREFIX = "/studio/api"


def mount(app: FastAPI, models: Models) -> None:
    """Add the studio to an application of `cutaway.serve.app`; `models` are those it serves."""
    app.state.models, app.state.laboratory = models, labs.Laboratory()
    for part in (model, code, chat, labs, inside, budget, engine):
        app.include_router(part.router, prefix=PREFIX)
    app.include_router(pages.router)
