"""Loads the model that is served, proves that it generates, and ends it; knows whether texts can be had now."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from fastblt.runtime.blt_runtime import BltRuntime
from fastblt.runtime.generation import Prompt
from fastblt.runtime.machine import usable_cores
from fastblt.runtime.methods import parse_method
from fastblt.runtime.methods.registry import methods, runnable
from fastblt.runtime.request import GenerationRequest
from fastblt.runtime.serving.api_error import ApiError, queue_full, unavailable
from fastblt.runtime.serving.deadline import Deadline
from fastblt.runtime.serving.metrics import Metrics
from fastblt.runtime.serving.scheduler import Scheduler, default_workers
from fastblt.runtime.serving.settings import ServingSettings
from fastblt.runtime.serving.texts import Texts

log = logging.getLogger("fastblt.serving")

#: What the known text continues, and its length in bytes.
KNOWN_PROMPT, KNOWN_BYTES = b"In the beginning", 16

Planned = TypeVar("Planned")
#: Loads the model that is to be served.
Loader = Callable[[], BltRuntime]


class NotReproducedError(ValueError):
    """Reports a model that writes something else than it should."""


class ModelHost:
    """Holds the model, its scheduler, and their state.

    Args:
        source: the model, or what loads it; a model that is handed over is not closed in the end.
        settings: see there.
    """

    def __init__(self, source: BltRuntime | Loader, settings: ServingSettings) -> None:
        self.settings = settings
        self.metrics = Metrics()
        self.started = int(time.time())
        self.draining = False
        """Whether no other text may begin."""
        self.failure: Exception | None = None
        """Why there is no model; None: there is, or it is still loading."""
        self.scheduler: Scheduler | None = None
        self.known = b""
        """The text that the model writes after `KNOWN_PROMPT`."""
        self.requests = 0
        """Requests for texts that are being answered."""
        self._compilers = ThreadPoolExecutor(max(2, usable_cores() // 2), thread_name_prefix="fastblt-forms")
        self._compiling = 0
        """Forms that are being compiled, or wait for it."""
        self._counting = threading.Lock()
        self._source = source
        self._loading: threading.Thread | None = None
        self.metrics.gauge("ready", "Whether texts can be had", lambda: float(self.ready))
        self.metrics.gauge("queue_length", "Texts that wait for a place", lambda: self._count("waiting"))
        self.metrics.gauge("places_in_use", "Texts that have a place", lambda: self._count("active"))
        self.metrics.gauge("places", "Texts that can grow at the same time", lambda: self._count("places"))

    @property
    def ready(self) -> bool:
        """Return whether texts can be had now."""
        return self.scheduler is not None and not self.draining

    @property
    def runtime(self) -> BltRuntime:
        """Return the model.

        Raises:
            ApiError: 503, it is not loaded.
        """
        if self.scheduler is None:
            raise not_ready(self)
        return self.scheduler.runtime

    @property
    def texts(self) -> int:
        """Return how many texts grow, or wait to."""
        return 0 if self.scheduler is None else self.scheduler.waiting + self.scheduler.active

    @property
    def idle(self) -> bool:
        """Return whether nobody waits for anything."""
        return self.requests == 0 and self._compiling == 0 and self.texts == 0

    @property
    def places(self) -> int:
        """Return how many texts can grow at the same time; 0 before there is a model."""
        return self.scheduler.places if self.scheduler is not None else 0

    @property
    def model_name(self) -> str:
        """Return what clients call the model."""
        return self.settings.model_name or self.runtime.config.name

    def method_names(self) -> list[str]:
        """Return names of methods that the model can run, one or more of each kind."""
        return list(runnable((name for entry in methods() for name in entry.examples), self.runtime.config).names)

    def default_method(self, seed: int | None = None) -> str:
        """Return the name of the method of requests that name none."""
        return self.settings.method or GenerationRequest(seed=seed).decoding_method().name

    def start(self) -> None:
        """Begin to load in a thread of its own; meanwhile the server answers that it does."""
        self._loading = threading.Thread(target=self._load, name="fastblt-load", daemon=True)
        self._loading.start()

    def _load(self) -> None:
        began = time.perf_counter()
        try:
            runtime = self._source if isinstance(self._source, BltRuntime) else self._source()
            parse_method(self.default_method()).check(runtime.config)
            self.known = known_text(runtime, self.default_method())
            workers = self.settings.workers or default_workers(runtime)
            if self.draining:
                return  # asked to end meanwhile
            self.scheduler = Scheduler(runtime, workers, self.settings.queue, self.metrics, self.settings.slots)
        except Exception as error:
            self.failure = error
            log.error("the model cannot be served", extra={"facts": {"event": "failed", "error": str(error)}})
            return
        facts = {
            "event": "ready",
            "model": self.model_name,
            "device": runtime.device,
            "places": self.scheduler.places,
            "workers": workers,
            "slots": self.scheduler.slots,
            "max_bytes": runtime.backend.max_bytes,
            "seconds": round(time.perf_counter() - began, 3),
        }
        log.info("the model is ready", extra={"facts": facts})

    def deadline(self) -> Deadline:
        """Return when a request that has just come is given up."""
        return Deadline(self.settings.timeout)

    def submit(self, wanted: Sequence[tuple[Prompt, GenerationRequest]], deadline: Deadline) -> Texts:
        """Begin the texts of a request.

        Raises:
            ApiError: 503 while the model is loading or the server is ending; 429 where too many texts wait.
        """
        if self.scheduler is None or self.draining:
            raise not_ready(self)
        return Texts(self.scheduler, wanted, deadline)

    async def compile(self, plan: Callable[[], Planned], deadline: Deadline) -> Planned:
        """Return what a function returns that compiles the form of texts, run in one of few threads.

        Raises:
            ApiError: 429, as many compile or wait for it as may have or wait for a place; 503 while the model is
                loading or the server is ending; 504, it is not compiled in time.
        """
        if not self.ready:
            raise not_ready(self)
        if self._compiling >= self.settings.queue + self.places:
            raise queue_full(f"{self._compiling} forms that wait to be compiled")
        work = self._compilers.submit(plan)
        with self._counting:
            self._compiling += 1
        work.add_done_callback(self._count_compiled)
        missing = "found a form that is not compiled yet, expected it to be"
        return await deadline.wait(asyncio.wrap_future(work), missing)

    def _count_compiled(self, _: Future[Any]) -> None:
        """Count a form as compiled, or given up before its turn; one that is given up later counts until it ends."""
        with self._counting:
            self._compiling -= 1

    async def reproduce(self) -> None:
        """Generate the known text once more, next to whatever else is being generated.

        Raises:
            ApiError: it cannot be generated now.
            NotReproducedError: the model writes something else.
        """
        request = _known_request(self.runtime, "ar")
        texts = self.submit([(KNOWN_PROMPT[: self.runtime.backend.max_bytes - 1], request)], self.deadline())
        found = b""
        try:
            async for growth in texts.growth():
                found += b"".join(chunk.data for chunk in growth.chunks)
        finally:
            texts.cancel()
        if found != self.known:
            raise NotReproducedError(f"ar: found {found!r} after {KNOWN_PROMPT!r}, expected {self.known!r} as before")

    def drain(self) -> None:
        """Let no other text begin."""
        self.draining = True

    def cancel_all(self) -> None:
        """End every text, after its round in progress."""
        if self.scheduler is not None:
            self.scheduler.cancel_all()

    async def stop(self) -> None:
        """End every text, and the threads that generate."""
        self.drain()
        if self._loading is not None:
            await asyncio.to_thread(self._loading.join, self.settings.drain)
        if self.scheduler is not None:
            await asyncio.to_thread(self.scheduler.close)
            self.scheduler = None
        self._compilers.shutdown(wait=False, cancel_futures=True)

    def _count(self, name: str) -> float:
        return float(getattr(self.scheduler, name, 0))


def known_text(runtime: BltRuntime, method: str) -> bytes:
    """Return a short greedy text, after comparing what ``ar`` and another method write, twice each.

    Raises:
        NotReproducedError: they write different texts, or one of them does so the second time.
    """
    names = ["ar", method] if parse_method(method).lossless else ["ar"]
    first: bytes | None = None
    for name in [*names, *names]:
        request = _known_request(runtime, name)
        found = runtime.generate(KNOWN_PROMPT[: runtime.backend.max_bytes - 1], request=request).data
        first = found if first is None else first
        if found != first:
            raise NotReproducedError(f"{name}: found {found!r} after {KNOWN_PROMPT!r}, expected {first!r} (ar)")
    return first or b""


def _known_request(runtime: BltRuntime, method: str) -> GenerationRequest:
    """Return what is generated; a model loaded for very short texts has room for less."""
    room = runtime.backend.max_bytes - min(len(KNOWN_PROMPT), runtime.backend.max_bytes - 1)
    return GenerationRequest(min(KNOWN_BYTES, room), method=method, stop_at_eos=False)


def not_ready(host: ModelHost) -> ApiError:
    """Return why texts cannot be had now."""
    if host.failure is not None:
        return ApiError(503, "the model cannot be served; the log has the reason", code="failed")
    if host.draining:
        return unavailable("the server is ending", "draining")
    return unavailable("the model is being loaded", "loading")
