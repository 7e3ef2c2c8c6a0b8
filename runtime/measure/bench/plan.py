"""Lays out a benchmark: who is measured, and with whom each is compared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fastblt.runtime.methods import parse_method

AR = "ar"
EAGER = "eager"
#: Backends that stay within PyTorch; what is gained over PyTorch is gained over the fastest of them.
PYTORCH = (EAGER, "eager-compiled")


@dataclass(frozen=True)
class Contender:
    """Names one method on one backend or peer."""

    backend: str
    method: str

    def __str__(self) -> str:
        return f"{self.backend}/{self.method}"


@dataclass(frozen=True)
class BenchPlan:
    """Holds who is measured, and whose output ``ar`` is compared with."""

    contenders: tuple[Contender, ...]
    backend: str
    """The backend that the bench is about."""
    baseline: str | None
    """The first other backend."""

    @property
    def methods(self) -> tuple[str, ...]:
        """Return the methods of all contenders, each once."""
        return tuple(dict.fromkeys(contender.method for contender in self.contenders))

    @property
    def backends(self) -> tuple[str, ...]:
        """Return the backends and peers of all contenders, each once."""
        return tuple(dict.fromkeys(contender.backend for contender in self.contenders))

    def reference(self, contender: Contender) -> Contender:
        """Return the contender whose output this one's has to equal, byte for byte.

        A method other than ``ar``: its own backend's ``ar``. ``ar`` of the bench's backend: the baseline's
        ``ar`` (without a baseline its own, so that only repeats can differ). ``ar`` of another backend: the
        bench's backend's ``ar``.
        """
        if contender.method != AR:
            return Contender(contender.backend, AR)
        other = self.baseline if contender.backend == self.backend else self.backend
        return Contender(other or contender.backend, AR)


def make_bench_plan(backend: str, methods: Sequence[str], against: Sequence[str] = ()) -> BenchPlan:
    """Lay out a measurement.

    Args:
        backend: the backend that the bench is about.
        methods: names of that backend's methods, e.g. ``s:8``.
        against: further contenders, ``BACKEND`` (its ``ar``) or ``BACKEND/METHOD``.

    Returns:
        All contenders without repetition; each backend's ``ar`` comes first, asked for or not.

    Raises:
        MethodError: a method does not exist.
    """
    wanted = [Contender(backend, method) for method in methods]
    for item in against:
        name, _, method = item.partition("/")
        wanted.append(Contender(name, method or AR))
    found: dict[Contender, None] = {}
    for contender in [Contender(backend, AR), *wanted]:
        parse_method(contender.method)
        found.setdefault(Contender(contender.backend, AR))
        found.setdefault(contender)
    others = [contender.backend for contender in found if contender.backend != backend]
    return BenchPlan(tuple(found), backend, others[0] if others else None)
