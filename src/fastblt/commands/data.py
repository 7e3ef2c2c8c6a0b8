"""``fastblt data``: fetches the sources of the training corpus and builds it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from fastblt.commands.output import add_row, left, make_table, print_table, right, stdout
from fastblt.runtime.machine import cache_folder

if TYPE_CHECKING:
    from fastblt.models.training.corpus import Corpus


def command(
    out: Annotated[Path, typer.Argument(help="Folder to make; must not exist.")],
    cache: Annotated[
        Path | None,
        typer.Option(
            help="Folder to keep downloaded packages in  [default: corpus in the user's cache folder for fastblt]"
        ),
    ] = None,
    allow_other_python: Annotated[
        bool,
        typer.Option("--allow-other-python", help="Accept the library of another CPython version as a source."),
    ] = False,
) -> None:
    """Build the training corpus.

    Its sources are packages with pinned versions, checked by their sha256.
    """
    from fastblt.models.training.corpus import build_corpus, load_corpus

    cache = default_cache() if cache is None else cache
    cache.mkdir(parents=True, exist_ok=True)
    build_corpus(out, cache, allow_other_python=allow_other_python)
    corpus = load_corpus(out)
    console = stdout()
    print_table(console, corpus_table(corpus))
    console.print(f"{out}: index sha256 {corpus.index_sha256}", soft_wrap=True)


def default_cache() -> Path:
    """Return the folder that keeps downloaded packages, below the user's cache folder."""
    return cache_folder() / "corpus"


def corpus_table(corpus: Corpus) -> Table:
    """Return a table of the bytes and documents of each corpus and split."""
    headings = ("train MB", "documents", "held-out MB", "documents")
    table = make_table(left("corpus"), *(right(heading) for heading in headings))
    for index, name in enumerate(corpus.names):
        cells = []
        for split in (corpus.train, corpus.heldout):
            chosen = split.corpus_ids == index
            cells += [f"{split.lengths[chosen].sum() / 1e6:.2f}", str(int(chosen.sum()))]
        add_row(table, name, *cells)
    return table
