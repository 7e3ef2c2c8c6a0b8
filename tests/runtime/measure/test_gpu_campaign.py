"""`fastblt gpu-campaign`: steps in time boxes, what is kept of them, and the whole command over the stub of CUDA."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fakes.cuda_stub import build

from fastblt.runtime.measure.gpu_campaign.plan import Site, Step, plan
from fastblt.runtime.measure.gpu_campaign.record import (
    DONE,
    FAILED,
    FILE,
    PENDING,
    SKIPPED,
    CampaignError,
    Found,
    Record,
    describe_machine,
    open_record,
)
from fastblt.runtime.measure.gpu_campaign.report import deploy_rows, report
from fastblt.runtime.measure.gpu_campaign.run import run_steps

TESTS = Path(__file__).resolve().parents[2]
USES = (
    "onnxruntime --provider cuda",
    "run --backend tensorrt-rtx",
    "compile --target tensorrt-rtx",
    "compile and run, tensorrt",
    "eager on the CPU",
    "eager --provider cuda",
)


def doctor(*missing: str, gpu: str = "NVIDIA L4") -> dict[str, Any]:
    """What `fastblt doctor` writes where everything works, some uses excepted."""
    facts = {
        "cpu": "a CPU",
        "cores": 4,
        "system": "Linux x86_64",
        "driver_version": "580.95.05",
        "driver_cuda": "13.0",
        "cuda_bindings": "13.0.1",
        "onnxruntime": "1.31.1",
        "onnxruntime_package": "onnxruntime-gpu",
        "torch": None,
        "gpus": [{"name": gpu, "sm": 89, "memory_bytes": 24 << 30, "free_bytes": 23 << 30}],
        "libraries": [{"target": "tensorrt", "version": "10.3.0", "updates_caches": False}],
    }
    verdicts = [
        {"way": use, "works": use not in missing, "reason": "it is missing", "remedy": "pip install it"} for use in USES
    ]
    return {"facts": facts, "verdicts": verdicts}


def machine(gpu: str = "NVIDIA L4") -> dict[str, Any]:
    return describe_machine(doctor(gpu=gpu)["facts"], "checkpoint", "random:tiny")


def code(name: str, text: str, **options: Any) -> Step:
    """A step that runs some Python."""
    return Step(name, "a step", ("-c", text), options.pop("seconds", 60), **options)


def run(folder: Path, steps: list[Step], minutes: float = 25) -> Record:
    record = open_record(folder, machine())
    run_steps(record, steps, minutes, lambda step, found: None)
    return record


def test_finished_step_is_not_run_again_and_a_failed_one_is(tmp_path: Path) -> None:
    count = "import sys; open(sys.argv[1], 'a').write('x')"
    steps = [
        Step("good", "", ("-c", count, str(tmp_path / "good")), 60),
        Step("bad", "", ("-c", f"{count}; sys.exit('error: no luck')", str(tmp_path / "bad")), 60),
        code("after", "", needs=("bad",)),
    ]
    for _ in range(2):
        record = run(tmp_path / "out", steps)
        assert [record.steps[step.name].state for step in steps] == [DONE, FAILED, SKIPPED]
    assert record.steps["bad"].error == "no luck"
    assert record.steps["after"].error == "needs bad, which is failed"
    assert ((tmp_path / "good").read_text(), (tmp_path / "bad").read_text()) == ("x", "xx")


def test_what_a_failed_step_has_written_is_kept(tmp_path: Path) -> None:
    file = tmp_path / "result.json"
    text = f"open({str(file)!r}, 'w').write('[1]'); raise SystemExit('error: 1 is wrong')"
    found = run(tmp_path, [code("verify", text, result=file)]).steps["verify"]
    assert (found.state, found.result, found.error) == (FAILED, [1], "1 is wrong")


@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_step_that_takes_too_long_ends_with_what_it_started(tmp_path: Path) -> None:
    child = tmp_path / "child"
    text = (
        "import subprocess, sys, time; c = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']); "
        f"open({str(child)!r}, 'w').write(str(c.pid)); time.sleep(60)"
    )
    began = time.monotonic()
    record = run(tmp_path, [code("slow", text, seconds=2), code("next", "")])
    assert time.monotonic() - began < 30
    assert record.steps["slow"].error == "took longer than its 2 s"
    assert record.steps["next"].state == DONE
    for _ in range(100):
        status = Path(f"/proc/{child.read_text()}/stat")
        if not status.exists() or status.read_text().rpartition(")")[2].split()[0] == "Z":
            return
        time.sleep(0.1)
    pytest.fail("what the step started still runs")


def test_steps_that_the_time_does_not_reach_wait_for_the_next_call(tmp_path: Path) -> None:
    steps = [code("first", "import time; time.sleep(60)", seconds=1500), code("second", "", seconds=1500)]
    record = run(tmp_path, steps, minutes=0.01)
    assert [record.steps[step.name].state for step in steps] == [FAILED, PENDING]
    assert run(tmp_path, steps[1:]).steps["second"].state == DONE


def test_program_that_is_missing_is_a_failed_step(tmp_path: Path) -> None:
    step = Step("profile", "", (str(tmp_path / "nsys"),), 60)
    assert run(tmp_path, [step]).steps["profile"].error == f"{tmp_path / 'nsys'}: No such file or directory"


def test_campaign_of_another_machine_is_not_continued(tmp_path: Path) -> None:
    run(tmp_path, [code("first", "")])
    with pytest.raises(CampaignError, match=r"gpu: found a campaign with 'NVIDIA L4', expected 'NVIDIA T4'"):
        open_record(tmp_path, machine("NVIDIA T4"))
    (tmp_path / FILE).write_text("[]")
    with pytest.raises(CampaignError, match="found no record of a campaign"):
        open_record(tmp_path, machine())


def site(folder: Path, *missing: str, checkpoint: str | None = "checkpoint") -> Site:
    return Site(folder, checkpoint, "random:blt-d-1b", doctor(*missing), None)


def test_plan_has_everything_within_the_time_of_a_campaign(tmp_path: Path) -> None:
    steps = {step.name: step for step in plan(site(tmp_path))}
    assert {"latency", "audit-fp32", "bench", "baselines", "replay", "profile"} <= steps.keys()
    assert {f"verify-{dtype}" for dtype in ("fp32", "fp16", "bf16")} <= steps.keys()
    assert {need for step in steps.values() for need in step.needs} <= steps.keys()
    assert not any(step.lacks for step in steps.values())
    assert "eager,eager-compiled" in steps["baselines"].command
    # That TensorRT takes lowered graphs only.
    assert str(tmp_path / "bundles" / "fp16-lowered") in steps["compile-tensorrt"].command
    assert "--lowered" in steps["export-fp16-lowered"].command


@pytest.mark.parametrize(
    ("missing", "skipped"),
    [
        ("onnxruntime --provider cuda", {"verify-fp32", "bench", "replay", "baselines", "profile"}),
        ("eager --provider cuda", {"baselines", "profile"}),
        ("compile and run, tensorrt", {"compile-tensorrt", "verify-tensorrt", "bench-tensorrt"}),
    ],
)
def test_step_that_lacks_something_names_it(tmp_path: Path, missing: str, skipped: set[str]) -> None:
    lacking = {step.name: step.lacks for step in plan(site(tmp_path, missing)) if step.lacks}
    assert skipped <= lacking.keys()
    assert "latency" not in lacking
    assert all(lacks.startswith(("it is missing: pip install it", "found neither")) for lacks in lacking.values())


def test_bundle_that_is_there_needs_no_pytorch(tmp_path: Path, tiny_bundle: Path) -> None:
    (tmp_path / "bundles").mkdir()
    (tmp_path / "bundles" / "fp16").symlink_to(tiny_bundle)
    steps = [step for step in plan(site(tmp_path, "eager on the CPU", checkpoint=None)) if "export" in step.name]
    record = run(tmp_path, steps)
    assert {record.steps[step.name].state for step in steps} == {DONE, SKIPPED}
    assert record.steps["export-fp16"].state == DONE


@pytest.mark.parametrize(("gpu", "stub"), [("NVIDIA L4", False), ("stub of a GPU", True)])
def test_rows_name_the_gpu_and_a_stub_proves_nothing(tmp_path: Path, gpu: str, stub: bool) -> None:
    record = Record(tmp_path, machine(gpu))
    record.put("doctor", Found(DONE, result=doctor(gpu=gpu)))
    record.put("verify-fp32", Found(DONE, 1.0, result=None))
    rows = deploy_rows(record)
    assert "ONNX Runtime 1.31.1, CUDA provider" in rows
    assert "verify-fp32: passed" in rows
    assert f"({gpu}, driver 580.95.05)" in rows
    assert ("| no, a stub: " in rows) == ("STUB OF CUDA" in report(record, [])) == stub


@pytest.fixture
def stubbed(cuda_stub: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run fastblt, and what it starts, with the stub in the place of CUDA."""
    paths = [TESTS / "fakes" / "cuda_stub" / "startup", TESTS, *map(Path, sys.path)]

    def call(*arguments: object, **settings: int) -> subprocess.CompletedProcess[str]:
        found = build.environment(cuda_stub, **settings)
        found |= {"PYTHONPATH": os.pathsep.join(str(path) for path in paths if path.is_dir())}
        command = [sys.executable, "-m", "fastblt", *map(str, arguments)]
        return subprocess.run(command, env=found, capture_output=True, text=True, check=False)

    return call


def test_without_a_gpu_nothing_is_written(
    stubbed: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    done = stubbed("gpu-campaign", tmp_path / "out", "--checkpoint", "random:tiny", devices=0)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: found no GPU that CUDA can use: ")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_whole_command_over_the_stub(
    stubbed: Callable[..., subprocess.CompletedProcess[str]], tiny_bundle: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    for name in ("fp32", "replay"):
        shutil.copytree(tiny_bundle, out / "bundles" / name)
    steps = "latency,export-fp32,verify-fp32,export-replay,replay,baselines"
    options = ("--checkpoint", "random:tiny", "--replay-checkpoint", "random:tiny", "--steps", steps)
    done = stubbed("gpu-campaign", out, *options)
    found = json.loads((out / FILE).read_text())
    states = {name: step["state"] for name, step in found["steps"].items()}
    # Kernels do nothing there, so that no tensor can be right.
    assert states.pop("verify-fp32") == FAILED, done.stderr
    assert states.pop("baselines") == SKIPPED
    assert set(states.values()) == {DONE}, found["steps"]
    assert done.returncode == 1
    assert "steps that failed (verify-fp32), expected none" in done.stderr.splitlines()[-1]
    assert "patcher, output entropy: found a relative error of " in found["steps"]["verify-fp32"]["error"]
    assert (found["stub"], found["gpu"], found["sm"]) == (True, "stub of a GPU", 90)
    assert "kernel node of a graph (ONNX Runtime)" in found["steps"]["latency"]["result"]["microseconds"]
    assert {row["device"] for row in found["steps"]["replay"]["result"]["rows"]} == {"cuda"}
    text = (out / "gpu-report.md").read_text()
    figures = [line for line in text.splitlines() if line.startswith("## ")][2:-1]
    assert figures
    assert all(line.endswith("(stub: no figures of a GPU)") for line in figures)
