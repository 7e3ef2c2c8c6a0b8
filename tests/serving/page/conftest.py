"""Provides the page in a real browser, and watches what must not happen there."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from fakes.browser import chromium
from playwright.sync_api import Browser, Page, Route, expect

from fastblt.runtime.blt_runtime import BltRuntime
from fastblt.runtime.serving.app import create_app
from fastblt.runtime.serving.listen import bind

#: What the tests wait for happens at once; a loaded machine is slow.
PATIENCE_MS = 60_000

expect.set_options(timeout=PATIENCE_MS)


@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    """Chromium; tests skip where there is none.

    Not for the whole session: as long as Playwright runs, asyncio has a running loop, and others want their own.
    """
    with chromium() as found:
        yield found


class Watched:
    """Opens pages of a server, and keeps what must not happen there: errors, violations, requests to other hosts."""

    def __init__(self, browser: Browser, url: str) -> None:
        self.browser, self.url = browser, url
        self.wrong: list[str] = []
        self.requests: list[str] = []
        self._pages: list[Page] = []

    def open(self, **options: Any) -> Page:
        """Open the page; ``options`` are those of a browser context."""
        page = self.browser.new_context(**options).new_page()
        self._pages.append(page)
        page.set_default_timeout(PATIENCE_MS)
        page.on("pageerror", lambda error: self.wrong.append(f"error: {error}"))
        page.on("console", lambda message: self.wrong.append(message.text) if message.type == "error" else None)
        page.context.route("**/*", self._only_the_server)
        self.load(page)
        return page

    def load(self, page: Page) -> None:
        """Load the page anew, with nothing answered in the server's place, and wait until methods are offered."""
        page.unroute_all()
        page.goto(self.url)
        page.wait_for_selector("#method option", state="attached")

    def _only_the_server(self, route: Route) -> None:
        self.requests.append(route.request.url)
        if route.request.url.startswith((self.url, "data:")):
            route.continue_()
        else:
            self.wrong.append(f"another host: {route.request.url}")
            route.abort()

    def close(self) -> None:
        for page in self._pages:
            page.context.close()


@pytest.fixture(scope="package")
def watched(browser: Browser, server_url: str) -> Iterator[Watched]:
    """Opens pages, and keeps what they report."""
    pages = Watched(browser, server_url)
    yield pages
    pages.close()


@pytest.fixture(scope="package")
def open_page(watched: Watched) -> Page:
    """One page for all tests."""
    return watched.open()


@pytest.fixture
def page(watched: Watched, open_page: Page) -> Iterator[Page]:
    """The page, just loaded; fails if it reported an error, violated its policy or asked another host."""
    watched.wrong.clear()
    watched.load(open_page)
    yield open_page
    assert watched.wrong == []


@pytest.fixture(scope="package")
def server_url(tiny_bundle: Path) -> Iterator[str]:
    """The address of a server with a tiny model, in this process."""
    app = create_app(partial(BltRuntime.from_pretrained, tiny_bundle, max_bytes=16384))
    listening = bind("127.0.0.1", 0)
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False))
    thread = threading.Thread(target=server.run, args=([listening],), daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{listening.getsockname()[1]}/"
    server.should_exit = True
    thread.join()


Piece = tuple[bytes, list[str], list[int], bytes]


def answer(pieces: Iterable[Piece], counts: dict[str, Any] | None = None, finish: str = "length") -> str:
    """Return the events of a completion: pieces of bytes, origins, boundaries and rejected bytes, then the counts."""
    events: list[dict[str, Any]] = []
    for data, origins, boundaries, rejected in pieces:
        details = {
            "bytes": base64.b64encode(data).decode(),
            "origins": origins,
            "boundaries": boundaries,
            "rejected": base64.b64encode(rejected).decode(),
        }
        text = data.decode(errors="replace")
        events.append({"choices": [{"index": 0, "text": text, "finish_reason": None, "fastblt": details}]})
    events.append({"choices": [{"index": 0, "text": "", "finish_reason": finish}]})
    events.append({"choices": [], "usage": {}, "fastblt": counts or {}})
    return "".join(f"data: {json.dumps(event)}\r\n\r\n" for event in events) + ": ping\r\n\r\ndata: [DONE]\r\n\r\n"


@pytest.fixture
def answered() -> Callable[..., list[dict[str, Any]]]:
    """``answered(page, pieces, counts, finish)``: the page's completions are answered so; returns what it asks for."""

    def install(page: Page, *args: Any, **options: Any) -> list[dict[str, Any]]:
        asked: list[dict[str, Any]] = []
        page.unroute("**/v1/completions")

        def fulfill(route: Route) -> None:
            asked.append(route.request.post_data_json)
            route.fulfill(content_type="text/event-stream", body=answer(*args, **options))

        page.route("**/v1/completions", fulfill)
        return asked

    return install
