"""Runs the application in this process until it is asked to end, and lets its texts come to their end then."""

from __future__ import annotations

import ipaddress
import logging
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

import uvicorn
from fastapi import FastAPI

from fastblt.runtime.serving.model_host import ModelHost
from fastblt.runtime.serving.settings import ServingSettings

log = logging.getLogger("fastblt.serving")

#: Seconds for the last bytes of answers that were cut off.
_LAST_SECONDS = 5


class DrainingServer(uvicorn.Server):
    """Ends in two steps: at a signal, new texts are refused; when the others have ended, or it takes too long, it ends.

    A model that cannot be loaded ends it too.
    """

    def __init__(self, config: uvicorn.Config, host: ModelHost) -> None:
        super().__init__(config)
        self.host = host
        self._drained_by: float | None = None

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Receive signals meanwhile; they are not raised again afterwards, because the end is a regular one."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {each: signal.signal(each, self.on_signal) for each in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for each, handler in before.items():
                signal.signal(each, handler)

    def on_signal(self, number: int, frame: FrameType | None) -> None:
        """Begin to end; when it comes again, do not wait any longer."""
        if self._drained_by is None:
            self.drain()
        else:
            self._drained_by = time.monotonic()

    def drain(self) -> None:
        """Refuse new texts from now on, and end after those that grow."""
        if self._drained_by is None:
            self._drained_by = time.monotonic() + self.host.settings.drain
            self.host.drain()

    async def on_tick(self, counter: int) -> bool:
        """Decide, ten times a second, whether to end."""
        if self.host.failure is not None:
            self.should_exit = True
        elif self._drained_by is not None:
            if self.host.idle:
                self.should_exit = True
            elif time.monotonic() > self._drained_by:
                log.warning("texts were cut off", extra={"facts": {"event": "cut", "texts": self.host.texts}})
                self.host.cancel_all()
                self.should_exit = True
        return await super().on_tick(counter)


def bind(host: str, port: int) -> socket.socket:
    """Return a socket that listens; port 0 is any that is free.

    Raises:
        OSError: the address cannot be used; the message names it.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listening = socket.create_server((host, port), family=family, backlog=2048)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise OSError(
            f"{host}:{port}: cannot listen there ({reason}), expected a free address of this machine"
        ) from None
    # Accepted connections inherit it. uvloop sets it itself; asyncio does not for a socket that it has not made, and
    # a stream on a connection that is kept alive would wait for the client's delayed acknowledgments, 40 ms each.
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listening


def url_of(listening: socket.socket) -> str:
    """Return the address of a server."""
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def exposed(host: str, settings: ServingSettings) -> str | None:
    """Return a warning where other machines reach the server; None: they do not."""
    if _is_local(host):
        return None
    if not settings.keys:
        return (
            f"{host}: anybody who reaches this machine can use the model, because there are no keys; "
            "give it some (--api-keys FILE), or listen on 127.0.0.1"
        )
    return f"{host}: other machines reach the server, and requests are not encrypted; put a proxy with TLS before it"


def _is_local(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def run(
    app: FastAPI,
    listening: socket.socket,
    *,
    on_server: Callable[[DrainingServer], object] | None = None,
) -> None:
    """Serve until a signal (SIGTERM, SIGINT) has ended it, or the model turns out to be unusable.

    Args:
        app: made by `fastblt.runtime.serving.app.create_app`.
        listening: from `bind`; it is closed in the end.
        on_server: called with the server before it begins.

    Raises:
        Exception: why the model could not be loaded.
    """
    host: ModelHost = app.state.host
    config = uvicorn.Config(
        app,
        http="h11",  # the other reader of HTTP has no limit on headers
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=_LAST_SECONDS,
    )
    server = DrainingServer(config, host)
    if on_server is not None:
        on_server(server)
    with listening:
        server.run(sockets=[listening])
    if host.failure is not None:
        raise host.failure
