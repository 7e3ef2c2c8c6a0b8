"""Copies the figures of a server to Ray's metrics, which Ray's agents export to Prometheus, from every machine alike.

Names and labels are those of ``/metrics``; Ray puts ``ray_`` before the names, and labels the replica. A histogram
arrives as counters of its buckets (``..._bucket``, label ``le``), its sum and its count.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol
from weakref import WeakKeyDictionary

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
        self._seen: WeakKeyDictionary[CollectorRegistry, dict[tuple[str, ...], float]] = WeakKeyDictionary()

    def copy(self, registry: CollectorRegistry, *, gauges: bool = True) -> None:
        """Copy every figure of a registry; counters of several registries add up.

        Args:
            registry: of one server.
            gauges: copy those as well; of several servers, only the one that gets new requests has some to show.
        """
        seen = self._seen.setdefault(registry, {})
        for family in registry.collect():
            for sample in family.samples:
                if family.type == "gauge":
                    if gauges:
                        made = self._metric(self._exported.Gauge, sample.name, family.documentation, sample.labels)
                        made.set(sample.value, tags=sample.labels)
                elif not sample.name.endswith("_created"):
                    key = sample.name, *sample.labels.values()
                    grown = sample.value - seen.get(key, 0.0)
                    seen[key] = sample.value
                    self.count(sample.name, family.documentation, sample.labels, grown)

    def count(self, name: str, text: str, labels: Mapping[str, str], grown: float) -> None:
        """Let a counter grow; one that has not grown is made, and that is all."""
        made = self._metric(self._exported.Counter, name, text, labels)
        if grown:
            made.inc(grown, tags=dict(labels))

    def _metric(self, kind: Any, name: str, text: str, labels: Mapping[str, str]) -> Any:
        if name not in self._made:
            # Ray puts `_total` behind the names of counters by itself.
            self._made[name] = kind(name.removesuffix("_total"), description=text, tag_keys=tuple(labels))
        return self._made[name]
