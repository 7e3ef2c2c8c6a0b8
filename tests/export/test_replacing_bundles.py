"""An export whose disk fills, that is killed, or that finds a folder: the earlier bundle or the new one is there."""

from __future__ import annotations

import errno
import io
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fakes.bundle_folders import FILES, assert_nothing_is_left, assert_only, contents

from fastblt.export import graph_file
from fastblt.export.bundle_writer import export_bundle
from fastblt.models import atomic_folder
from fastblt.models.atomic_folder import scratch_folder
from fastblt.runtime.bundle.bundle import Bundle
from fastblt.runtime.bundle.manifest import (
    EMBEDDINGS_FILE,
    load_manifest,
)
from fastblt.runtime.bundle.target import TargetError


class FullDisk:
    """A file that takes a few bytes and then finds the disk full."""

    def __init__(self, file: Any) -> None:
        self._file = file

    def write(self, data: Any) -> int:
        self._file.write(data[:100])
        self._file.flush()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self._file.name)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> FullDisk:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()


@pytest.fixture
def fill_disk(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """``fill_disk(name)``: writing any file of this name fails."""

    def fill(name: str) -> None:
        real = io.open

        def opened(file: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
            found = real(file, mode, *args, **kwargs)
            full = set(mode) & set("wax+") and Path(os.fsdecode(os.fspath(file))).name == name
            return FullDisk(found) if full else found

        monkeypatch.setattr("io.open", opened)
        monkeypatch.setattr("builtins.open", opened)

    return fill


@pytest.mark.parametrize("replacing", [False, True], ids=["new", "replacing"])
@pytest.mark.parametrize("name", sorted(FILES))
def test_nothing_is_left_when_the_disk_is_full(
    tiny_checkpoint: Path, old_bundle: Path, name: str, replacing: bool, fill_disk: Callable[[str], None]
) -> None:
    before = contents(old_bundle)
    if not replacing:
        shutil.rmtree(old_bundle)
    fill_disk(name)
    with pytest.raises(OSError, match="No space left on device") as caught:
        export_bundle(tiny_checkpoint, old_bundle, verify=False, force=True)
    assert caught.value.errno == errno.ENOSPC
    if replacing:
        assert_only(old_bundle, before)
    else:
        assert_nothing_is_left(old_bundle.parent)


@pytest.mark.parametrize("external", [False, True], ids=["inside", "beside"])
def test_nothing_is_left_when_the_system_refuses_to_write_more(
    tiny_checkpoint: Path, tmp_path: Path, external: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if external:
        monkeypatch.setattr(graph_file, "EXTERNAL_BYTES", 0)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    # The global graph is larger, those before it are not. Python ignores the signal, so that write() fails.
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            export_bundle(tiny_checkpoint, tmp_path / "out" / "bundle", verify=False)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert_nothing_is_left(tmp_path / "out")


def test_old_bundle_is_back_when_the_new_one_cannot_take_its_place(
    tiny_checkpoint: Path, old_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, real = contents(old_bundle), os.rename

    def rename(source: Any, target: Any) -> None:
        if Path(target) == old_bundle and "partial" in Path(source).name:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        real(source, target)

    monkeypatch.setattr(atomic_folder, "_exchange", lambda *_: False)
    monkeypatch.setattr("os.rename", rename)
    monkeypatch.setattr("os.replace", rename)
    with pytest.raises(OSError, match="Input/output error"):
        export_bundle(tiny_checkpoint, old_bundle, verify=False, force=True)
    assert_only(old_bundle, before)


#: Exports in a process of its own for each line of standard input, and prints how that process ended.
KILLED = """
import os, signal, sys
from pathlib import Path
from fastblt.export import bundle_writer, verification
from fastblt.models import atomic_folder

for line in sys.stdin:
    checkpoint, bundle, dtype, moment = line.rstrip().split("\\t")
    child = os.fork()
    if child == 0:
        break
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
else:
    sys.exit()

def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)

if moment == "checking a twin":
    real_init = verification.GraphRunner.__init__
    def init(self, path, spec):
        if path.name == "encoder.onnx":
            die()
        real_init(self, path, spec)
    verification.GraphRunner.__init__ = init
if moment == "between renames":
    atomic_folder._exchange = lambda *_: False
    real = os.rename
    def rename(source, target):
        if Path(target) == Path(bundle):
            die()
        real(source, target)
    os.rename = rename
if moment == "half a file":
    def write_tables(path, tables):
        path.write_bytes(b"half")
        die()
    bundle_writer.write_tables = write_tables
bundle_writer.export_bundle(Path(checkpoint), Path(bundle), dtype=dtype, force=True)
"""


@pytest.fixture(scope="module")
def export_until_killed() -> Iterator[Callable[..., int]]:
    """``export_until_killed(checkpoint, bundle, dtype, moment)``: the exit status of an export that kills itself."""
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert process.stdin is not None
    assert process.stdout is not None
    with process:

        def export(*arguments: object) -> int:
            print(*arguments, sep="\t", file=process.stdin, flush=True)
            return int(process.stdout.readline())

        yield export


@pytest.mark.parametrize(
    ("moment", "dtype"),
    [("half a file", "fp16"), ("checking a twin", "bf16"), ("between renames", "fp32")],
)
def test_old_bundle_or_none_is_found_when_export_is_killed(
    tiny_checkpoint: Path, old_bundle: Path, moment: str, dtype: str, export_until_killed: Callable[..., int]
) -> None:
    before = contents(old_bundle)
    assert export_until_killed(tiny_checkpoint, old_bundle, dtype, moment) == -signal.SIGKILL
    if moment != "between renames":
        assert contents(old_bundle) == before
    elif old_bundle.exists():
        Bundle.open(old_bundle)
    # The next export is not hindered, and removes what the killed one left.
    export_bundle(tiny_checkpoint, old_bundle, verify=False, force=True)
    Bundle.open(old_bundle)
    assert list(old_bundle.parent.iterdir()) == [old_bundle]


def test_temporary_folder_stays_when_its_export_may_still_be_running(tiny_checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    other = out / ".bundle2.fastblt-abc.partial"
    dead = out / ".bundle.fastblt-abc.partial"
    for folder in (other, dead):
        (folder / "x").mkdir(parents=True)
    with scratch_folder(out / "bundle") as running:
        export_bundle(tiny_checkpoint, out / "bundle", verify=False)
        assert {p.name for p in out.iterdir()} == {"bundle", running.name, other.name}


def test_bundle_is_replaced_as_a_whole_when_exported_again(tiny_checkpoint: Path, old_bundle: Path) -> None:
    (old_bundle / "stale.onnx.data").write_bytes(b"of the old bundle")
    export_bundle(tiny_checkpoint, old_bundle, hash_tables="graph", verify=False, force=True)
    assert list(old_bundle.parent.iterdir()) == [old_bundle]
    assert {p.name for p in old_bundle.iterdir()} == FILES - {EMBEDDINGS_FILE}
    manifest = load_manifest(old_bundle)
    Bundle.open(old_bundle)
    assert manifest.model == "tiny"


def test_old_bundle_stays_until_the_new_one_is_verified(tiny_checkpoint: Path, old_bundle: Path) -> None:
    before, seen = contents(old_bundle), []

    def watch(done: int, total: int, what: str) -> None:
        assert done == total or contents(old_bundle) == before
        seen.append(what)

    export_bundle(tiny_checkpoint, old_bundle, force=True, on_progress=watch)
    assert "comparing with PyTorch: decoder.onnx" in seen
    assert contents(old_bundle) != before


def test_empty_folder_is_filled(tiny_checkpoint: Path, tmp_path: Path) -> None:
    bundle = tmp_path / "out" / "bundle"
    bundle.mkdir(parents=True)
    export_bundle(tiny_checkpoint, bundle, verify=False)
    Bundle.open(bundle)
    assert list(bundle.parent.iterdir()) == [bundle]


def test_earlier_bundle_is_not_replaced_unless_forced(tiny_checkpoint: Path, old_bundle: Path) -> None:
    before = contents(old_bundle)
    with pytest.raises(TargetError, match=f"^{old_bundle}: found a bundle, expected a new name; --force replaces it$"):
        export_bundle(tiny_checkpoint, old_bundle, verify=False)
    assert_only(old_bundle, before)


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("kind", ["folder", "file", "checkpoint"])
def test_what_is_no_bundle_is_never_replaced(tiny_checkpoint: Path, tmp_path: Path, kind: str, force: bool) -> None:
    target = tmp_path / "out" / "precious"
    if kind == "file":
        target.parent.mkdir()
        target.write_text("mine")
    elif kind == "folder":
        (target / "sub").mkdir(parents=True)
    else:
        shutil.copytree(tiny_checkpoint, target)
    before = contents(target.parent)
    checkpoint = target if kind == "checkpoint" else tiny_checkpoint
    with pytest.raises(TargetError, match="precious: exists and is not a bundle, expected"):
        export_bundle(checkpoint, target, force=force)
    assert contents(target.parent) == before
    assert list(target.parent.iterdir()) == [target]
