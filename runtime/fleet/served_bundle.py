"""One loaded bundle with its server: opened, used, and closed when nobody uses it any more."""

from __future__ import annotations

import asyncio
import gc
import time
from contextlib import AbstractAsyncContextManager
from typing import Any

from starlette.types import Receive, Scope, Send

from fastblt.runtime.fleet.options import BundleChoice, FleetOptions
from fastblt.runtime.serving.api_error import ApiError
from fastblt.runtime.serving.app import create_app
from fastblt.runtime.serving.model_host import ModelHost, NotReproducedError

#: Seconds between two looks at something that takes long.
_LOOK = 0.02


class StuckError(RuntimeError):
    """Reports a model that generates nothing, although texts wait for it."""


class ServedBundle:
    """Holds the application that serves a bundle.

    Args:
        choice: the bundle.
        options: how it is loaded and served.
    """

    def __init__(self, choice: BundleChoice, options: FleetOptions) -> None:
        self.choice = choice
        self.digest = ""
        """Of the manifest."""
        self.requests = 0
        """Requests that are being answered."""
        self._app = create_app(options.loader(choice.bundle), options.settings(choice.bundle))
        self._drain = options.drain
        self._lifespan: AbstractAsyncContextManager[Any] = self._app.router.lifespan_context(self._app)

    @property
    def host(self) -> ModelHost:
        """Return what holds the model."""
        host: ModelHost = self._app.state.host
        return host

    async def open(self) -> None:
        """Compare every file with its digest, load the model, and let it write a known text.

        Raises:
            BundleError: a file is missing or damaged, or the bundle is another one.
            NotReproducedError: methods that have to write the same text do not.
            Exception: whatever else loading raises.
        """
        self.digest = await asyncio.to_thread(self.choice.check)
        await self._lifespan.__aenter__()
        while not self.host.ready and self.host.failure is None:
            await asyncio.sleep(_LOOK)
        if self.host.failure is not None:
            failure = self.host.failure
            await self._lifespan.__aexit__(None, None, None)
            raise failure

    async def answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        self.requests += 1
        try:
            await self._app(scope, receive, send)
        finally:
            self.requests -= 1

    async def close(self) -> None:
        """Wait for the requests that are being answered, no longer than for ``drain`` seconds, and free the memory."""
        end = time.monotonic() + self._drain
        while (self.requests or not self.host.idle) and time.monotonic() < end:
            await asyncio.sleep(_LOOK)
        self.host.cancel_all()
        await self._lifespan.__aexit__(None, None, None)
        gc.collect()

    async def check(self, seconds: float) -> None:
        """Let the model write the known text again; where all places are taken, see that their texts grow.

        Args:
            seconds: most that this may take.

        Raises:
            NotReproducedError: it writes another text.
            StuckError: nothing grows.
        """
        before = self._generated()
        try:
            await asyncio.wait_for(self.host.reproduce(), seconds)
        except NotReproducedError:
            raise
        except (ApiError, asyncio.TimeoutError):
            end = time.monotonic() + seconds
            while self._generated() == before:
                if time.monotonic() > end:
                    raise StuckError(
                        f"{self.choice.bundle}: found no new byte in {2 * seconds:g} s, expected the known text"
                    ) from None
                await asyncio.sleep(_LOOK)

    def _generated(self) -> float:
        return self.host.metrics.registry.get_sample_value("fastblt_generated_bytes_total") or 0.0
