"""Starts Debian's Chromium for tests of pages, and knows what to ask it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from playwright.sync_api import Browser, sync_playwright

CHROMIUM = ("chromium", "chromium-browser", "google-chrome")

#: The contrast of every visible text with what it stands on, where it is less than 4.5.
POOR_CONTRAST = """() => {
    const rgba = color => color.match(/[\\d.]+/g).map(Number);
    const over = (top, under, a = top[3] ?? 1) => top.slice(0, 3).map((c, i) => a * c + (1 - a) * under[i]);
    const luminance = color => color.map(c => c / 255).map(c => c <= .04045 ? c / 12.92 : ((c + .055) / 1.055) ** 2.4)
        .reduce((sum, c, i) => sum + c * [.2126, .7152, .0722][i], 0);
    const ground = node => {
        const under = node.parentElement ? ground(node.parentElement) : [255, 255, 255];
        return over(rgba(getComputedStyle(node).backgroundColor), under);
    };
    const poor = [];
    const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    while (texts.nextNode()) {
        const node = texts.currentNode.parentElement;
        if (!texts.currentNode.data.trim() || !node.checkVisibility()) continue;
        const under = ground(node);
        const both = [luminance(over(rgba(getComputedStyle(node).color), under)), luminance(under)];
        const contrast = (Math.max(...both) + .05) / (Math.min(...both) + .05);
        if (contrast < 4.5) poor.push(`${node.className || node.tagName}: ${contrast.toFixed(2)}`);
    }
    return poor;
}"""


@contextmanager
def chromium() -> Iterator[Browser]:
    """Chromium without a window; the test skips where there is none."""
    found = next(filter(None, map(shutil.which, CHROMIUM)), None)
    if found is None:
        pytest.skip(f"no browser here (none of {', '.join(CHROMIUM)}): apt-get install chromium")
    # Its sandbox refuses to run as root, and containers have no room in /dev/shm.
    arguments = ["--disable-dev-shm-usage", *["--no-sandbox"] * (os.geteuid() == 0)]
    with sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=found, args=arguments)
