"""What will work on a machine, from its facts: one line a way of running, with the reason and the remedy."""

from __future__ import annotations

from dataclasses import dataclass

from fastblt.runtime.doctor.facts import MachineFacts

#: Compute capabilities that TensorRT-RTX compiles for and runs on.
RTX_SMS = (75, 80, 86, 89, 120, 121)
#: Capabilities of Jetsons (Xavier, Orin, Thor), which need TensorRT from JetPack.
JETSON_SMS = (72, 87, 101, 110)


@dataclass(frozen=True)
class Verdict:
    """Whether one way of running works here."""

    way: str
    works: bool
    reason: str
    remedy: str = ""
    """What to do; empty where nothing is to be done, or nothing can be."""


def assess(facts: MachineFacts) -> list[Verdict]:
    """A verdict on every way of compiling and running."""
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
    """What is missing to use a GPU at all: the reason and the remedy."""
    if facts.driver_cuda is None:
        return "there is no NVIDIA driver", "install NVIDIA's driver (a Jetson's comes with JetPack)"
    if facts.cuda_bindings is None:
        major = facts.driver_cuda.split(".")[0]
        return "cuda-python is not installed", f"pip install 'fastblt[gpu]' 'cuda-bindings=={major}.*'"
    if _major(facts.cuda_bindings) > _major(facts.driver_cuda):
        wanted = _major(facts.driver_cuda)
        reason = f"cuda-bindings {facts.cuda_bindings} needs a newer driver than one for CUDA {facts.driver_cuda}"
        return reason, f"update the driver, or pip install 'cuda-bindings=={wanted}.*'"
    if not facts.gpus:
        return f"no GPU can be used ({facts.gpu_error or 'none was found'})", ""
    return None


def _major(version: str) -> int:
    return int(version.split(".")[0])


def _onnxruntime_cpu(facts: MachineFacts) -> Verdict:
    way = "onnxruntime on the CPU"
    if facts.onnxruntime is None:
        return Verdict(way, False, "ONNX Runtime is not installed", "pip install fastblt")
    return Verdict(way, True, f"{facts.onnxruntime_package} {facts.onnxruntime}; fp32 and fp16, no bf16")


def _onnxruntime_cuda(facts: MachineFacts) -> Verdict:
    way = "onnxruntime --provider cuda"
    missing = _without_gpu(facts)
    if missing:
        return Verdict(way, False, *missing)
    if facts.onnxruntime_package != "onnxruntime-gpu":
        remedy = "pip uninstall onnxruntime; pip install onnxruntime-gpu (on a Jetson: NVIDIA's wheel for its JetPack)"
        return Verdict(way, False, "ONNX Runtime is installed without CUDA", remedy)
    if not facts.onnxruntime_cuda:
        remedy = "install the CUDA libraries that it names: pip install 'onnxruntime-gpu[cuda,cudnn]'"
        return Verdict(way, False, "its CUDA provider does not load", remedy)
    return Verdict(way, True, f"onnxruntime-gpu {facts.onnxruntime}")


def _onnxruntime_tensorrt(facts: MachineFacts) -> Verdict:
    way = "onnxruntime --provider tensorrt"
    if facts.onnxruntime_tensorrt:
        return Verdict(way, True, "TensorRT 10 is there")
    reason = "it needs CUDA and TensorRT 10 (libnvinfer.so.10)"
    return Verdict(way, False, reason, "use --backend tensorrt instead, which takes TensorRT 10.3 to 11")


def _rtx_compile(facts: MachineFacts) -> Verdict:
    way = "compile --target tensorrt-rtx"
    library = facts.library("tensorrt-rtx")
    if library is None:
        return Verdict(way, False, _why(facts, "tensorrt-rtx"), "pip install 'fastblt[tensorrt-rtx]'")
    if not facts.compiler:
        return Verdict(way, False, "onnx and onnx-ir are not installed", "pip install 'fastblt[tensorrt-rtx]'")
    return Verdict(way, True, f"TensorRT-RTX {library.version}; needs no GPU, for SM {_listed(RTX_SMS)}")


def _rtx_run(facts: MachineFacts) -> Verdict:
    way = "run --backend tensorrt-rtx"
    missing = _without_gpu(facts)
    if missing:
        return Verdict(way, False, *missing)
    sm = facts.gpus[0].sm
    if sm not in RTX_SMS:
        other = "compile --target tensorrt" if sm not in JETSON_SMS else "use JetPack's TensorRT: --target tensorrt"
        return Verdict(way, False, f"TensorRT-RTX has no SM {sm} ({facts.gpus[0].name})", other)
    library = facts.library("tensorrt-rtx")
    if library is None:
        return Verdict(way, False, _why(facts, "tensorrt-rtx"), "pip install 'fastblt[tensorrt-rtx]'")
    return Verdict(way, True, f"TensorRT-RTX {library.version} on SM {sm}")


def _tensorrt(facts: MachineFacts) -> Verdict:
    way = "compile and run, tensorrt"
    missing = _without_gpu(facts)
    if missing:
        return Verdict(way, False, *missing)
    library = facts.library("tensorrt")
    if library is None:
        remedy = "pip install 'fastblt[tensorrt]'"
        if facts.jetson:
            remedy = "apt install python3-libnvinfer, and a virtual environment with --system-site-packages"
        return Verdict(way, False, _why(facts, "tensorrt"), remedy)
    graphs = "standard graphs" if library.updates_caches else "lowered graphs only (fastblt export --lowered)"
    return Verdict(way, True, f"TensorRT {library.version} on SM {facts.gpus[0].sm}; {graphs}")


def _eager_cpu(facts: MachineFacts) -> Verdict:
    if facts.torch is None:
        return Verdict("eager on the CPU", False, "PyTorch is not installed", "pip install 'fastblt[export]'")
    return Verdict("eager on the CPU", True, f"PyTorch {facts.torch}")


def _eager_cuda(facts: MachineFacts) -> Verdict:
    way = "eager --provider cuda"
    if facts.torch is None:
        return Verdict(way, False, "PyTorch is not installed", "pip install 'fastblt[export]'")
    if facts.driver_cuda is None:
        return Verdict(way, False, "there is no NVIDIA driver", "install NVIDIA's driver")
    if not facts.torch_cuda:
        return Verdict(way, False, f"PyTorch {facts.torch} sees no GPU", "install a build of PyTorch with CUDA")
    return Verdict(way, True, f"PyTorch {facts.torch}")


def _why(facts: MachineFacts, target: str) -> str:
    """Why a TensorRT cannot be used, short."""
    text = facts.library_errors.get(target, "it is not installed")
    return "its package is not installed" if "No module named" in text or "does not load" in text else text


def _listed(numbers: tuple[int, ...]) -> str:
    return ", ".join(str(number) for number in numbers)
