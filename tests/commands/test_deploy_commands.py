"""compile, verify, doctor, pack and unpack from the command line."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from fakes.cuda import FakeCuda
from fakes.tensorrt import FakeTensorRt
from typer.testing import CliRunner, Result

from fastblt.cli import app
from fastblt.commands.doctor import bundle_notes
from fastblt.commands.polygraphy import write_polygraphy
from fastblt.runtime.backends.gpu.bound_graph import BoundGraph
from fastblt.runtime.bundle.archive import pack
from fastblt.runtime.bundle.bundle import Bundle
from fastblt.runtime.bundle.engines import ENGINES_FILE, load_engine_folder
from fastblt.runtime.bundle.target import TargetError
from fastblt.runtime.doctor.engine_memory import engine_memory
from fastblt.runtime.doctor.facts import Gpu, MachineFacts
from fastblt.runtime.doctor.verdicts import Verdict


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    """A machine with one GPU, cuda-python and TensorRT-RTX (see `fakes`)."""
    cuda = FakeCuda()
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", cuda)
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", FakeTensorRt(cuda))
    return cuda


@pytest.fixture
def bundle(tiny_bundle: Path, tmp_path: Path) -> Path:
    shutil.copytree(tiny_bundle, tmp_path / "bundle")
    return tmp_path / "bundle"


def test_compile_prints_every_engine_and_its_size_and_replaces_earlier_ones(compiled_by_command: Path) -> None:
    trt = pytest.importorskip("tensorrt_rtx")
    (folder,) = (compiled_by_command / "bundle" / "engines").iterdir()
    assert folder.name == f"tensorrt-rtx-{trt.__version__}-sm86_89"
    found = load_engine_folder(folder)
    assert found.path == folder
    names = {path.name for path in folder.iterdir()}
    assert names == {ENGINES_FILE, *(engine.file for engine in found.engines)}, "old.engine is gone"
    stdout = (compiled_by_command / "stdout").read_text(encoding="utf-8")
    for engine in found.engines:
        assert engine.file in stdout
    assert "SM 86, 89, fp32" in stdout


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--sm", "87"), "error: sm: found 87, expected one of 75, 80, 86, 89, 120, 121"),
        (("--sm", "x"), "error: --sm: found 'x', expected whole numbers"),
        (("--max-bytes", "0"), "error: --max-bytes: found '0'"),
        (("--dtype", "fp16"), "error: dtype: found 'fp16', expected 'fp32'"),
        (("--timing-cache", "t"), "error: timing cache: found one, but TensorRT-RTX measures no kernels"),
    ],
)
def test_compile_refuses_with_one_line_and_leaves_nothing(bundle: Path, options: tuple[str, ...], message: str) -> None:
    pytest.importorskip("tensorrt_rtx")
    result = run("compile", bundle, *options)
    assert result.exit_code == (2 if "error: --" in message else 1)
    assert message in result.stderr
    assert not (bundle / "engines").exists()


def test_compile_for_tensorrt_needs_its_gpu(bundle: Path, gpu: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakeTensorRt, "__version__", "11.4.0")
    monkeypatch.setitem(sys.modules, "tensorrt", FakeTensorRt(gpu))
    result = run("compile", bundle, "--target", "tensorrt", "--sm", "86")
    assert result.exit_code == 1
    assert "sm: found 86, expected 89: TensorRT compiles on the GPU that it compiles for" in result.stderr


def test_generate_writes_the_same_with_engines_as_without(bundle: Path, gpu: FakeCuda) -> None:
    assert run("compile", bundle, "--max-bytes", "256").exit_code == 0
    options = ("--max-new-bytes", "40", "--method", "s:4", "--max-bytes", "200")
    found, expected = (
        run("generate", bundle, "hello", *options, *more) for more in (("--backend", "tensorrt-rtx"), ())
    )
    assert found.exit_code == expected.exit_code == 0, found.output
    assert found.stdout_bytes == expected.stdout_bytes != b""


def test_verify_passes_and_writes_what_it_compared(bundle: Path, gpu: FakeCuda, tmp_path: Path) -> None:
    assert run("compile", bundle, "--max-bytes", "1024").exit_code == 0
    files = ("--json", tmp_path / "verify.json", "--polygraphy", tmp_path / "calls")
    result = run("verify", bundle, "--methods", "ar,s:4", "--prompts", "1", *files)
    assert result.exit_code == 0, result.output
    assert f"polygraphy run {bundle}/decoder.onnx --onnxrt --load-inputs {tmp_path}/calls/decoder." in result.stdout
    assert (tmp_path / "calls" / "README.md").is_file()
    report = json.loads((tmp_path / "verify.json").read_text())
    assert report["passed"] is True
    assert (report["backend"], report["sm"]) == ("tensorrt-rtx", 89)
    seen = {(row["graph"], row["output"]) for row in report["tensors"]}
    assert seen == {
        ("patcher", "entropy"), ("encoder", "patch_embeddings"), ("global", "latent_kv"),
        ("decoder", "logits"), ("decoder", "probability"), ("decoder", "entropy"), ("decoder", "best"),
        ("decoder", "draft"),
        *((part, f"{kind} cache") for part in ("patcher", "encoder", "global", "decoder") for kind in ("key", "value")),
    }  # fmt: skip
    assert all(row["passed"] and row["calls"] > 0 for row in report["tensors"])
    assert [row["method"] for row in report["audit"]] == ["ar", "s:4"]


@pytest.mark.parametrize("part", ["patcher", "encoder", "global", "decoder"])
def test_verify_names_the_graph_that_computes_something_else(
    bundle: Path, gpu: FakeCuda, part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A graph is skipped now and then, and always where it is recorded: what it should have computed is not there."""
    assert run("compile", bundle, "--max-bytes", "1024").exit_code == 0
    launch, record, calls = BoundGraph.launch, BoundGraph.record, [0]

    def is_damaged(graph: BoundGraph) -> bool:
        return graph.spec.file.startswith({"patcher": "entropy"}.get(part, part))

    def skip(self: BoundGraph) -> None:
        calls[0] += 1
        if not (is_damaged(self) and calls[0] > 200 and calls[0] % 3 == 0):
            launch(self)

    def leave_out(self: BoundGraph) -> None:
        if not is_damaged(self):
            record(self)

    monkeypatch.setattr(BoundGraph, "launch", skip)
    monkeypatch.setattr(BoundGraph, "record", leave_out)
    result = run("verify", bundle, "--methods", "ar", "--prompts", "1")
    assert result.exit_code == 1
    assert f": {part}, output " in result.stderr
    assert "FAILED" in result.stdout


def test_polygraphy_files_have_a_folder_of_their_own(
    bundle: Path, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    for folder, found in ((tmp_path / "full", "something there"), (bundle / "calls", "a bundle as its folder")):
        result = run("verify", bundle, "--polygraphy", folder)
        assert result.exit_code == 1
        assert f"error: {folder}: found {found}" in result.stderr
    with pytest.raises(TargetError, match="found something there"):
        write_polygraphy(bundle, tmp_path / "full")  # it came after the command began
    new = tmp_path / "around" / "new"
    result = run("export", tiny_checkpoint, new, "--polygraphy", new.parent)
    assert f"error: {new.parent}: found the folder that the bundle is in" in result.stderr
    result = run("export", tiny_checkpoint, new, "--polygraphy", new / "calls")
    assert f"error: {new / 'calls'}: found a folder in the bundle" in result.stderr
    assert not new.parent.exists()
    monkeypatch.setitem(sys.modules, "polygraphy", None)
    monkeypatch.delitem(sys.modules, "polygraphy.comparator", raising=False)
    for options in ((), ("--polygraphy", tmp_path / "new")):
        result = run("verify", bundle, *options)
        assert result.exit_code == 1
        error = "error: this command needs the package polygraphy, install it with: pip install 'fastblt[gpu]'\n"
        assert result.stderr == error
    assert list(tmp_path.glob("new*")) == []


def test_verify_refuses_the_cpu_which_is_the_reference(bundle: Path) -> None:
    result = run("verify", bundle, "--backend", "onnxruntime", "--provider", "cpu")
    assert result.exit_code == 1
    assert "backend: found onnxruntime on the CPU, which is the reference" in result.stderr


def test_doctor_says_what_works_and_writes_it(bundle: Path, tmp_path: Path) -> None:
    result = run("doctor", bundle, "--json", tmp_path / "doctor.json")
    assert result.exit_code == 0, result.output
    assert "onnxruntime on the CPU" in result.stdout
    assert "has no engines: fastblt compile makes them" in result.stdout
    report = json.loads((tmp_path / "doctor.json").read_text())
    assert {verdict["way"]: verdict["works"] for verdict in report["verdicts"]}["onnxruntime on the CPU"] is True
    assert report["facts"]["cores"] >= 1


def test_memory_of_engines_is_reported(tiny_engines: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)  # workers of pytest-xdist have it: names would wrap
    (path,) = (tiny_engines / "engines").iterdir()
    opened, folder = Bundle.open(tiny_engines), load_engine_folder(path)
    memory = engine_memory(folder, opened.config, opened.manifest)
    small = Gpu("Small", 89, 2**20, 2**20)
    facts = MachineFacts("Linux", "3.12", "CPU", 1, None, gpus=(small,))
    lines = bundle_notes(tiny_engines, facts)
    at = next(index for index, line in enumerate(lines) if line.startswith(f"up to {memory[-1].max_bytes} bytes"))
    total = f"{memory[-1].total / 2**20:,.0f} MiB"
    assert lines[at].startswith(f"up to {memory[-1].max_bytes} bytes of text: {total} on the device (engines ")
    assert lines[at + 1] == "does not fit Small: 1 MiB are free"
    result = run("inspect", tiny_engines, "--json", tmp_path / "facts.json")
    assert result.exit_code == 0, result.output
    assert path.name[:20] in result.stdout
    found = json.loads((tmp_path / "facts.json").read_text())["engines"]
    assert [(each["max_bytes"], each["total"]) for each in found] == [(each.max_bytes, each.total) for each in memory]


def test_doctor_prints_what_to_do_in_lines_that_can_be_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    command = "pip install 'fastblt[tensorrt-rtx]'"
    verdicts = [Verdict(way, False, "it is not installed", command) for way in ("compile", "run")]
    monkeypatch.setattr("fastblt.commands.doctor.assess", lambda facts: [*verdicts, Verdict("cpu", True, "1.0")])
    monkeypatch.setenv("COLUMNS", "80")
    lines = run("doctor").stdout.splitlines()
    at = lines.index("for compile, run:")
    assert lines[at + 1].strip() == command


def test_doctor_names_what_w4_costs_on_cuda(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "w4 with" not in run("doctor", bundle).stdout
    monkeypatch.setattr("fastblt.runtime.bundle.manifest.Manifest.precisions", {"w4/32"})
    assert "w4 with onnxruntime --provider cuda: one row and several take different" in run("doctor", bundle).stdout


def test_doctor_fails_when_the_bundle_is_damaged(bundle: Path) -> None:
    (bundle / "decoder.onnx").write_bytes(b"")
    result = run("doctor", bundle)
    assert result.exit_code == 1
    assert "decoder.onnx: found 0 bytes" in result.stderr


def test_bundle_is_packed_and_unpacked(bundle: Path, tmp_path: Path) -> None:
    packed = run("pack", bundle, tmp_path / "box.tar.gz")
    assert packed.exit_code == 0, packed.output
    assert "sha256" in packed.stdout
    unpacked = run("unpack", tmp_path / "box.tar.gz", tmp_path / "out")
    assert unpacked.exit_code == 0, unpacked.output
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == sorted(p.name for p in bundle.iterdir())
    again = run("unpack", tmp_path / "box.tar.gz", tmp_path / "out")
    assert (again.exit_code, "exists, expected a new name" in again.stderr) == (1, True)


@pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="no ssh-keygen")
def test_archive_is_signed_and_verified(bundle: Path, tmp_path: Path) -> None:
    for name in ("key", "other"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / name], check=True)
    box = tmp_path / "box.tar"
    packed = run("pack", bundle, box, "--sign", tmp_path / "key")
    assert (packed.exit_code, ", signed, sha256" in packed.stdout) == (0, True), packed.output
    verified = run("unpack", box, tmp_path / "a", "--verify", tmp_path / "key.pub")
    assert (verified.exit_code, ", signed by the key SHA256:" in verified.stdout) == (0, True), verified.output
    assert "; the signature was not verified (--verify KEYS)" in run("unpack", box, tmp_path / "b").stdout
    refused = run("unpack", box, tmp_path / "c", "--verify", tmp_path / "other.pub")
    assert (refused.exit_code, "not verified: found a signature of the key SHA256:" in refused.stderr) == (1, True)
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize("to", ["file", "pipe"])
def test_archive_may_go_to_the_standard_output(bundle: Path, tmp_path: Path, to: str) -> None:
    """Whatever that is: nothing else goes there."""
    pack(bundle, tmp_path / "expected.tar")
    command = [sys.executable, "-m", "fastblt", "pack", str(bundle), "/dev/stdout"]
    with (tmp_path / "found.tar").open("wb") as file:
        done = subprocess.run(command, stdout=file if to == "file" else subprocess.PIPE, stderr=subprocess.PIPE)
    assert (done.returncode, b"/dev/stdout: " in done.stderr) == (0, True)
    found = (tmp_path / "found.tar").read_bytes() if to == "file" else done.stdout
    assert found == (tmp_path / "expected.tar").read_bytes()


def test_report_may_go_to_a_device_or_a_pipe(bundle: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    read: list[str] = []
    reader = threading.Thread(target=lambda: read.append((tmp_path / "pipe").read_text()))
    reader.start()
    assert run("inspect", bundle, "--json", tmp_path / "pipe").exit_code == 0
    reader.join(10)
    assert json.loads(read[0])
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)
    assert run("inspect", bundle, "--json", os.devnull).exit_code == 0
    assert stat.S_ISCHR(os.stat(os.devnull).st_mode)
