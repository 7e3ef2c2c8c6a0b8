import errno
import io
import json
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fastblt.models.training import corpus_sources
from fastblt.models.training.corpus import build_corpus, is_heldout, load_corpus
from fastblt.models.training.corpus_sources import SOURCES, CorpusError, Document, Source, fetch, text_digest

DOCUMENTS: list[Document] = [(f"doc{i:03d}", f"text {i}\n".encode() * (i % 5 + 1)) for i in range(120)]
SOURCE = Source("toy", "CC0-1.0", "made up", "1", 4, text_digest(DOCUMENTS), client="pip")


def read_toy(source: Source, cache: Path) -> list[Document]:
    return DOCUMENTS


@pytest.fixture
def built(tmp_path: Path) -> Path:
    return build_corpus(tmp_path / "corpus", tmp_path / "cache", sources=[SOURCE], reader=read_toy)


def test_split_rule_is_fixed_by_names_alone() -> None:
    pycode = SOURCES[0]
    assert is_heldout(pycode, "subprocess.py")
    assert not is_heldout(pycode, "zipfile.py")
    heldout = [name for name, _ in DOCUMENTS if is_heldout(SOURCE, name)]
    assert 0 < len(heldout) < len(DOCUMENTS) / 8
    assert heldout == [name for name, _ in reversed(DOCUMENTS) if is_heldout(SOURCE, name)][::-1]


def test_every_source_pins_text_and_file() -> None:
    for source in SOURCES:
        assert len(source.text_sha256) == 64
        assert (len(source.file_sha256) == 64) == (source.client != "none") == bool(source.filename)


def test_corpus_holds_every_document_once_when_loaded(built: Path) -> None:
    corpus = load_corpus(built)
    assert corpus.names == ("toy",)
    seen = {}
    for split in (corpus.train, corpus.heldout):
        for row, name in enumerate(split.names.tolist()):
            assert is_heldout(SOURCE, name) == (split is corpus.heldout)
            seen[name] = split.document(row).tobytes()
    assert sorted(seen.items()) == DOCUMENTS


def test_two_builds_are_the_same(built: Path, tmp_path: Path) -> None:
    other = build_corpus(tmp_path / "other", tmp_path / "cache", sources=[SOURCE], reader=read_toy)
    assert sorted(path.name for path in other.iterdir()) == ["heldout.bin", "index.json", "train.bin"]
    for path in other.iterdir():
        assert path.read_bytes() == (built / path.name).read_bytes()


def truncate(folder: Path) -> None:
    path = folder / "train.bin"
    path.write_bytes(path.read_bytes()[:-1])


def change_byte(folder: Path) -> None:
    path = folder / "heldout.bin"
    path.write_bytes(b"X" + path.read_bytes()[1:])


def edit_index(folder: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    path = folder / "index.json"
    index = json.loads(path.read_text())
    edit(index)
    path.write_text(json.dumps(index))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (truncate, r"train\.bin: found \d+ bytes, expected \d+"),
        (change_byte, r"heldout\.bin: found sha256 \w+, expected \w+"),
        (lambda f: (f / "heldout.bin").unlink(), r"heldout\.bin: not found, expected the text that index\.json lists"),
        (lambda f: (f / "index.json").unlink(), r"index\.json: not found"),
        (lambda f: (f / "index.json").write_text("{"), r"index\.json: not JSON"),
        (lambda f: (f / "index.json").write_text("[]"), r"found format None, expected 'fastblt-corpus-1'"),
        (lambda f: edit_index(f, lambda i: i.pop("train")), r"index\.json: malformed \(KeyError: 'train'\), expected"),
        (
            lambda f: edit_index(f, lambda i: i["train"]["documents"].pop()),
            r"train\.bin: documents in index\.json do not cover its \d+ bytes",
        ),
        *(
            (lambda f, n=name, v=value: edit_index(f, lambda i: i["train"]["documents"][0].update({n: v})), message)
            for name, value, message in (
                ("length", -1, r"index\.json: malformed \(TypeError: found -1, expected an integer from 0"),
                ("length", 1.5, r"index\.json: malformed \(TypeError: found 1\.5"),
                ("offset", 10**400, r"index\.json: malformed \(TypeError: found 'an integer of 1329 bits'"),
                ("offset", True, r"index\.json: malformed \(TypeError: found True"),
                (
                    "name",
                    "x" * 10**5,
                    r"index\.json: malformed \(TypeError: found name 'x{80}\.\.\. \(100000 characters",
                ),
                ("name", "\x1b", r"index\.json: malformed \(TypeError: found name '\\x1b'"),
                ("corpus", ["toy"], r"index\.json: malformed \(TypeError: found name \['toy'\]"),
            )
        ),
        (lambda f: edit_index(f, lambda i: i["train"].update(bytes="1")), r"train\.bin: found \d+ bytes, expected '1'"),
        (lambda f: edit_index(f, lambda i: i["train"].update(documents=5)), r"index\.json: malformed \(TypeError"),
        (lambda f: edit_index(f, lambda i: i.update(sources=[])), r"documents of \['toy'\] in index\.json"),
    ],
)
def test_load_names_file_and_fault(built: Path, damage: Callable[[Path], object], message: str) -> None:
    damage(built)
    with pytest.raises(CorpusError, match=message):
        load_corpus(built)


def test_nothing_is_left_when_the_build_is_interrupted(tmp_path: Path) -> None:
    out = tmp_path / "out"

    def read_then_stop(source: Source, cache: Path) -> list[Document]:
        if source.name == "second":
            assert list(tmp_path.glob(".out.*/train.bin")), "the first source is on disk by now"
            raise KeyboardInterrupt
        return DOCUMENTS

    with pytest.raises(KeyboardInterrupt):
        build_corpus(out, tmp_path, sources=[SOURCE, replace(SOURCE, name="second")], reader=read_then_stop)
    assert list(tmp_path.iterdir()) == []


class FullFile(io.FileIO):
    """A file whose last bytes do not fit: closing it says so, without its name."""

    def close(self) -> None:
        was_open = not self.closed
        super().close()
        if was_open:
            raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_is_named_whatever_call_finds_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usual = Path.open

    def open_full(path: Path, mode: str = "r", **options: Any) -> Any:
        return FullFile(path, mode) if path.name == "heldout.bin" and mode == "ab" else usual(path, mode, **options)

    monkeypatch.setattr(Path, "open", open_full)
    with pytest.raises(OSError, match=r"No space left on device: '.*corpus/heldout.bin'"):
        build_corpus(tmp_path / "corpus", tmp_path / "cache", sources=[SOURCE], reader=read_toy)
    assert list(tmp_path.iterdir()) == []


def test_build_keeps_an_existing_folder(built: Path, tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="exists already"):
        build_corpus(built, tmp_path, sources=[SOURCE], reader=read_toy)
    load_corpus(built)


def test_build_rejects_other_text(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=r"toy 1: sha256 of the text is \w+, expected 0000"):
        build_corpus(tmp_path / "c", tmp_path, sources=[replace(SOURCE, text_sha256="0000")], reader=read_toy)


def test_other_python_needs_the_flag_and_is_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.python_version", lambda: "3.12.1")
    source = replace(SOURCE, name="pycode", client="none", version="3.11.7", text_sha256="0000")
    with pytest.raises(CorpusError, match=r"pycode 3\.12\.1: .*allow_other_python"):
        build_corpus(tmp_path / "c", tmp_path, sources=[source], reader=read_toy)
    build_corpus(tmp_path / "c", tmp_path, sources=[source], reader=read_toy, allow_other_python=True)
    (entry,) = json.loads((tmp_path / "c" / "index.json").read_text())["sources"]
    assert (entry["version"], entry["text_sha256"]) == ("3.12.1", text_digest(DOCUMENTS))
    monkeypatch.setattr("platform.python_version", lambda: "3.11.7")
    with pytest.raises(CorpusError, match="not the released one"):
        build_corpus(tmp_path / "d", tmp_path, sources=[source], reader=read_toy, allow_other_python=True)


def test_fetch_rejects_another_file_in_the_cache(tmp_path: Path) -> None:
    source = SOURCES[-1]
    (tmp_path / source.filename).write_bytes(b"something else")
    with pytest.raises(CorpusError, match=rf"gz: found sha256 \w+, expected {source.file_sha256}"):
        fetch(source, tmp_path)


def test_fetch_says_which_client_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda _: None)
    with pytest.raises(CorpusError, match="pydocs: apt-get is not installed; the file python3"):
        fetch(SOURCES[1], tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_deb_contents_are_read_from_the_ar_archive(tmp_path: Path) -> None:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:xz") as archive:
        member = tarfile.TarInfo("./doc/html/_sources/a.rst.txt")
        member.size = 7
        archive.addfile(member, io.BytesIO(b"A\r\n\r\n\r\n"))
    members = (("debian-binary", b"2.0\n"), ("odd", b"abc"), ("data.tar.xz", packed.getvalue()))
    parts = [b"%-48s%-10d`\n" % (name.encode(), len(raw)) + raw + b"\n" * (len(raw) % 2) for name, raw in members]
    path = tmp_path / "a.deb"
    path.write_bytes(b"!<arch>\n" + b"".join(parts))
    assert corpus_sources._pydocs_documents(path) == [("a.rst.txt", b"A\n")]
    path.write_bytes(b"no archive")
    with pytest.raises(CorpusError, match="not a Debian package"):
        corpus_sources._pydocs_documents(path)


@pytest.mark.parametrize(
    ("osis", "text"),
    [
        ('<w lemma="x">Yahweh’s</w><note>His <b>name</b></note><w>law</w>.', "Yahweh’s law."),
        ("<w>seed</w><note>n</note>, and <title>A psalm</title><l/>so", "seed, and so"),
        ('Amen. <chapter eID="Rev.22"/> <div>Glossary</div>', "Amen."),
    ],
)
def test_verse_text_drops_markup_and_notes(osis: str, text: str) -> None:
    assert corpus_sources._verse_text(osis) == text


def test_gutenberg_notices_are_cut() -> None:
    text = b"Licence\n*** START OF THIS PROJECT GUTENBERG EBOOK X ***\n\nPlay\n\n*** END OF THIS ...\nmore\n"
    assert corpus_sources._without_gutenberg_notices(text) == b"Play\n"
    assert corpus_sources._without_gutenberg_notices(b"Play\n") == b"Play\n"
