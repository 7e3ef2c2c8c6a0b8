"""The script that selected the held-out text: deterministic, and never from training documents."""

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

from fastblt.models.training.corpus import build_corpus, is_heldout, load_corpus
from fastblt.models.training.corpus_sources import CorpusError, Document, Source, text_digest

SCRIPT = Path(__file__).parents[2] / "calibration" / "heldout" / "select_pieces.py"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("select_pieces", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Dataclasses look their module up.
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    return module


def toy_source(documents: list[Document]) -> Source:
    return Source("toy", "CC0-1.0", "made up", "1", 4, text_digest(documents), client="pip")


def built(folder: Path, documents: list[Document]) -> Path:
    source = toy_source(documents)
    return build_corpus(folder / "corpus", folder, sources=[source], reader=lambda _source, _cache: documents)


def test_selection_is_deterministic_and_needs_enough_text(script: ModuleType, tmp_path: Path) -> None:
    small = built(tmp_path / "small", [(f"doc{i:03d}", f"text {i}\n".encode() * (i % 5 + 1)) for i in range(120)])
    with pytest.raises(CorpusError, match="toy: held-out documents are too short, expected one of 73728 bytes"):
        script.write_heldout_selection(load_corpus(small), tmp_path / "none")
    line = "one “line” of held-out text, number {}\n"
    documents = [(f"d{i}", "".join(line.format(n * 1000 + i) for n in range(900)).encode()) for i in range(100)]
    big = built(tmp_path / "big", documents)
    for folder in ("a", "b"):
        script.write_heldout_selection(load_corpus(big), tmp_path / folder)
    for name in ("toy.txt", "pieces.json", "prompts.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    prompts = json.loads((tmp_path / "a" / "prompts.json").read_text(encoding="utf-8"))
    texts = dict(documents)
    for prompt in prompts:
        start = prompt["offset"]
        raw = prompt["text"].encode()
        assert 64 <= len(raw) <= 160
        assert texts[prompt["document"]][start : start + len(raw)] == raw
        assert is_heldout(toy_source(documents), prompt["document"])
