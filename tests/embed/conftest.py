"""Small models, one thread."""

from kit.threads import one_thread

__all__ = ["one_thread"]
