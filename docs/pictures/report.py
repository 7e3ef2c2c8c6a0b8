"""Makes the pictures of a report anew: docs/pictures/report.png and docs/pictures/report-texts.png.

    python docs/pictures/report.py build/demo-bundle

needs the extra ``dev``, Pillow and a Chromium. The figures are those of docs/results/baselines-cpu.json; the texts are
generated here.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from page import CHROMIUM, PROMPT, shrink
from playwright.sync_api import Page, sync_playwright

FOLDER = Path(__file__).parent
RESULTS = FOLDER.parent / "results" / "baselines-cpu.json"
WIDTH = 1120


def make_report(bundle: str, path: Path) -> None:
    """Write the page about the published results."""
    options = ("--bench", str(RESULTS), "--prompt", PROMPT)
    subprocess.run([sys.executable, "-m", "fastblt", "report", bundle, str(path), *options], check=True)


def draw(page: Page, path: Path) -> tuple[bytes, bytes]:
    """Return pictures of the page's beginning, up to where the time goes, and of its texts."""
    page.set_viewport_size({"width": WIDTH, "height": 800})
    page.goto(path.as_uri())
    box = page.locator("#time").bounding_box()
    assert box is not None
    clip = {"x": 0, "y": 0, "width": WIDTH, "height": box["y"] + box["height"] + 16}
    top = page.screenshot(full_page=True, clip=clip)
    page.get_by_label("rejected drafts").check()
    return top, page.locator("#texts").screenshot()


def main(bundle: str) -> None:
    """Write the pictures."""
    browser = next(filter(None, map(shutil.which, CHROMIUM)), None)
    if browser is None:
        raise SystemExit(f"found none of {', '.join(CHROMIUM)}, expected a Chromium: apt-get install chromium")
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        path = Path(folder) / "report.html"
        make_report(bundle, path)
        chromium = playwright.chromium.launch(executable_path=browser, args=["--no-sandbox"] * (os.geteuid() == 0))
        top, texts = draw(chromium.new_page(device_scale_factor=1.5), path)
        (FOLDER / "report.png").write_bytes(shrink(top))
        (FOLDER / "report-texts.png").write_bytes(shrink(texts))
        chromium.close()


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit("usage: python docs/pictures/report.py BUNDLE")
    main(sys.argv[1])
