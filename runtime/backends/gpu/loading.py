"""Loads a bundle onto a GPU: as engines of TensorRT, or as sessions of ONNX Runtime."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fastblt.models.config import BltConfig
from fastblt.runtime.backends.gpu.backend import DeviceBackend
from fastblt.runtime.backends.gpu.cuda import Cuda, DeviceMemory, Stream, load_api
from fastblt.runtime.backends.gpu.memory import call_buffers, device_buffers, fixed_slots
from fastblt.runtime.backends.gpu.onnxruntime_executor import OnnxRuntimeExecutor
from fastblt.runtime.backends.gpu.sliding import cache_slots, pool_slots
from fastblt.runtime.backends.gpu.tensorrt_executor import TensorRtExecutor
from fastblt.runtime.backends.memory import sequences_that_fit
from fastblt.runtime.backends.providers import provider_options
from fastblt.runtime.bundle.bundle import Bundle
from fastblt.runtime.bundle.engines import (
    ENGINES_FILE,
    EngineFolder,
    EngineSpec,
    check_engine,
    check_engine_entry,
    choose_engines,
    compiled_spec,
)
from fastblt.runtime.bundle.manifest import BundleError
from fastblt.runtime.bundle.tensorrt_library import TensorRtError, flavor_problem, load_library
from fastblt.runtime.driver import driver_cuda


def load_tensorrt(
    bundle: Path, target: str, max_bytes: int, row_floor: int = 1, sequences: int | None = None
) -> DeviceBackend:
    """Load the engines of a bundle that were compiled for this machine.

    Args:
        bundle: folder of the bundle.
        target: ``tensorrt`` or ``tensorrt-rtx``.
        max_bytes: longest prompt plus new bytes.
        row_floor: fewest rows of a call, a power of two.
        sequences: most at once, all of which get their memory now; None: 1.

    Raises:
        TensorRtError: the library is missing.
        CudaError: there is no usable GPU, or cuda-python is missing.
        CapacityError: the GPU has too little free memory.
        BundleError: the bundle has no engines for this machine, or it is damaged, or they are.
        ConfigError: the configuration is invalid.
    """
    library = load_library(target)
    problem = flavor_problem(target, driver_cuda())
    if problem is not None:
        raise TensorRtError(f"{target}: {problem}")
    cuda = Cuda(load_api())
    opened = Bundle.open(bundle)
    config, dtype, graphs = opened.config, opened.manifest.dtype, opened.manifest.graphs
    # Before engines are looked for: a text that is too long for this GPU needs none.
    _check_memory(cuda, opened, max_bytes, 1, lambda size: sum(device_buffers(config, dtype, size).values()))
    folder = choose_engines(bundle, target, library.version, cuda.sm, max_bytes)
    engines = folder.engines_for(max_bytes)
    assert engines is not None, "choose_engines has found them"
    for part, spec in graphs.items():
        if part not in engines:
            raise BundleError(f"{folder.path}: found no engine of the {part}, expected one of every graph")
        check_engine_entry(folder, engines[part], spec)
        _check_slots(folder, engines[part], config, max_bytes)
    _check_shared_caches(folder, engines)
    fixed = fixed_slots(engines.values())
    called = call_buffers(config, {part: compiled_spec(graphs[part], appends=engines[part].appends) for part in graphs})

    def needed(size: int) -> int:
        return sum(device_buffers(config, dtype, size, fixed=fixed).values()) + sum(called.values())

    recorded = max(engine.activation_bytes or 0 for engine in engines.values())
    count = _check_memory(cuda, opened, max_bytes, sequences, needed, recorded)
    stream = Stream(cuda)
    executors = {}
    for part, spec in graphs.items():
        path = check_engine(folder, engines[part])
        executors[part] = TensorRtExecutor(
            library, path, engines[part], spec, stream, cache_slots(config.graph_stacks[part], max_bytes)
        )
    # One graph runs at a time, so all of them share the memory for activations.
    memory = DeviceMemory(cuda, max(executor.memory_bytes for executor in executors.values()))
    for executor in executors.values():
        executor.share_memory(memory)
    size = needed(max_bytes)
    return DeviceBackend(
        opened, executors, stream, max_bytes, target, row_floor=row_floor, sequences=count, sequence_bytes=size
    )


def _check_memory(
    cuda: Cuda,
    bundle: Bundle,
    max_bytes: int,
    sequences: int | None,
    needed: Callable[[int], int],
    activations: int = 0,
) -> int:
    """Return the number of sequences to load for.

    Args:
        cuda: the GPU.
        bundle: whose graphs are loaded.
        max_bytes: longest prompt plus new bytes.
        sequences: number that the user asks for; None: 1, since memory for all of them is allocated at once.
        needed: returns the device memory of a sequence for a text of this many bytes.
        activations: bytes that all sequences share for them, as the engines' manifest records it.

    Raises:
        CapacityError: weights, activations and sequences need more memory than the GPU has free.
    """
    available = cuda.available_memory()
    shared = bundle.graph_bytes + activations
    return sequences_that_fit(shared, needed, max_bytes, sequences or 1, available, "the GPU")


def _check_slots(folder: EngineFolder, engine: EngineSpec, config: BltConfig, max_bytes: int) -> None:
    """Raise `BundleError` unless an engine's caches hold a text of ``max_bytes`` bytes, as its capacity promises."""
    pool = pool_slots(config, max_bytes, 1) if engine.part == "encoder" else 0
    for name, found, least in (
        ("slots", engine.slots, cache_slots(config.graph_stacks[engine.part], max_bytes)),
        ("pool_slots", engine.pool_slots, pool),
    ):
        if found < least:
            raise BundleError(
                f"{folder.path / ENGINES_FILE}: engine {engine.file}: {name}: found {found}, expected at least {least} "
                f"for {max_bytes} bytes"
            )


def _session_options(ort: Any) -> Any:
    """Return the options of sessions on a GPU."""
    options = ort.SessionOptions()
    options.log_severity_level = 4  # errors are raised; they are not printed too
    options.intra_op_num_threads = 1  # nothing is left to compute on the CPU
    # Weights get memory of their own instead of the arena, which would round it up.
    options.add_session_config_entry("session.use_device_allocator_for_initializers", "1")
    return options


def _check_shared_caches(folder: EngineFolder, engines: Mapping[str, EngineSpec]) -> None:
    """Raise `BundleError` unless the engine of drafts takes the caches of the decoder's, which it shares."""
    if "draft" not in engines:
        return
    (least, most), (decoder_least, decoder_most) = (
        (engines[part].least_slots, engines[part].slots) for part in ("draft", "decoder")
    )
    if (least, most) != (decoder_least, decoder_most):
        raise BundleError(
            f"{folder.path / ENGINES_FILE}: engine {engines['draft'].file}: found caches of {least} to {most} slots, "
            f"expected {decoder_least} to {decoder_most}: it shares the decoder's"
        )


def load_onnxruntime(
    bundle: Path,
    provider: str,
    max_bytes: int,
    options: Any = None,
    ort: Any = None,
    row_floor: int = 1,
    sequences: int | None = None,
) -> DeviceBackend:
    """Load a bundle into ONNX Runtime sessions on the GPU.

    Args:
        bundle: folder of the bundle.
        provider: ``cuda``, or ``tensorrt``, which runs what TensorRT 10 supports and leaves the rest to CUDA.
        max_bytes: longest prompt plus new bytes.
        options: session options; None: ours.
        ort: a stand-in for the module ``onnxruntime``; None: the module, which only this function needs.
        row_floor: fewest rows of a call, a power of two.
        sequences: most at once, all of which get their memory now; None: 1.

    Raises:
        CudaError: there is no usable GPU, or cuda-python is missing.
        CapacityError: the GPU has too little free memory.
        BundleError: the bundle is damaged, or a graph cannot be loaded.
        ConfigError: the configuration is invalid.
        ProviderError: a session fell back to another provider.
    """
    cuda = Cuda(load_api())
    opened = Bundle.open(bundle)
    config, dtype = opened.config, opened.manifest.dtype
    called = call_buffers(config, opened.manifest.graphs)

    def needed(size: int) -> int:
        return sum(device_buffers(config, dtype, size, max_patch_bytes=size).values()) + sum(called.values())

    count = _check_memory(cuda, opened, max_bytes, sequences, needed)
    ort = importlib.import_module("onnxruntime") if ort is None else ort
    options = _session_options(ort) if options is None else options
    stream = Stream(cuda)
    executors = {}
    for part, spec in opened.manifest.graphs.items():
        slots = cache_slots(config.graph_stacks[part], max_bytes)
        # Sessions have no fixed sizes: as on the CPU, a patch may be as long as the text.
        pool = pool_slots(config, max_bytes, max_bytes) if part == "encoder" else 0
        usual_pool = min(pool, pool_slots(config, max_bytes))
        providers = provider_options(provider, bundle)
        executors[part] = OnnxRuntimeExecutor(
            ort, opened.graph(part), spec, stream, slots, pool, usual_pool, providers, options
        )
    used = executors["decoder"].session.get_providers()
    return DeviceBackend(opened, executors, stream, max_bytes, "onnxruntime", used, row_floor, count, needed(max_bytes))
