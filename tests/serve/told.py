"""A served model that says what it is told, whatever it is asked."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from cutaway.engine.engine import Engine
from cutaway.engine.runner import Batch
from cutaway.engine.sampler import Logits
from cutaway.engine.service import Service
from cutaway.serve.app import Policy, Served
from engine.tiny import TEMPLATE, VOCAB, spec, tokenizer
from serve.servers import loaded, serving

# Teaches calls in the way of Hermes.
TOOLED = "{% if tools %}<tool_call> {{ tools | tojson }}\n{% endif %}" + TEMPLATE.replace(
    "{{ m.content }}",
    "{{ m.content or '' }}{% for c in m.tool_calls or () %}<tool_call>{{ c.function | tojson }}{% endfor %}",
)
PARAMETERS = {
    "type": "object",
    "properties": {"city": {"enum": ["Ulm", "Rom"]}},
    "required": ["city"],
    "additionalProperties": False,
}
LOOK: dict[str, Any] = {"name": "look", "description": "Looks there.", "parameters": PARAMETERS}
CALL = '<tool_call>\n{"name": "look", "arguments": {"city": "Ulm"}}\n</tool_call>'


class Teller:
    """A runner whose logits want the script's tokens one after the other; a mask may still forbid them."""

    size, page_bytes, model = 16, 1, None

    def __init__(self, text: str, context: int) -> None:
        self.spec = spec(context)
        self.script = [*tokenizer().encode(text, parse_special=False), max(tokenizer().stop_ids)]

    def allocate(self, pages: int, context: int, tokens: int, rows: int) -> None:
        """Nothing is kept."""

    def fit(self, adapter: Any) -> None:
        """It says what it says."""

    def run(self, spans: Batch, wanted: list[int]) -> list[Logits]:
        at = [s.start + i + 1 - len(s.sequence.prompt) for s in spans for i in range(s.count)]
        told = torch.tensor([self.script[min(at[row], len(self.script) - 1)] for row in wanted], dtype=torch.long)
        return Logits.each(30 * torch.nn.functional.one_hot(told, VOCAB).float())

    def copy(self, pairs: list[tuple[int, int]]) -> None:
        """Nothing is kept."""

    def forget(self, sequence: Any) -> None:
        """Nothing is kept."""


def teller(text: str, template: str = TOOLED, context: int = 4096) -> Served:
    """Serves as "told"; it ends its reply after `text`."""
    runner, t = Teller(text, context), tokenizer(template)
    return Served("told", loaded("told", runner, t), Service(Engine(runner, t, cache=1 << 12)))


@contextmanager
def telling(text: str, template: str = TOOLED, policy: Policy | None = None) -> Iterator[str]:
    """The address of a server of that model."""
    with serving(teller(text, template), policy=policy) as url:
        yield url
