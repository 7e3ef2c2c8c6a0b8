"""Decides from the facts of a machine what works on it: one verdict per use, with the reason and the remedy."""

from __future__ import annotations

from dataclasses import dataclass

from fastblt.runtime.backends.cuda_provider import WITHOUT_CUDA
from fastblt.runtime.doctor.facts import MachineFacts
from fastblt.runtime.driver import bindings_problem, major
from fastblt.runtime.problem import Problem

#: Compute capabilities that TensorRT-RTX compiles for and runs on.
RTX_SMS = (75, 80, 86, 89, 120, 121)
#: Compute capabilities of Jetsons (Xavier, Orin, Thor), which need the TensorRT of JetPack.
JETSON_SMS = (72, 87, 101, 110)


@dataclass(frozen=True)
class Verdict:
    """States whether one use of fastblt works on a machine, and why."""

    use: str
    """Backend and options, e.g. ``run --backend tensorrt-rtx``."""
    works: bool
    reason: str
    """Why it works or does not."""
    remedy: str = ""
    """What to do about it; empty where nothing needs to be done, or nothing can be."""

    def as_json(self) -> dict[str, str | bool]:
        """Return the verdict as reports hold it: their field for the use is called ``way``."""
        return {"way": self.use, "works": self.works, "reason": self.reason, "remedy": self.remedy}


def assess(facts: MachineFacts) -> list[Verdict]:
    """Return a verdict on every use: compiling for, and running on, each backend and device."""
    return [
        _onnxruntime_cpu(facts),
        _onnxruntime_cuda(facts),
        _onnxruntime_tensorrt(facts),
        _rtx_compile(facts),
        _rtx_run(facts),
        _tensorrt(facts),
        _eager_cpu(facts),
        _eager_cuda(facts),
    ]


def _without_gpu(facts: MachineFacts) -> Problem | None:
    """Return what is missing to use a GPU at all; None where a GPU can be used."""
    failure = None if facts.gpus else facts.gpu_error or "none was found"
    return bindings_problem(facts.driver_cuda, facts.cuda_bindings, failure)


def _no(use: str, problem: Problem) -> Verdict:
    return Verdict(use, False, problem.reason, problem.remedy)


def _onnxruntime_cpu(facts: MachineFacts) -> Verdict:
    use = "onnxruntime on the CPU"
    if facts.onnxruntime is None:
        return Verdict(use, False, "ONNX Runtime is not installed", "pip install fastblt")
    return Verdict(use, True, f"{facts.onnxruntime_package} {facts.onnxruntime}; fp32 and fp16, not bf16")


def _onnxruntime_cuda(facts: MachineFacts) -> Verdict:
    use = "onnxruntime --provider cuda"
    missing = _without_gpu(facts)
    if missing:
        return _no(use, missing)
    if facts.onnxruntime_package != "onnxruntime-gpu":
        return _no(use, WITHOUT_CUDA)
    if facts.onnxruntime_cuda_problem is not None:
        return _no(use, facts.onnxruntime_cuda_problem)
    return Verdict(use, True, f"onnxruntime-gpu {facts.onnxruntime}")


def _onnxruntime_tensorrt(facts: MachineFacts) -> Verdict:
    use = "onnxruntime --provider tensorrt"
    if facts.onnxruntime_tensorrt:
        return Verdict(use, True, "TensorRT 10 is installed")
    reason = "it needs CUDA and TensorRT 10 (libnvinfer.so.10)"
    return Verdict(use, False, reason, "use --backend tensorrt instead, which takes TensorRT 10.3 to 11")


def _install_rtx(facts: MachineFacts) -> str:
    """Return the command that installs TensorRT-RTX for this machine's driver."""
    old = facts.driver_cuda is not None and major(facts.driver_cuda) == 12
    return f"pip install 'fastblt[tensorrt-rtx{'-cu12' if old else ''}]'"


def _rtx_compile(facts: MachineFacts) -> Verdict:
    use = "compile --target tensorrt-rtx"
    library = facts.library("tensorrt-rtx")
    if library is None:
        return Verdict(use, False, _why(facts, "tensorrt-rtx"), _install_rtx(facts))
    if not facts.compiler:
        return Verdict(use, False, "onnx and onnx-ir are not installed", _install_rtx(facts))
    sms = ", ".join(str(sm) for sm in RTX_SMS)
    return Verdict(use, True, f"TensorRT-RTX {library.version} compiles for SM {sms} without a GPU")


def _rtx_run(facts: MachineFacts) -> Verdict:
    use = "run --backend tensorrt-rtx"
    missing = _without_gpu(facts)
    if missing:
        return _no(use, missing)
    sm = facts.gpus[0].sm
    if sm not in RTX_SMS:
        other = "use JetPack's TensorRT: --target tensorrt" if sm in JETSON_SMS else "compile --target tensorrt"
        return Verdict(use, False, f"TensorRT-RTX does not support SM {sm} ({facts.gpus[0].name})", other)
    library = facts.library("tensorrt-rtx")
    if library is None:
        return Verdict(use, False, _why(facts, "tensorrt-rtx"), _install_rtx(facts))
    flavor = facts.flavor_problems.get("tensorrt-rtx")
    if flavor is not None:
        return _no(use, flavor)
    return Verdict(use, True, f"TensorRT-RTX {library.version} on SM {sm}")


def _tensorrt(facts: MachineFacts) -> Verdict:
    use = "compile and run, tensorrt"
    missing = _without_gpu(facts)
    if missing:
        return _no(use, missing)
    library = facts.library("tensorrt")
    flavor = facts.flavor_problems.get("tensorrt")
    if library is None:
        remedy = "pip install 'fastblt[tensorrt]'"
        if facts.driver_cuda is not None and major(facts.driver_cuda) == 12:
            remedy = "pip install 'tensorrt-cu12>=10.3,<12' onnx onnx-ir polygraphy"
        if facts.jetson:
            remedy = "apt install python3-libnvinfer, and use a virtual environment with --system-site-packages"
        return Verdict(use, False, _why(facts, "tensorrt"), remedy)
    if flavor is not None:
        return _no(use, flavor)
    graphs = "standard graphs" if library.updates_caches else "lowered graphs only (fastblt export --lowered)"
    return Verdict(use, True, f"TensorRT {library.version} on SM {facts.gpus[0].sm}; {graphs}")


def _eager_cpu(facts: MachineFacts) -> Verdict:
    use = "eager on the CPU"
    if facts.torch is None:
        return Verdict(use, False, "PyTorch is not installed", "pip install 'fastblt[export]'")
    return Verdict(use, True, f"PyTorch {facts.torch}")


def _eager_cuda(facts: MachineFacts) -> Verdict:
    use = "eager --provider cuda"
    if facts.torch is None:
        return Verdict(use, False, "PyTorch is not installed", "pip install 'fastblt[export]'")
    if facts.driver_cuda is None:
        return Verdict(use, False, "no NVIDIA driver is installed", "install NVIDIA's driver")
    if not facts.torch_cuda:
        return Verdict(use, False, f"PyTorch {facts.torch} sees no GPU", "install a build of PyTorch with CUDA")
    return Verdict(use, True, f"PyTorch {facts.torch}")


def _why(facts: MachineFacts, target: str) -> str:
    """Return in a few words why a TensorRT cannot be used."""
    text = facts.library_errors.get(target, "it is not installed")
    return "its package is not installed" if "No module named" in text or "does not load" in text else text
