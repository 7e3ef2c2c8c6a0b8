"""Runs a server in a thread of a test, on a free port; it is real, what it serves is up to the test."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx
from fastapi import FastAPI

from fastblt.runtime.blt_runtime import BltRuntime
from fastblt.runtime.serving.app import create_app
from fastblt.runtime.serving.listen import DrainingServer, bind, run, url_of
from fastblt.runtime.serving.model_host import ModelHost
from fastblt.runtime.serving.responses import ErrorBody
from fastblt.runtime.serving.settings import ServingSettings


class Served:
    """A server that runs."""

    server: DrainingServer

    def __init__(self, app: FastAPI, url: str) -> None:
        self.app = app
        self.host: ModelHost = app.state.host
        self.url = url
        self.http = httpx.Client(base_url=url, timeout=30)

    def wait_idle(self) -> None:
        """Wait until nobody has, or waits for, a place."""
        wait_until(lambda: self.host.idle)


def wait_until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it takes too long"
        time.sleep(0.005)


@contextmanager
def serve(runtime: BltRuntime | Callable[[], BltRuntime], settings: ServingSettings | None = None) -> Iterator[Served]:
    """Run a server in a thread, on a free port."""
    app = create_app(runtime, settings)
    listening = bind("127.0.0.1", 0)
    served = Served(app, url_of(listening))
    failures: list[Exception] = []

    def work() -> None:
        try:
            run(app, listening, on_server=lambda server: setattr(served, "server", server))
        except Exception as error:
            failures.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        wait_until(lambda: served.host.ready or served.host.failure is not None)
        yield served
    finally:
        served.http.close()
        served.server.should_exit = True
        thread.join(20)
        assert not thread.is_alive()
        if failures:
            raise failures[0]


def error_of(response: httpx.Response, status: int = 400) -> dict[str, Any]:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    assert response.headers["x-request-id"]
    body = ErrorBody.model_validate_json(response.content)
    assert "\n" not in body.error.message
    return body.error.model_dump()
