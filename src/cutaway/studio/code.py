"""GET /code: the source of this package, and nothing else."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from cutaway.models.anatomy import PACKAGE
from cutaway.serve.errors import ApiError

router = APIRouter()


@router.get("/code")
def code(path: str) -> dict[str, Any]:
    """A .py file by its path relative to the package. Errors: 404 for anything else, wherever it leads."""
    if path not in sources():
        raise ApiError(404, f"no file {path!r} in this package", param="path", code="not_found")
    text = (PACKAGE / path).read_text("utf-8")
    return {"path": path, "text": text, "lines": len(text.splitlines())}


def sources() -> frozenset[str]:
    """What may be asked for: a list to choose from is safer than a path to check."""
    return frozenset(p.relative_to(PACKAGE).as_posix() for p in PACKAGE.rglob("*.py") if not p.is_symlink())
