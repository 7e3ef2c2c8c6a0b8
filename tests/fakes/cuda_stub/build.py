"""Compiles the stub libraries from ``sources/`` with the machine's C compiler."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
from pathlib import Path

SOURCES = Path(__file__).with_name("sources")
#: The files of each library; the stub of the CUDA runtime comes first: the others call it.
LIBRARIES = {
    "libcudart.so.13": (
        "allocations.c",
        "capture.c",
        "copies.c",
        "device.c",
        "errors.c",
        "events.c",
        "kernels.c",
        "log.c",
    ),
    "libcublas.so.13": ("cublas.c",),
    "libcublasLt.so.13": ("cublaslt.c",),
    "libcurand.so.10": ("curand.c",),
    "libcuda.so.1": ("driver.c",),
    "libcudnn.so.9": ("cudnn.c",),
}
#: Libraries whose symbols carry the library's name as their version, as ONNX Runtime expects.
VERSIONED = ("libcudart.so.13", "libcublas.so.13", "libcublasLt.so.13")
#: cuDNN is in a folder of its own, so that it can be left out.
CUDNN = "cudnn"
_OPTIONS = ("-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-pthread")


def missing() -> str | None:
    """Return why the stub cannot be built or used here, or None."""
    if shutil.which("cc") is None:
        return "no C compiler (cc) here to build the stub of CUDA with"
    if include_folders() is None:
        return "no headers of the CUDA runtime here (pip install nvidia-cuda-runtime nvidia-cuda-crt)"
    provider = importlib.util.find_spec("onnxruntime")
    assert provider is not None
    assert provider.origin is not None
    if not (Path(provider.origin).parent / "capi" / "libonnxruntime_providers_cuda.so").is_file():
        return "no CUDA provider in the installed onnxruntime"
    if importlib.util.find_spec("cuda.bindings") is None:
        return "no cuda-bindings here"
    return None


def include_folders() -> list[Path] | None:
    """Return the folder with the headers of the CUDA runtime, 13 or newer; None where there is none."""
    spec = importlib.util.find_spec("nvidia")
    wheels = [Path(root) / "cu13" / "include" for root in spec.submodule_search_locations or ()] if spec else []
    toolkits = [Path(os.environ.get("CUDA_HOME", "/usr/local/cuda")), *sorted(Path("/usr/local").glob("cuda-13*"))]
    for folder in (*wheels, *(toolkit / "include" for toolkit in toolkits)):
        if (folder / "cuda_runtime_api.h").is_file() and (folder / "crt" / "host_defines.h").is_file():
            return [folder]
    return None


def build(folder: Path) -> None:
    """Compile every library into ``folder``."""
    (folder / CUDNN).mkdir(parents=True)
    include = [f"-I{path}" for path in include_folders() or ()]
    for library, names in LIBRARIES.items():
        options = [*_OPTIONS, *include, f"-Wl,-soname,{library}"]
        if library in VERSIONED:
            script = folder / f"{library}.map"
            script.write_text(f"{library} {{ global: *; }};\n")
            options.append(f"-Wl,--version-script={script}")
        target = folder / CUDNN / library if "cudnn" in library else folder / library
        runtime = [] if library == "libcudart.so.13" else [str(folder / "libcudart.so.13")]
        sources = [str(SOURCES / name) for name in names]
        subprocess.run(["cc", *options, "-o", str(target), *sources, *runtime], check=True)


def environment(folder: Path, *, cudnn: bool = True, log: Path | None = None, **settings: int) -> dict[str, str]:
    """Return the variables of a process that finds the stub instead of CUDA.

    Args:
        folder: from `build`.
        cudnn: whether cuDNN can be found.
        log: file that the calls are appended to; None: nothing is written.
        settings: others of the variables in ``sources/stub.h``, e.g. ``sm=89``, ``memory=1 << 30``, ``driver=12040``.
    """
    paths = [folder, *([folder / CUDNN] if cudnn else [])]
    found = {f"CUDA_STUB_{name.upper()}": str(value) for name, value in settings.items()}
    if log is not None:
        found["CUDA_STUB_LOG"] = str(log)
    # Pytest finds the modules of the tests by its own settings; a process of its own does not.
    modules = [str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])]
    found["PYTHONPATH"] = os.pathsep.join(modules)
    # First, or else ONNX Runtime would load NVIDIA's runtime where its wheel is installed, and the other stubs fail.
    found["LD_PRELOAD"] = str(folder / "libcudart.so.13")
    return {**os.environ, "CUDA_STUB": str(folder), "LD_LIBRARY_PATH": ":".join(map(str, paths)), **found}
