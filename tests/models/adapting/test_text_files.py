"""Text of any size: windows are pieces of documents, and held-out text is in none of them."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from torch import Tensor

from fastblt.models.adapting import text_files
from fastblt.models.adapting.text_files import TextError, TextFiles, open_text
from fastblt.models.tokens import BOS_ID, EOS_ID, decode
from fastblt.models.training.batches import IGNORE
from fastblt.models.training.corpus import build_corpus
from fastblt.models.training.corpus_sources import Document, Source, text_digest

WINDOW = 32


def windows(text: text_files.Text, count: int = 300) -> list[tuple[bytes, bool]]:
    """The bytes of windows, and whether their document ends in them."""
    found = []
    for seed in range(count):
        ids, targets = text.window(WINDOW, np.random.default_rng(seed))
        assert ids.shape == targets.shape == (1, WINDOW)
        tokens = _tokens(ids, targets)
        assert tokens[0] == BOS_ID
        found.append((decode(tokens), tokens[-1] == EOS_ID))
    return found


def _tokens(ids: Tensor, targets: Tensor) -> list[int]:
    known = [target for target in targets[0].tolist() if target != IGNORE]
    tokens = [int(ids[0, 0]), *known]
    assert ids[0].tolist()[: len(tokens)] == tokens[:WINDOW]
    return tokens


def numbered(count: int, name: str = "") -> bytes:
    return b"".join(f"{name}{i:06d} ".encode() for i in range(count))


def held_out(text: text_files.Text) -> list[bytes]:
    return [text.heldout.document(i).tobytes() for i in range(len(text.heldout.lengths))]


def test_windows_are_pieces_of_one_file_without_its_held_out_stretches(tmp_path: Path) -> None:
    contents = {name: numbered(count, name) for name, count in (("a", 2_000), ("b", 400), ("c", 30))}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    text = open_text([tmp_path], WINDOW)
    hidden = held_out(text)
    assert 0.02 < sum(map(len, hidden)) / sum(map(len, contents.values())) < 0.08
    ended = set()
    for piece, ends in windows(text):
        assert any(piece in content for content in contents.values())
        assert len(piece) == WINDOW or ends or any(piece + part in c for part in hidden for c in contents.values())
        for number in (word for word in piece.split()[1:-1]):
            assert not any(number in part for part in hidden)
        if ends:
            ended |= {name for name, content in contents.items() if content.endswith(piece)}
    assert "b" in ended


def test_lines_of_json_are_documents(tmp_path: Path) -> None:
    lines = [f"line {i} é".encode() * (1 + i % 7) for i in range(600)]
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join([json.dumps({"id": i, "text": x.decode()}) for i, x in enumerate(lines)] + [""]))
    text = open_text([path], WINDOW)
    hidden = held_out(text)
    assert 0 < len(hidden) < 80
    assert set(hidden) < set(lines)
    for piece, _ in windows(text):
        assert any(piece in line for line in lines)
        assert piece not in hidden


def test_windows_are_a_function_of_the_generator_and_drawn_by_length(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"a" * 9_000)
    (tmp_path / "b").write_bytes(b"b" * 1_000)
    text = open_text([tmp_path / "a", tmp_path / "b"], WINDOW)
    found = windows(text, 1_000)
    assert found == windows(text, 1_000)
    share = sum(b"b" in piece for piece, _ in found) / len(found)
    assert share == pytest.approx(0.1, abs=0.04)


def test_memory_does_not_grow_with_the_text(tmp_path: Path) -> None:
    path = tmp_path / "large"
    with path.open("wb") as file:
        file.truncate(1 << 40)
    text = TextFiles([path], WINDOW)
    assert int(text.heldout.lengths.sum()) <= text_files.HELDOUT_BYTES
    assert windows(text, 3)[0] == (bytes(WINDOW), False)


def test_built_corpus_is_recognized(tmp_path: Path) -> None:
    documents: list[Document] = [(f"doc{i:03d}", numbered(20, str(i))) for i in range(60)]
    source = Source("toy", "CC0-1.0", "made up", "1", 4, text_digest(documents), client="pip")
    folder = build_corpus(tmp_path / "corpus", tmp_path, sources=[source], reader=lambda source, cache: documents)
    text = open_text([folder], WINDOW)
    assert 0 < len(text.heldout.lengths) < 10
    assert all(any(piece in document for _, document in documents) for piece, _ in windows(text, 20))


def test_hidden_and_empty_files_in_folders_are_left_out(tmp_path: Path) -> None:
    for name in (".hidden", ".git/x", "sub/a"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(numbered(400, "h" if name[0] == "." else "a"))
    (tmp_path / "empty").touch()
    assert all(b"h" not in piece for piece, _ in windows(open_text([tmp_path], WINDOW), 50))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a", b"", r"a: found no text, expected files with at least 1,024 bytes"),
        ("a", b"x" * 1_023, r"a: found 1,023 bytes of text, expected at least 1,024 \(32 windows\)"),
        ("a.jsonl", b"\n" * 2_000, r"a\.jsonl: found no text to"),
        ("a.jsonl", b'{"text": 1}\n' * 200, r"a\.jsonl: found something else in the line at byte \d+, expected an obj"),
        ("a.jsonl", b"[]\n" * 500, r"expected an object with a string as text"),
        ("a.jsonl", b'"\xff\n' * 500, r"expected an object with a string as text"),
    ],
)
def test_useless_text_is_named(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(TextError, match=message):
        windows(open_text([tmp_path / name], WINDOW), 20)


def test_long_lines_pipes_and_missing_files_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.jsonl").write_bytes(b"x" * 200_000)
    monkeypatch.setattr(text_files, "LINE_BYTES", 100_000)
    with pytest.raises(TextError, match=r"a\.jsonl: found a line around byte \d+ of more than 100,000 bytes"):
        windows(open_text([tmp_path / "a.jsonl"], WINDOW))
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(TextError, match="pipe: found a pipe or device"):
        open_text([tmp_path / "pipe"], WINDOW)
    with pytest.raises(FileNotFoundError):
        open_text([tmp_path / "nothing"], WINDOW)


def test_file_that_shrinks_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(numbered(1_000))
    text = open_text([path], WINDOW)
    path.write_bytes(b"short")
    with pytest.raises(TextError, match="found fewer bytes than before, expected 7,000"):
        windows(text, 20)
