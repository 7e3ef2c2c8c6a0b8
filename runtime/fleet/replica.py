"""A replica: an ASGI application whose bundle can be exchanged while it answers. Knows nothing of Ray."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

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
        self.swaps = {"done": 0, "refused": 0}
        """How often another bundle was asked for, by what came of it; the first one does not count."""
        self._on_request = on_request
        self._swapping = asyncio.Lock()
        self._closing: set[asyncio.Task[None]] = set()

    async def choose(self, user_config: Any) -> None:
        """Serve another bundle: load it beside the one before, send it all new requests, and end the other.

        A bundle that cannot be used is refused with one line in the log, and the one before goes on.

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
                self.swaps["refused"] += 1
                log.error("bundle refused, %s is served as before: %s", before.choice.bundle, error)
                return
            self.current = served
            if before is not None:
                self.swaps["done"] += 1
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
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

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
