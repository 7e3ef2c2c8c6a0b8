"""Makes docs/pictures/page.png anew: a real generation of the shipped checkpoint, ``s:8`` beside ``ar``.

    python docs/pictures/page.py build/demo-bundle

needs the extras ``serve`` and ``dev``, Pillow and a Chromium. Speeds in the picture are those of the machine that it
runs on.
"""

from __future__ import annotations

import io
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, expect, sync_playwright

PICTURE = Path(__file__).with_suffix(".png")
PROMPT = 'class Stack:\n    """A stack.'
NEW_BYTES = "200"
CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
#: Other programs disturb some of them; an odd number.
COMPARISONS = 7
COLORS = 128
START_SECONDS = 120


def draw(page: Page, url: str) -> bytes:
    """Compare ``s:8`` with ``ar`` a few times, and return the picture of the comparison with the median speed-up."""
    page.goto(url)
    page.get_by_label("Prompt").fill(PROMPT)
    page.get_by_label("Method", exact=True).select_option("s:8")
    page.get_by_label("New bytes, at most").fill(NEW_BYTES)
    page.get_by_label("Compare with ar").check()
    page.get_by_label("rejected drafts").check()
    pictures = []
    for _ in range(COMPARISONS):
        page.get_by_role("button", name="Generate").click()
        expect(page.locator("#verdict")).to_be_visible(timeout=60_000)
        found = re.search(r"identical .* wrote ([\d.]+) times", page.locator("#verdict").inner_text())
        if found is None:
            raise SystemExit("the page: found texts that differ, expected the bytes of ar")
        pictures.append((float(found[1]), page.screenshot(full_page=True)))
    return sorted(pictures)[COMPARISONS // 2][1]


def shrink(png: bytes) -> bytes:
    """Return the picture with a palette, which text and flat colors need no more than."""
    small = io.BytesIO()
    colors = Image.open(io.BytesIO(png)).convert("RGB").quantize(COLORS, dither=Image.Dither.NONE)
    colors.save(small, "PNG", optimize=True)
    return small.getvalue()


@contextmanager
def served(bundle: str) -> Iterator[str]:
    """Serve a bundle and yield the server's address once it is ready."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen([sys.executable, "-m", "fastblt", "serve", bundle, "--port", str(port)])
    try:
        wait_until_ready(f"http://127.0.0.1:{port}/ready", server)
        yield f"http://127.0.0.1:{port}/"
    finally:
        server.terminate()
        server.wait()


def wait_until_ready(address: str, server: subprocess.Popen[bytes]) -> None:
    """Ask until the server is ready.

    Raises:
        SystemExit: The server has ended, or is not ready after two minutes.
    """
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end and server.poll() is None:
        try:
            urllib.request.urlopen(address)
            return
        except urllib.error.URLError:
            time.sleep(0.2)
    raise SystemExit(f"{address}: no answer, expected a server that is ready")


def main(bundle: str) -> None:
    """Write the picture."""
    browser = next(filter(None, map(shutil.which, CHROMIUM)), None)
    if browser is None:
        raise SystemExit(f"found none of {', '.join(CHROMIUM)}, expected a Chromium: apt-get install chromium")
    with served(bundle) as url, sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=browser, args=["--no-sandbox"] * (os.geteuid() == 0))
        page = chromium.new_page(viewport={"width": 1280, "height": 720}, device_scale_factor=1.5)
        PICTURE.write_bytes(shrink(draw(page, url)))
        chromium.close()


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit("usage: python docs/pictures/page.py BUNDLE")
    main(sys.argv[1])
