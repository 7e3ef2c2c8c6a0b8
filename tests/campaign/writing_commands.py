"""Lists the commands that write, and how to decide whether what one of them has left is whole."""

from __future__ import annotations

import hashlib
import json
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from safetensors import safe_open

from fastblt.models.atomic_partial import PARTIAL
from fastblt.models.checkpoint import load_checkpoint
from fastblt.runtime.bundle.bundle import Bundle
from fastblt.runtime.bundle.engines import check_engine, engine_folders, load_engine_folder

#: Folder below the fixtures of what these commands read.
INPUTS = "inputs"

_TINY = ("--prompts", "1", "--max-new-bytes", "16")
_FEW = ("--samples", "16", "--prompts", "1", "--windows", "1", "--window-bytes", "64", "--budget", "bpb=900%")
_EVAL = (
    "--windows",
    "1",
    "--window-bytes",
    "96",
    "--anchors",
    "1",
    "--k",
    "4",
    "--blocks",
    "4",
    "--draft-rules",
    "one",
)
_EVAL_TEXT = ("--rules", "one", "--mask-rates", "0.5", "--top-p", "0.8", "--gamma", "2.0")


@dataclass(frozen=True)
class WritingCommand:
    """Describes a command that writes, with ``{in}`` for the folder of its inputs; it runs in the target's folder."""

    name: str
    arguments: Sequence[str]
    target: str
    """What it writes: a name in the folder where it runs."""
    check: Callable[[Path], None]
    """Raises if the target is not whole."""
    weight: float
    """How often it is chosen, relative to the others: quick ones are chosen more often."""
    old: str = ""
    """What is in the target's place before, in half of the tries: a name in the folder of inputs."""
    replaces: Sequence[str] = ()
    """Arguments to add where something is in the target's place."""
    starts_with: str = ""
    """What the target is before the command changes it in place: a name in the folder of inputs."""
    again: Sequence[str] = ()
    """Arguments to add when an interrupted command is repeated."""
    toy: bool = False
    """Runs with a toy corpus in place of the real one."""
    finished: Callable[[Path], None] | None = None
    """Raises if the target of a command that came to its end is not whole; None: as ``check``."""
    varies: bool = False
    """Writes what the machine is like at the moment."""
    keeps: Sequence[str] = ()
    """Further names that it leaves beside the target."""


def _bundle(path: Path) -> None:
    bundle = Bundle.open(path)
    extra = {each.name for each in path.iterdir()} - {"manifest.json", *bundle.manifest.files}
    if not extra <= {"quantization.md", "quantization.json", "engines"}:
        raise ValueError(f"found {sorted(extra)} in the bundle")


def _engines(path: Path) -> None:
    _bundle(path)
    folders = engine_folders(path)
    found = {each.name for each in path.glob("engines/*") if not each.name.startswith(".")}
    if found != {each.name for each in folders}:
        raise ValueError(f"found {sorted(found)} in engines/")
    for each in folders:
        folder = load_engine_folder(each)
        for engine in folder.engines:
            check_engine(folder, engine)


def _archive(path: Path) -> None:
    with tarfile.open(path) as tar:
        content = {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]
    for line in content["SHA256SUMS"].decode().splitlines():
        digest, _, name = line.partition("  ")
        if hashlib.sha256(content[name]).hexdigest() != digest:
            raise ValueError(f"found another {name} than SHA256SUMS has")


def _json(path: Path) -> None:
    if not isinstance(json.loads(path.read_text(encoding="utf-8")), dict):
        raise ValueError("found no JSON object")


def _tensors(path: Path) -> None:
    with safe_open(path, framework="numpy") as file:
        for name in file.keys():  # noqa: SIM118
            file.get_tensor(name)


def _checkpoint(path: Path) -> None:
    json.loads((path / "config.json").read_text(encoding="utf-8"))
    for file in path.glob("*.safetensors"):
        _tensors(file)


def _run(path: Path) -> None:
    """Check what there is of a training run: every file is optional, none may be half written but the log."""
    for name in ("recipe.json", "report.json"):
        if (path / name).exists():
            _json(path / name)
    if (path / "state.safetensors").exists():
        _tensors(path / "state.safetensors")
    if (path / "checkpoint").exists():
        load_checkpoint(path / "checkpoint")


def _finished_run(path: Path) -> None:
    _run(path)
    for line in (path / "log.jsonl").read_text(encoding="utf-8").splitlines():
        json.loads(line)
    expected = {"checkpoint", "curves.png", "log.jsonl", "recipe.json", "report.json", "state.safetensors"}
    found = {each.name for each in path.iterdir()}
    if found != expected:
        raise ValueError(f"found {sorted(found)}, expected {sorted(expected)}")


def _corpus(path: Path) -> None:
    index = json.loads((path / "index.json").read_text(encoding="utf-8"))
    for split in ("train", "heldout"):
        if hashlib.sha256((path / f"{split}.bin").read_bytes()).hexdigest() != index[split]["sha256"]:
            raise ValueError(f"found another {split}.bin than index.json has")


def _evaluation(path: Path) -> None:
    for each in path.iterdir():
        if each.suffix == PARTIAL:
            continue  # is judged as what was left
        if each.suffix == ".json":
            _json(each)
        elif each.read_bytes()[:8] != b"\x89PNG\r\n\x1a\n" or each.read_bytes()[-8:-4] != b"IEND":
            raise ValueError(f"found {each.name}, which is no whole picture")


def _finished_evaluation(path: Path) -> None:
    _evaluation(path)
    _json(path / "eval.json")


#: Every command that writes, in each of its ways to write.
COMMANDS = (
    WritingCommand(
        "export", ("export", "{in}/checkpoint", "out"), "out", _bundle, 3, old="other-bundle", replaces=("--force",)
    ),
    WritingCommand("export-lowered", ("export", "random:tiny", "out", "--lowered"), "out", _bundle, 1),
    WritingCommand("pack", ("pack", "{in}/bundle", "out.tar"), "out.tar", _archive, 10, old="other.tar.gz"),
    WritingCommand("pack-gz", ("pack", "{in}/bundle", "out.tar.gz"), "out.tar.gz", _archive, 10, old="other.tar.gz"),
    WritingCommand("unpack", ("unpack", "{in}/archive.tar.gz", "out"), "out", _bundle, 12),
    WritingCommand("convert", ("convert", "{in}/blt-checkpoint", "out", "--to", "transformers"), "out", _checkpoint, 4),
    WritingCommand("convert-own", ("convert", "{in}/blt-checkpoint", "out", "--to", "fastblt"), "out", _checkpoint, 4),
    WritingCommand(
        "quantize",
        ("quantize", "{in}/bundle", "out", "--scheme", "w8", *_FEW),
        "out",
        _bundle,
        2,
        old="other-bundle",
        replaces=("--force",),
    ),
    WritingCommand(
        "quantize-traces",
        ("quantize", "{in}/bundle", "out", "--scheme", "w8", *_FEW, "--traces", "traces"),
        "out",
        _bundle,
        2,
        keeps=("traces",),
    ),
    WritingCommand(
        "compile",
        ("compile", "out", "--sm", "86", "--max-bytes", "256"),
        "out",
        _engines,
        1.5,
        starts_with="bundle",
        old="engines-bundle",
    ),
    WritingCommand(
        "data",
        ("data", "out", "--cache", "{in}/cache"),
        "out",
        _corpus,
        8,
        toy=True,
    ),
    WritingCommand(
        "train",
        ("train", "{in}/recipe.json", "--out", "out", "--data", "{in}/corpus", "--threads", "1"),
        "out",
        _run,
        3,
        again=("--resume",),
        toy=True,
        finished=_finished_run,
        old="stopped-run",
        replaces=("--resume",),
    ),
    WritingCommand(
        "bench",
        ("bench", "{in}/bundle", "--methods", "ar", *_TINY, "--json", "out.json"),
        "out.json",
        _json,
        2,
        old="old.json",
    ),
    WritingCommand(
        "audit",
        ("audit", "{in}/bundle", *_TINY, "--methods", "s:4", "--json", "out.json"),
        "out.json",
        _json,
        2,
        old="old.json",
    ),
    WritingCommand(
        "eval",
        ("eval", "{in}/bundle", "--against", "none", *_TINY, *_EVAL, *_EVAL_TEXT, "--out", "out"),
        "out",
        _evaluation,
        1.5,
        finished=_finished_evaluation,
    ),
    WritingCommand("inspect", ("inspect", "{in}/bundle", "--json", "out.json"), "out.json", _json, 10, old="old.json"),
    WritingCommand("doctor", ("doctor", "--json", "out.json"), "out.json", _json, 5, old="old.json", varies=True),
)
