"""The one exception a user may meet: it names what was wrong, where, and what to do about it."""

from __future__ import annotations


class CutawayError(Exception):
    """Something the user can mend.

    what:  the fact, in one sentence ("tensor 'output.weight' ends past the end of the file").
    where: file, field or argument it concerns; empty if the fact already says so.
    hint:  what to do next; empty if nothing sensible can be advised.
    """

    def __init__(self, what: str, where: str = "", hint: str = "") -> None:
        self.what, self.where, self.hint = what, where, hint
        super().__init__(self.__str__())

    def __str__(self) -> str:
        place = f"{self.where}: " if self.where else ""
        advice = f" ({self.hint})" if self.hint else ""
        return f"{place}{self.what}{advice}"


class NotFound(CutawayError):
    """A model, file, lab or tensor that was asked for by name does not exist."""
