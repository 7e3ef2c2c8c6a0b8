"""A replica: an ASGI application whose bundle can be exchanged while it answers. Knows nothing of Ray."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from prometheus_client import CollectorRegistry, Counter
from starlette.datastructures import MutableHeaders
from starlette.types import Message, Receive, Scope, Send

from fastblt.runtime.fleet.options import BundleChoice, FleetOptions
from fastblt.runtime.fleet.served_bundle import ServedBundle
from fastblt.runtime.serving.api_error import unavailable

log = logging.getLogger("fastblt.fleet")

#: Headers of every answer: which replica wrote it, and the first digits of its bundle's digest.
REPLICA_HEADER, BUNDLE_HEADER = "X-Fastblt-Replica", "X-Fastblt-Bundle"
DIGITS = 12


class FleetReplica:
    """Serves one bundle at a time.

    Args:
        options: how bundles are loaded and served.
        name: of the replica.
        on_request: awaited at the beginning of every request.
    """

    def __init__(
        self, options: FleetOptions, name: str, on_request: Callable[[], Awaitable[None]] | None = None
    ) -> None:
        self.options = options
        self.name = name
        self.current: ServedBundle | None = None
        self.metrics = CollectorRegistry()
        """Figures of the replica itself."""
        self._swaps = Counter("fastblt_swaps", "Other bundles that were asked for", ["result"], registry=self.metrics)
        for result in ("done", "refused"):
            self._swaps.labels(result)
        self._ended: list[CollectorRegistry] = []
        self._on_request = on_request
        self._swapping = asyncio.Lock()
        self._closing: dict[asyncio.Task[None], ServedBundle] = {}

    def swaps(self, result: str) -> int:
        """Return how often another bundle was asked for: ``done`` or ``refused``; the first one does not count."""
        return int(self.metrics.get_sample_value("fastblt_swaps_total", {"result": result}) or 0)

    def earlier(self) -> list[CollectorRegistry]:
        """Return the figures of bundles that get no new requests; those that have ended, for the last time."""
        found = [*self._ended, *(served.host.metrics.registry for served in self._closing.values())]
        self._ended.clear()
        return found

    async def choose(self, user_config: Any) -> None:
        """Serve another bundle: load it beside the one before, send it all new requests, and end the other.

        A bundle that cannot be used is refused with one line in the log, and the one before stays.

        Args:
            user_config: ``bundle``, a folder, and ``sha256``, the digest of its manifest.

        Raises:
            FleetError: it names no bundle, and there is none before.
            Exception: the first bundle cannot be used.
        """
        async with self._swapping:
            before = self.current
            try:
                choice = BundleChoice.from_dict(user_config)
                if before is not None and before.choice == choice:
                    return
                served = ServedBundle(choice, self.options)
                await served.open()
            except Exception as error:
                if before is None:
                    raise
                self._swaps.labels("refused").inc()
                log.error("bundle refused, %s is served as before: %s", before.choice.bundle, error)
                return
            self.current = served
            if before is not None:
                self._swaps.labels("done").inc()
                log.info("%s is served instead of %s", choice.bundle, before.choice.bundle)
                self._close(before)

    async def check(self, seconds: float) -> None:
        """See that the model writes the text that it wrote when it was loaded; a replica without one is in order.

        Raises:
            NotReproducedError: it writes another text.
            StuckError: it writes nothing.
        """
        if self.current is not None:
            await self.current.check(seconds)

    async def close(self) -> None:
        """End everything that is served, after the requests in progress."""
        if self.current is not None:
            self._close(self.current)
            self.current = None
        await asyncio.gather(*self._closing)

    def _close(self, served: ServedBundle) -> None:
        task = asyncio.create_task(served.close())
        self._closing[task] = served
        task.add_done_callback(self._closed)

    def _closed(self, task: asyncio.Task[None]) -> None:
        self._ended.append(self._closing.pop(task).host.metrics.registry)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("a bundle that is served no more did not end well", exc_info=error)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request with the bundle that is served when it begins."""
        if scope["type"] == "lifespan":
            await self._live(receive, send)
            return
        if self._on_request is not None:
            await self._on_request()
        served = self.current
        if served is None:
            await unavailable("the model is being loaded; ask again", "loading").response()(scope, receive, send)
            return

        async def marked(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers[REPLICA_HEADER] = self.name
                headers[BUNDLE_HEADER] = served.digest[:DIGITS]
            await send(message)

        await served.answer(scope, receive, marked)

    async def _live(self, receive: Receive, send: Send) -> None:
        while True:
            message = await receive()
            if message["type"] == "lifespan.shutdown":
                await self.close()
            await send({"type": f"{message['type']}.complete"})
            if message["type"] == "lifespan.shutdown":
                return
