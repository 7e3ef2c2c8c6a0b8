"""Copies the figures of a server to Ray's metrics, which Ray's agents export to Prometheus, from every machine alike.

Names and labels are those of ``/metrics``; Ray puts ``ray_`` before the names, and labels the replica. A histogram
arrives as counters of its buckets (``..._bucket``, label ``le``), its sum and its count.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from prometheus_client import CollectorRegistry


class Exported(Protocol):
    """Makes the metrics of an exporter; `ray.serve.metrics` is one."""

    Counter: Any
    Gauge: Any


class MetricsCopy:
    """Copies what has changed since the last time.

    Args:
        exported: where metrics are made.
    """

    def __init__(self, exported: Exported) -> None:
        self._exported = exported
        self._made: dict[str, Any] = {}
        self._seen: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}

    def copy(self, registry: CollectorRegistry) -> None:
        """Copy every figure of a registry."""
        for family in registry.collect():
            for sample in family.samples:
                if not sample.name.endswith("_created"):
                    self.show(family.type == "gauge", sample.name, family.documentation, sample.labels, sample.value)

    def show(self, gauge: bool, name: str, text: str, labels: Mapping[str, str], value: float) -> None:
        """Show one figure: a gauge as it is, of a counter what it has grown by."""
        # Ray puts `_total` behind the names of counters by itself.
        made = self._made.get(name)
        if made is None:
            kind = self._exported.Gauge if gauge else self._exported.Counter
            made = self._made[name] = kind(name.removesuffix("_total"), description=text, tag_keys=tuple(labels))
        if gauge:
            made.set(value, tags=dict(labels))
            return
        key = name, tuple(sorted(labels.items()))
        grown = value - self._seen.get(key, 0.0)
        self._seen[key] = value
        if grown < 0:  # another bundle's counter, which has begun anew
            grown = value
        if grown:
            made.inc(grown, tags=dict(labels))
