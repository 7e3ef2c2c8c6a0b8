"""Chooses the ONNX Runtime execution provider that sessions run on, and checks that they do."""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fastblt.runtime.backends import cuda_provider
from fastblt.runtime.backends.cuda_provider import cuda_problem
from fastblt.runtime.backends.entry import ProviderError
from fastblt.runtime.bundle.contract import Interface, check_interface
from fastblt.runtime.bundle.dtypes import ONNXRUNTIME_TYPES
from fastblt.runtime.bundle.manifest import GraphSpec, TensorSpec
from fastblt.runtime.driver import loads
from fastblt.runtime.machine import cache_folder

PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": cuda_provider.PROVIDER,
    "tensorrt": "TensorrtExecutionProvider",
}
#: What ONNX Runtime's TensorRT provider is linked against.
_TENSORRT_LIBRARIES = ("libnvinfer.so.10", "nvinfer_10.dll")
#: Folder of the engines that it builds, in the user's cache.
_ENGINE_CACHE = "onnxruntime-tensorrt"


def tensorrt_works() -> bool:
    """Return whether ONNX Runtime's TensorRT provider can load: it is built in, and TensorRT 10 is installed."""
    if cuda_problem() is not None:
        return False
    ort: Any = importlib.import_module("onnxruntime")
    return PROVIDERS["tensorrt"] in ort.get_available_providers() and loads(*_TENSORRT_LIBRARIES)


def provider_options(name: str, bundle: Path) -> list[tuple[str, dict[str, str]]]:
    """Return the execution providers of sessions on a GPU, best first, with their options.

    Args:
        name: ``cuda`` or ``tensorrt``.
        bundle: folder of the bundle; the engines that the provider builds are cached by its path.
    """
    # The arena would otherwise grow in powers of two.
    cuda = (PROVIDERS["cuda"], {"use_tf32": "0", "arena_extend_strategy": "kSameAsRequested"})
    if name == "cuda":
        return [cuda]
    cache = cache_folder() / _ENGINE_CACHE / hashlib.sha256(str(bundle.resolve()).encode()).hexdigest()[:16]
    cache.mkdir(parents=True, exist_ok=True)
    tensorrt = {
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": str(cache),
        "trt_timing_cache_enable": "1",
        "trt_timing_cache_path": str(cache),
    }
    return [(PROVIDERS["tensorrt"], tensorrt), cuda]


def choose_provider(name: str) -> str:
    """Return ``cpu``, ``cuda`` or ``tensorrt`` for the name of a provider, which may be ``auto``.

    Raises:
        ProviderError: the name is unknown, or that provider does not work on this machine.
    """
    if name == "auto":
        # Not CUDA, even where it loads, until an audit has passed on a GPU.
        return "cpu"
    if name not in PROVIDERS:
        raise ProviderError(f"provider: found {name!r}, expected auto, {', '.join(PROVIDERS)}")
    problem = cuda_problem() if name == "cuda" else None
    if problem is not None:
        raise ProviderError(f"provider: found 'cuda', but {problem}")
    if name == "tensorrt" and not tensorrt_works():
        raise ProviderError(
            "provider: found 'tensorrt', but ONNX Runtime's TensorRT provider does not load on this machine "
            "(it needs CUDA and libnvinfer.so.10, TensorRT 10; for TensorRT 11 use --backend tensorrt)"
        )
    return name


def check_session(session: Any, provider: str, path: str) -> None:
    """Check that a session runs on a provider, given by ONNX Runtime's name, and has not fallen back to another.

    Raises:
        ProviderError: it has.
    """
    found = session.get_providers()[0]
    if found != provider:
        raise ProviderError(f"{path}: session runs on {found}, expected {provider}")


def check_session_tensors(path: Path, session: Any, spec: GraphSpec) -> None:
    """Compare the inputs and outputs of a session with those of the manifest: names, types, shapes and order.

    Raises:
        BundleError: the graph has others; the message names the first one.
    """
    roles = {tensor.name: tensor.role for tensor in (*spec.inputs, *spec.outputs)}

    def described(values: Sequence[Any]) -> tuple[TensorSpec, ...]:
        kinds = [ONNXRUNTIME_TYPES.get(value.type) for value in values]
        return tuple(
            TensorSpec(value.name, kind.name if kind else value.type, tuple(value.shape), roles.get(value.name, ""))
            for value, kind in zip(values, kinds, strict=True)
        )

    found = Interface(described(session.get_inputs()), described(session.get_outputs()))
    check_interface(str(path), found, spec, "by the manifest")
