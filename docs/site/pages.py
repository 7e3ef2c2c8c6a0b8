"""Adds to the site what is not in docs/: the documents of the repository's root, the API, the commands.

A hook of MkDocs (https://www.mkdocs.org/user-guide/configuration/#hooks). Links are written for the repository, where
they have to lead to files; here they are made to lead to pages.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import TYPE_CHECKING

from typer.testing import CliRunner

import fastblt
from fastblt.cli import COMMANDS, app

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[2]
#: Documents outside docs/, and the pages that they become.
OUTSIDE = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "calibration/heldout/README.md": "heldout.md",
}
_LINK = re.compile(r"\]\(([^)#\s]+)(#[^)\s]+)?\)")


def api_page() -> str:
    """Return the page of every public name, whose text mkdocstrings takes from the docstrings."""
    names = sorted(name for name in fastblt.__all__ if not name.startswith("_"))
    found = [f"::: {getattr(fastblt, name).__module__}.{name}" for name in names]
    opening = "# Python API\n\nEvery name that `import fastblt` offers. [Python](python.md) shows how they are used."
    return "\n\n".join([opening, *found]) + "\n"


def commands_page() -> str:
    """Return the page of every command: what its `--help` prints."""
    runner = CliRunner()
    parts = ["# Commands\n\nWhat `fastblt COMMAND --help` prints."]
    for name in COMMANDS:
        shown = runner.invoke(app, [name, "--help"], terminal_width=82, prog_name="fastblt", catch_exceptions=False)
        parts.append(f"## fastblt {name}\n\n```text\n{shown.output.strip()}\n```")
    return "\n\n".join(parts) + "\n"


def link(target: str, folder: str) -> str:
    """Return where a link of a document in ``folder`` leads on the site: a page, or a file below docs/."""
    path = posixpath.normpath(posixpath.join(folder, target))
    return OUTSIDE.get(path, path.removeprefix("docs/"))


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are not files in docs/."""
    from mkdocs.structure.files import File

    pages = {page: (ROOT / name).read_text(encoding="utf-8") for name, page in OUTSIDE.items()}
    pages |= {"api.md": api_page(), "commands.md": commands_page()}
    for name, text in pages.items():
        files.append(File.generated(config, name, content=text))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Return a page's text with links that lead to pages of the site."""
    source = {page: name for name, page in OUTSIDE.items()}.get(page.file.src_uri)
    folder = "docs" if source is None else posixpath.dirname(source)

    def replace(found: re.Match[str]) -> str:
        target, anchor = found[1], found[2] or ""
        return found[0] if "://" in target else f"]({link(target, folder)}{anchor})"

    return _LINK.sub(replace, markdown)
