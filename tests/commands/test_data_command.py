import io
from pathlib import Path

import pytest
from rich.console import Console

from fastblt.commands.data import corpus_table, default_cache
from fastblt.models.training.corpus import build_corpus, load_corpus
from fastblt.models.training.corpus_sources import Document, Source, text_digest


def test_cache_is_below_users_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache() == tmp_path / "fastblt" / "corpus"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert default_cache() == Path.home() / ".cache" / "fastblt" / "corpus"


def test_table_has_bytes_and_documents_of_each_corpus(tmp_path: Path) -> None:
    documents: list[Document] = [(f"doc{i:03d}", b"x" * 10_000) for i in range(100)]
    source = Source("toy", "CC0-1.0", "made up", "1", 4, text_digest(documents), client="pip")
    folder = build_corpus(tmp_path / "c", tmp_path, sources=[source], reader=lambda source, cache: documents)
    corpus = load_corpus(folder)
    out = io.StringIO()
    Console(file=out, width=100).print(corpus_table(corpus))
    held = len(corpus.heldout.names)
    expected = ["toy", f"{(100 - held) / 100:.2f}", str(100 - held), f"{held / 100:.2f}", str(held)]
    assert out.getvalue().splitlines()[-1].split() == expected
