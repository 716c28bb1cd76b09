"""The figures that engines count themselves, in Prometheus' terms: read when asked for, never copied."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from cutaway.engine.drafter import Drafter
from cutaway.engine.service import Service

Figure = float | Mapping[str, float] | Mapping[tuple[str, ...], float]  # one, or one for each value of the labels
Row = tuple[str, str, tuple[str, ...], Callable[[Service], Figure]]


def waiting(service: Service) -> int:
    """Sequences that were let in but are not computed yet."""
    return max(0, service.gate.inside - len(service.engine.scheduler.running))


def _pages(service: Service) -> dict[str, float]:
    pages = service.engine.scheduler.pages
    return {"free": pages.free, "cached": pages.cached, "held": pages.held}


def _usage(service: Service) -> float:
    pages = service.engine.scheduler.pages
    return pages.held / pages.count


def _drafted(service: Service) -> dict[str, float]:
    return {str(place): count for place, count in sorted(service.engine.stats.drafted.copy().items())}


def _accepted(service: Service) -> dict[str, float]:
    """By place; a place where nothing was ever right is told too."""
    accepted = service.engine.stats.accepted.copy()
    return {place: accepted[int(place)] for place in _drafted(service)}


def _at_work(service: Service) -> dict[tuple[str, ...], float]:
    """The adapters of those who run and wait, and when that was: gateways send requests where theirs is at work."""
    scheduler = service.engine.scheduler
    names = [{s.adapter.name for s in [*some] if s.adapter} for some in (scheduler.running, scheduler.waiting)]
    return {(str(service.engine.limit), *(",".join(sorted(some)) for some in names)): time.time()}


def _by_drafter(service: Service, counts: Callable[[Drafter], Counter[int]]) -> dict[str, float]:
    drafters = service.engine.drafter.members() if service.engine.drafter else ()
    return {type(drafter).__name__: counts(drafter).copy().total() for drafter in drafters}


# name, help, labels beside the model's, figure
GAUGES: tuple[Row, ...] = (
    ("num_requests_running", "Sequences being computed.", (), lambda s: len(s.engine.scheduler.running)),
    ("num_requests_waiting", "Sequences accepted, not begun.", (), waiting),
    ("kv_cache_usage_perc", "Share of the pages that is held; 1 is all.", (), _usage),
    ("pages", "Pages of the cache.", ("state",), _pages),
    ("adapters", "LoRA adapters that are loaded.", (), lambda s: len(s.engine.adapters.loaded)),
    (
        "lora_requests_info",
        "LoRA adapters at work.",
        ("max_lora", "running_lora_adapters", "waiting_lora_adapters"),
        _at_work,
    ),
)
COUNTERS: tuple[Row, ...] = (
    ("num_preemptions", "Sequences put back to be computed again.", (), lambda s: s.engine.scheduler.preemptions),
    ("prefix_cache_queries", "Tokens looked up in pages.", (), lambda s: s.engine.scheduler.pages.lookups),
    ("prefix_cache_hits", "Tokens found in pages.", (), lambda s: s.engine.scheduler.pages.hits),
    ("adapter_requests", "Sequences asked of an adapter.", ("adapter",), lambda s: s.engine.adapters.asked.copy()),
    ("page_evictions", "Published pages given away.", (), lambda s: s.engine.scheduler.pages.evictions),
    ("spec_decode_num_drafts", "Times that tokens were guessed.", (), lambda s: s.engine.stats.drafted[0]),
    ("spec_decode_num_draft_tokens", "Tokens guessed.", (), lambda s: sum(_drafted(s).values())),
    ("spec_decode_num_accepted_tokens", "Guesses that were right.", (), lambda s: sum(_accepted(s).values())),
    ("spec_decode_num_accepted_tokens_per_pos", "The same, by place in the draft.", ("position",), _accepted),
    ("spec_drafted", "Tokens guessed, by whom.", ("drafter",), lambda s: _by_drafter(s, lambda d: d.drafted)),
    (
        "spec_accepted",
        "Guesses that were right, by whose.",
        ("drafter",),
        lambda s: _by_drafter(s, lambda d: d.accepted),
    ),
)


class EngineFigures(Collector):
    """The tables above, for every service by its model's name."""

    def __init__(self, prefix: str, services: Mapping[str, Service]) -> None:
        self.prefix, self.services = prefix, services

    def describe(self) -> list[Metric]:
        """Nothing: what is collected need not be known before."""
        return []

    def collect(self) -> Iterator[Metric]:
        """The figures of this moment."""
        for kind, rows in ((GaugeMetricFamily, GAUGES), (CounterMetricFamily, COUNTERS)):
            for name, help, labels, read in rows:
                family = kind(self.prefix + name, help, labels=("model_name", *labels))
                for model, service in self.services.items():
                    figure = read(service)
                    for value, number in figure.items() if isinstance(figure, Mapping) else [((), figure)]:
                        family.add_metric([model, *([value] if isinstance(value, str) else value)], number)
                yield family
