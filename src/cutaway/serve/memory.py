"""Responses that later ones may go on from: the latest, as many as fit."""

from __future__ import annotations

import json
from collections import OrderedDict
from typing import Any

from starlette.requests import Request

from cutaway.serve.errors import ApiError

Json = dict[str, Any]


def memory_of(request: Request) -> Memory:
    """Of the tenant that asks."""
    memory: Memory = request.app.state.memories[request.state.tenant]
    return memory


class Memory:
    """room: characters of JSON that are kept at most; the least recently used goes first."""

    def __init__(self, room: int = 1 << 25) -> None:
        self.room, self.size = room, 0
        self._kept: OrderedDict[str, tuple[Json, list[Json], int]] = OrderedDict()

    def keep(self, response: Json, turns: list[Json]) -> None:
        """turns: the whole conversation up to and with the response, as chat templates know it."""
        size = len(json.dumps(turns)) + len(json.dumps(response))
        self._kept[response["id"]] = response, turns, size
        self.size += size
        while self.size > self.room:
            self.size -= self._kept.popitem(last=False)[1][2]

    def find(self, name: str, field: str | None = None) -> tuple[Json, list[Json]]:
        """A response and its conversation. field: of the request that names it. Errors: 404, it is not kept."""
        if name not in self._kept:
            where = f"{field}: " if field else ""
            raise ApiError(404, f"{where}no such response is kept", param=field, code="response_not_found")
        self._kept.move_to_end(name)
        return self._kept[name][:2]

    def forget(self, name: str) -> None:
        """Errors: see `find`."""
        self.find(name)
        self.size -= self._kept.pop(name)[2]
