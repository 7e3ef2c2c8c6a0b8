"""Decides from the facts of a machine what works on it: one verdict per use, with the reason and the remedy."""

from __future__ import annotations

from dataclasses import dataclass

from fastblt.runtime.doctor.facts import MachineFacts

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


def _without_gpu(facts: MachineFacts) -> tuple[str, str] | None:
    """Return what is missing to use a GPU at all, as reason and remedy; None where a GPU can be used."""
    if facts.driver_cuda is None:
        return "no NVIDIA driver is installed", "install NVIDIA's driver (a Jetson's comes with JetPack)"
    if facts.cuda_bindings is None:
        major = _major(facts.driver_cuda)
        return "cuda-python is not installed", f"pip install 'fastblt[gpu]' 'cuda-bindings=={major}.*'"
    if _major(facts.cuda_bindings) > _major(facts.driver_cuda):
        wanted = _major(facts.driver_cuda)
        reason = f"cuda-bindings {facts.cuda_bindings} needs a newer driver than one for CUDA {facts.driver_cuda}"
        return reason, f"update the driver, or pip install 'cuda-bindings=={wanted}.*'"
    if not facts.gpus:
        return f"no GPU can be used ({facts.gpu_error or 'none was found'})", ""
    return None


def _major(version: str) -> int:
    """Return the first number of a version."""
    return int(version.split(".")[0])


def _onnxruntime_cpu(facts: MachineFacts) -> Verdict:
    use = "onnxruntime on the CPU"
    if facts.onnxruntime is None:
        return Verdict(use, False, "ONNX Runtime is not installed", "pip install fastblt")
    return Verdict(use, True, f"{facts.onnxruntime_package} {facts.onnxruntime}; fp32 and fp16, not bf16")


def _onnxruntime_cuda(facts: MachineFacts) -> Verdict:
    use = "onnxruntime --provider cuda"
    missing = _without_gpu(facts)
    if missing:
        return Verdict(use, False, *missing)
    if facts.onnxruntime_package != "onnxruntime-gpu":
        remedy = "pip uninstall onnxruntime; pip install onnxruntime-gpu (on a Jetson: NVIDIA's wheel for its JetPack)"
        return Verdict(use, False, "ONNX Runtime is installed without CUDA", remedy)
    if not facts.onnxruntime_cuda:
        remedy = "install the libraries of CUDA and cuDNN: pip install 'onnxruntime-gpu[cuda,cudnn]'"
        return Verdict(use, False, "ONNX Runtime's CUDA provider does not load", remedy)
    return Verdict(use, True, f"onnxruntime-gpu {facts.onnxruntime}")


def _onnxruntime_tensorrt(facts: MachineFacts) -> Verdict:
    use = "onnxruntime --provider tensorrt"
    if facts.onnxruntime_tensorrt:
        return Verdict(use, True, "TensorRT 10 is installed")
    reason = "it needs CUDA and TensorRT 10 (libnvinfer.so.10)"
    return Verdict(use, False, reason, "use --backend tensorrt instead, which takes TensorRT 10.3 to 11")


def _rtx_compile(facts: MachineFacts) -> Verdict:
    use = "compile --target tensorrt-rtx"
    library = facts.library("tensorrt-rtx")
    if library is None:
        return Verdict(use, False, _why(facts, "tensorrt-rtx"), "pip install 'fastblt[tensorrt-rtx]'")
    if not facts.compiler:
        return Verdict(use, False, "onnx and onnx-ir are not installed", "pip install 'fastblt[tensorrt-rtx]'")
    sms = ", ".join(str(sm) for sm in RTX_SMS)
    return Verdict(use, True, f"TensorRT-RTX {library.version} compiles for SM {sms} without a GPU")


def _rtx_run(facts: MachineFacts) -> Verdict:
    use = "run --backend tensorrt-rtx"
    missing = _without_gpu(facts)
    if missing:
        return Verdict(use, False, *missing)
    sm = facts.gpus[0].sm
    if sm not in RTX_SMS:
        other = "use JetPack's TensorRT: --target tensorrt" if sm in JETSON_SMS else "compile --target tensorrt"
        return Verdict(use, False, f"TensorRT-RTX does not support SM {sm} ({facts.gpus[0].name})", other)
    library = facts.library("tensorrt-rtx")
    if library is None:
        return Verdict(use, False, _why(facts, "tensorrt-rtx"), "pip install 'fastblt[tensorrt-rtx]'")
    return Verdict(use, True, f"TensorRT-RTX {library.version} on SM {sm}")


def _tensorrt(facts: MachineFacts) -> Verdict:
    use = "compile and run, tensorrt"
    missing = _without_gpu(facts)
    if missing:
        return Verdict(use, False, *missing)
    library = facts.library("tensorrt")
    if library is None:
        remedy = "pip install 'fastblt[tensorrt]'"
        if facts.jetson:
            remedy = "apt install python3-libnvinfer, and use a virtual environment with --system-site-packages"
        return Verdict(use, False, _why(facts, "tensorrt"), remedy)
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
