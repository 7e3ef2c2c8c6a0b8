"""The documentation builds as a site, strictly and without a network, and its pages load nothing from elsewhere."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from shared_files import SharedFiles

import fastblt
from fastblt.cli import COMMANDS

ROOT = Path(__file__).resolve().parents[2]
#: What a page loads: tags and the attribute with its address.
LOADED = {"script": "src", "img": "src", "iframe": "src", "source": "src"}
#: A proxy that nobody listens at: every attempt to reach the network fails.
NO_NETWORK = dict.fromkeys(("http_proxy", "https_proxy", "all_proxy"), "http://127.0.0.1:9")


def build(source: Path, site: Path) -> subprocess.CompletedProcess[str]:
    """Build the site of a tree, warnings being errors."""
    return subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(site)],
        cwd=source,
        env={**os.environ, **NO_NETWORK, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.fixture(scope="module")
def site(shared_files: SharedFiles) -> Path:
    def write(folder: Path) -> None:
        done = build(ROOT, folder)
        assert done.returncode == 0, done.stdout + done.stderr

    return shared_files.make("site", write)


class Loads(HTMLParser):
    """Collects the addresses that a page loads when it is opened."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if tag in LOADED and (address := values.get(LOADED[tag])):
            self.found.append(address)
        loads = {"stylesheet", "icon", "preconnect", "preload", "dns-prefetch"}
        if tag == "link" and loads & set((values.get("rel") or "").split()):
            self.found.append(values.get("href") or "")


def test_pages_load_nothing_from_elsewhere(site: Path) -> None:
    pages = list(site.glob("*.html"))
    assert len(pages) > 20
    missing = []
    for page in pages:
        loads = Loads()
        loads.feed(page.read_text(encoding="utf-8"))
        assert loads.found, page
        missing += [
            f"{page.name}: {address}"
            for address in loads.found
            # 404.html has addresses from the root of the site on.
            if not (page.name == "404.html" or (page.parent / address.partition("?")[0]).is_file())
        ]
    assert missing == []
    styles = "".join(path.read_text(encoding="utf-8") for path in site.rglob("*.css"))
    assert re.findall(r"(?:url\(|@import )[\"']?(?:https?:)?//[^)\"']*", styles) == []


def test_api_page_has_every_public_name_with_its_docstring(site: Path) -> None:
    page = (site / "api.html").read_text(encoding="utf-8")
    for name in sorted(set(fastblt.__all__) - {"__version__"}):
        found = getattr(fastblt, name)
        assert f'id="{found.__module__}.{name}"' in page
        opening = found.__doc__.split(".")[0].split("`")[0].split("\n")[0].strip()
        assert opening in page, name
    # Methods that a class inherits are documented with it.
    assert 'id="fastblt.runtime.blt_runtime.BltRuntime.generate"' in page


def test_commands_page_has_every_command_with_its_options(site: Path) -> None:
    page = (site / "commands.html").read_text(encoding="utf-8")
    assert re.findall(r'<h2 id="fastblt-([a-z-]+)"', page) == list(COMMANDS)
    assert "--max-new-bytes" in page
    assert "Error" not in page


def test_link_that_leads_nowhere_fails_the_build(tmp_path: Path) -> None:
    source = tmp_path / "tree"
    source.mkdir()
    for path in ROOT.iterdir():
        if path.name not in ("docs", "build"):
            (source / path.name).symlink_to(path)
    (source / "docs").mkdir()
    for path in (ROOT / "docs").iterdir():
        (source / "docs" / path.name).symlink_to(path)
    page = source / "docs" / "batching.md"
    text = page.read_text(encoding="utf-8")
    page.unlink()
    page.write_text(f"{text}\n[more](no-such-page.md)\n", encoding="utf-8")
    done = build(source, tmp_path / "site")
    assert done.returncode == 1
    assert "no-such-page.md" in done.stdout + done.stderr
