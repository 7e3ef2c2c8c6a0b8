from __future__ import annotations

import dataclasses

import pytest

from fastblt.runtime.bundle import tensorrt_library
from fastblt.runtime.bundle.tensorrt_library import flavor_problem
from fastblt.runtime.doctor.facts import Gpu, Library, MachineFacts, probe
from fastblt.runtime.doctor.verdicts import Verdict, assess
from fastblt.runtime.problem import Problem

BARE = MachineFacts("Linux x86_64", "3.12.1", "a processor", 8, 32 * 2**30)
RTX_4090 = dataclasses.replace(
    BARE,
    driver_cuda="13.0",
    cuda_bindings="13.0.3",
    gpus=(Gpu("NVIDIA GeForce RTX 4090", 89, 24 * 2**30, 22 * 2**30),),
    libraries=(Library("tensorrt-rtx", "1.7.1", True),),
    onnxruntime="1.31.1",
    onnxruntime_package="onnxruntime-gpu",
    onnxruntime_cuda=True,
    torch="2.13.0",
    torch_cuda=True,
    compiler=True,
)
ORIN = dataclasses.replace(
    BARE,
    system="Linux aarch64",
    driver_cuda="12.6",
    jetson="# R36 (release), REVISION: 4.0",
    cuda_bindings="12.8.0",
    gpus=(Gpu("Orin", 87, 8 * 2**30, 6 * 2**30),),
    libraries=(Library("tensorrt", "10.3.0", False),),
    onnxruntime="1.31.1",
    onnxruntime_package="onnxruntime",
)
H100 = dataclasses.replace(RTX_4090, gpus=(Gpu("NVIDIA H100", 90, 80 * 2**30, 79 * 2**30),))


def verdicts(facts: MachineFacts) -> dict[str, Verdict]:
    return {verdict.use: verdict for verdict in assess(facts)}


def works(facts: MachineFacts) -> set[str]:
    return {use for use, verdict in verdicts(facts).items() if verdict.works}


def test_nothing_works_on_a_bare_machine_and_everything_has_a_remedy() -> None:
    found = verdicts(BARE)
    assert works(BARE) == set()
    assert all(verdict.reason and verdict.remedy for verdict in found.values())
    assert found["onnxruntime on the CPU"].remedy == "pip install fastblt"


def test_everything_but_tensorrt_works_on_an_rtx_box() -> None:
    assert works(RTX_4090) == {
        "onnxruntime on the CPU",
        "onnxruntime --provider cuda",
        "compile --target tensorrt-rtx",
        "run --backend tensorrt-rtx",
        "eager on the CPU",
        "eager --provider cuda",
    }
    assert verdicts(RTX_4090)["compile and run, tensorrt"].remedy == "pip install 'fastblt[tensorrt]'"


def test_orin_is_told_to_use_lowered_graphs() -> None:
    found = verdicts(ORIN)
    assert works(ORIN) == {"onnxruntime on the CPU", "compile and run, tensorrt"}
    assert found["compile and run, tensorrt"].reason.endswith("lowered graphs only (fastblt export --lowered)")
    assert found["run --backend tensorrt-rtx"].reason == "TensorRT-RTX does not support SM 87 (Orin)"
    assert "JetPack" in found["run --backend tensorrt-rtx"].remedy
    assert "NVIDIA's wheel" in found["onnxruntime --provider cuda"].remedy


def test_jetson_without_tensorrt_is_told_to_take_jetpacks() -> None:
    found = verdicts(dataclasses.replace(ORIN, libraries=()))["compile and run, tensorrt"]
    assert (found.works, "libnvinfer" in found.remedy) == (False, True)


def test_hopper_is_told_that_tensorrt_rtx_is_not_for_it() -> None:
    found = verdicts(H100)["run --backend tensorrt-rtx"]
    assert (found.works, found.reason) == (False, "TensorRT-RTX does not support SM 90 (NVIDIA H100)")
    assert found.remedy == "compile --target tensorrt"


def test_old_driver_is_named_with_the_version_of_cuda_python_that_it_takes() -> None:
    found = verdicts(dataclasses.replace(RTX_4090, driver_cuda="12.4", gpus=()))["run --backend tensorrt-rtx"]
    assert not found.works
    assert found.reason == ("found a driver for CUDA 12.4, expected one for CUDA 13, which cuda-bindings 13.0.3 needs")
    assert found.remedy == "update the driver, or pip install 'cuda-bindings==12.8.*'"


def test_package_for_a_newer_cuda_than_the_drivers_is_named_with_the_one_that_fits() -> None:
    problem = flavor_problem("tensorrt-rtx", "12.8")
    assert problem is not None, "the tests install tensorrt-rtx-cu13"
    old = dataclasses.replace(
        RTX_4090, driver_cuda="12.8", cuda_bindings="12.9.0", flavor_problems={"tensorrt-rtx": problem}
    )
    found = verdicts(old)["run --backend tensorrt-rtx"]
    assert (found.works, found.reason) == (
        False,
        "found tensorrt-rtx-cu13, which is for CUDA 13, and a driver for CUDA 12.8, expected tensorrt-rtx-cu12",
    )
    assert found.remedy == (
        "pip uninstall tensorrt-rtx-cu13 tensorrt-rtx-cu13-bindings tensorrt-rtx-cu13-libs; "
        "pip install 'fastblt[tensorrt-rtx-cu12]' (or update the driver)"
    )
    assert verdicts(old)["compile --target tensorrt-rtx"].works, "compiling needs no driver"
    bare = verdicts(dataclasses.replace(old, libraries=(), flavor_problems={}))
    assert bare["run --backend tensorrt-rtx"].remedy == "pip install 'fastblt[tensorrt-rtx-cu12]'"
    assert flavor_problem("tensorrt-rtx", "13.0") is flavor_problem("tensorrt-rtx", None) is None


@pytest.mark.parametrize(
    ("target", "installed", "driver", "expected"),
    [
        ("tensorrt", {"tensorrt-cu13-bindings"}, "12.9", "pip install 'tensorrt-cu12>=10.3,<12'"),
        ("tensorrt", {"tensorrt-cu12-bindings"}, "12.4", None),
        ("tensorrt", {"tensorrt-cu12-bindings"}, "13.1", None),
        ("tensorrt", {"tensorrt"}, "12.6", None),  # JetPack's
    ],
)
def test_flavor_of_a_package_is_known_by_its_name(
    monkeypatch: pytest.MonkeyPatch, target: str, installed: set[str], driver: str, expected: str | None
) -> None:
    monkeypatch.setattr(tensorrt_library, "package_version", lambda name: "11.4" if name in installed else None)
    found = flavor_problem(target, driver)
    assert found is None if expected is None else found is not None and expected in found.remedy


def test_jetson_whose_cuda_python_is_newer_than_its_driver_is_told_which_one_to_take() -> None:
    newer = dataclasses.replace(ORIN, cuda_bindings="12.9.4", gpus=(), gpu_error="insufficient driver")
    found = verdicts(newer)["compile and run, tensorrt"]
    assert found.reason == (
        "no GPU can be used (insufficient driver) with cuda-bindings 12.9.4 and a driver for CUDA 12.6"
    )
    assert found.remedy.endswith("pip install 'cuda-bindings==12.8.*'")


@pytest.mark.parametrize(
    ("change", "use", "reason"),
    [
        ({"cuda_bindings": None}, "run --backend tensorrt-rtx", "cuda-python is not installed"),
        ({"gpus": (), "gpu_error": "out of order"}, "run --backend tensorrt-rtx", r"no GPU can be used (out of order)"),
        ({"libraries": ()}, "compile --target tensorrt-rtx", "it is not installed"),
        ({"compiler": False}, "compile --target tensorrt-rtx", "onnx and onnx-ir are not installed"),
        (
            {"onnxruntime_cuda_problem": Problem("found no usable cuDNN, expected cuDNN 9", "pip install it")},
            "onnxruntime --provider cuda",
            "found no usable cuDNN, expected cuDNN 9",
        ),
        (
            {"onnxruntime_package": "onnxruntime"},
            "onnxruntime --provider cuda",
            "ONNX Runtime is installed without CUDA",
        ),
        ({"torch_cuda": False}, "eager --provider cuda", "PyTorch 2.13.0 sees no GPU"),
    ],
)
def test_one_thing_that_is_missing_is_named(change: dict[str, object], use: str, reason: str) -> None:
    found = verdicts(dataclasses.replace(RTX_4090, **change))[use]  # type: ignore[arg-type]
    assert (found.works, found.reason) == (False, reason)


def test_looking_finds_this_machine_and_prints_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    facts = probe()
    assert capfd.readouterr() == ("", "")
    assert facts.onnxruntime is not None
    assert "onnxruntime on the CPU" in works(facts)
    assert facts.cores >= 1
    if facts.driver_cuda is None:
        assert facts.gpus == ()
        assert not facts.onnxruntime_cuda
