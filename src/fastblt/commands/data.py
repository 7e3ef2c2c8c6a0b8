"""``fastblt data``: fetch the sources and build the training corpus."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.table import Table

from fastblt.models.training.corpus import Corpus, build_corpus, load_corpus
from fastblt.runtime.machine import cache_folder


def default_cache() -> Path:
    """Return the folder that keeps fetched packages, below the user's cache folder."""
    return cache_folder() / "corpus"


def build(out: Path, cache: Path | None, *, allow_other_python: bool) -> None:
    """Build the corpus and print what it holds."""
    cache = default_cache() if cache is None else cache
    cache.mkdir(parents=True, exist_ok=True)
    build_corpus(out, cache, allow_other_python=allow_other_python)
    corpus = load_corpus(out)
    console = Console(highlight=False)
    console.print(corpus_table(corpus))
    console.print(f"{out}: index sha256 {corpus.index_sha256}", soft_wrap=True)


def corpus_table(corpus: Corpus) -> Table:
    """Bytes and documents of each corpus and split."""
    table = Table("corpus", box=None, pad_edge=False)
    for heading in ("train MB", "documents", "held-out MB", "documents"):
        table.add_column(heading, justify="right")
    for index, name in enumerate(corpus.names):
        cells = []
        for split in (corpus.train, corpus.heldout):
            chosen = split.corpus_ids == index
            cells += [f"{split.lengths[chosen].sum() / 1e6:.2f}", str(int(chosen.sum()))]
        table.add_row(name, *cells)
    return table
