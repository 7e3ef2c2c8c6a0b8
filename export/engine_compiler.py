"""Compiles every graph of a bundle for one or more capacities into a folder of engines, atomically.

One engine of each graph serves every capacity. Where a cache grows with the text (the global transformer's), it is not
updated in the graph, so that calls may bind any number of slots. Stacks with a window and the encoder's pool need few
slots; those have the size that the largest capacity needs, and are updated in place.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Event

from fastblt.export.interruptible import run_interruptible
from fastblt.export.tensorrt_build import TensorRtGraph
from fastblt.models.atomic_folder import replacing_folder
from fastblt.models.config import BltConfig
from fastblt.runtime.backends.gpu.device_rows import MOST_ELEMENTS
from fastblt.runtime.backends.gpu.sliding import (
    CALL_ROWS,
    SLOT_STEP,
    cache_slots,
    pool_slots,
    position_count,
    whole_steps,
)
from fastblt.runtime.bundle.bundle import Bundle
from fastblt.runtime.bundle.engines import (
    ENGINES_FILE,
    ENGINES_FOLDER,
    EngineFolder,
    EngineSpec,
    ShapeProfile,
    compiled_spec,
    folder_name,
)
from fastblt.runtime.bundle.graph_model import check_graph, load_graph
from fastblt.runtime.bundle.manifest import (
    BATCH,
    MANIFEST_FILE,
    GraphSpec,
    Manifest,
    sha256_of,
)
from fastblt.runtime.bundle.tensorrt_library import TensorRtError, TensorRtLibrary
from fastblt.runtime.progress import OnProgress, no_progress

#: Sequences of a call, and rows of each, which are also its patches: smallest, usual, largest, by profile. For one
#: sequence the profiles cover every power of two up to `CALL_ROWS`; longer pieces of prompts do not share a call. No
#: profile has a single row: for that the compiler would lay out the weights in another way, and store them in the
#: engine a second time.
PROFILES = {
    "byte": ((1, 1, 1), (1, 1, 2)),
    "verify": ((1, 1, 1), (4, 8, 16)),
    "prefill": ((1, 1, 1), (32, CALL_ROWS, CALL_ROWS)),
    "batch-4": ((2, 4, 4), (1, 8, 16)),
    "batch-16": ((5, 8, 16), (1, 8, 16)),
}
#: Most sequences of a call.
MOST_SEQUENCES = max(sequences[-1] for sequences, _ in PROFILES.values())

#: Slots that calls usually bind where they may bind any number.
_USUAL_SLOTS = 512

#: First compute capability with products of E4M3 numbers.
FP8_SM = 89


@dataclass(frozen=True)
class CompileRequest:
    """Describes what to compile.

    Raises:
        TensorRtError: there is no GPU or no capacity to compile for, or the number of sequences is out of range.
    """

    sms: tuple[int, ...]
    """Compute capabilities, e.g. 89."""
    capacities: tuple[int, ...]
    """``max_bytes`` of the runtimes that will use the engines, ascending."""
    dtype: str | None = None
    """Type that the bundle must have; None: any."""
    max_patch_bytes: int | None = None
    """Longest patch, if the model sets no limit."""
    timing_cache: Path | None = None
    """File that TensorRT keeps its measurements of kernels in; read if it exists, and written."""
    sequences: int = 1
    """Most sequences of a call: more take more memory for activations, and more time to compile."""

    def __post_init__(self) -> None:
        """Require a compute capability, a capacity and a sequence."""
        if not self.sms or not self.capacities:
            raise TensorRtError("compile: found no SM or no capacity, expected at least one of each")
        if not 1 <= self.sequences <= MOST_SEQUENCES:
            raise TensorRtError(f"sequences: found {self.sequences}, expected 1 to {MOST_SEQUENCES}")


def compile_bundle(
    bundle: Path, library: TensorRtLibrary, request: CompileRequest, on_progress: OnProgress = no_progress
) -> EngineFolder:
    """Compile every graph of a bundle.

    Args:
        bundle: folder that ``fastblt export`` wrote; the folder of engines is created in it, or replaced.
        library: the compiler.
        request: what to compile for.
        on_progress: a step is an engine; its name includes the compiler's phase.

    Returns:
        The manifest of the folder of engines.

    Raises:
        BundleError: the bundle is damaged.
        TensorRtError: a graph cannot be compiled, or the request does not fit bundle or library.
    """
    opened = Bundle.open(bundle, check=False)
    _check_request(bundle, opened.manifest, library, request)
    opened.check_files()
    path = bundle / ENGINES_FOLDER / folder_name(library.target, library.version, request.sms)
    path.parent.mkdir(exist_ok=True)
    try:
        with replacing_folder(path) as new:
            compiler = _Compiler(bundle, opened.config, opened.manifest, library, request, new, on_progress)
            folder = run_interruptible(partial(compiler.run, path))
            (new / ENGINES_FILE).write_text(json.dumps(folder.to_dict(), indent=1) + "\n", encoding="utf-8")
    finally:
        if not any(path.parent.iterdir()):
            path.parent.rmdir()
    return folder


def _check_request(bundle: Path, manifest: Manifest, library: TensorRtLibrary, request: CompileRequest) -> None:
    if request.dtype is not None and request.dtype != manifest.dtype:
        raise TensorRtError(
            f"dtype: found {request.dtype!r}, expected {manifest.dtype!r}: engines have the types of the graphs, "
            f"export another bundle (fastblt export --dtype {request.dtype})"
        )
    if not library.updates_caches and manifest.operators != "lowered":
        raise TensorRtError(
            f"{bundle}: found standard graphs, but {library.label} has no layers for TensorScatter and Attention; "
            "expected lowered ones (fastblt export --lowered)"
        )
    oldest = min(request.sms, default=FP8_SM)
    if "fp8" in manifest.precisions and oldest < FP8_SM:
        raise TensorRtError(
            f"sm: found {oldest}, expected {FP8_SM} or newer: {bundle} has layers in fp8 (fastblt quantize --scheme "
            "int8 or w8 makes one for older GPUs)"
        )
    if request.timing_cache is not None and library.target == "tensorrt-rtx":
        raise TensorRtError(
            "timing cache: found one, but TensorRT-RTX measures no kernels when it builds, expected target tensorrt"
        )


class _Compiler:
    """Runs one compilation: builds the engine of each graph."""

    def __init__(
        self,
        bundle: Path,
        config: BltConfig,
        manifest: Manifest,
        library: TensorRtLibrary,
        request: CompileRequest,
        folder: Path,
        on_progress: OnProgress,
    ) -> None:
        self.bundle, self.config, self.manifest, self.library = bundle, config, manifest, library
        self.request, self.folder, self.on_progress = request, folder, on_progress
        self.engines: list[EngineSpec] = []

    def run(self, path: Path, cancelled: Event) -> EngineFolder:
        """Build all engines and return their manifest; ``path`` is where they will be.

        Raises:
            TensorRtError: a graph cannot be compiled, or the work was cancelled.
        """
        parts = list(self.manifest.graphs)
        for done, part in enumerate(parts):
            self.engines.append(self._build(part, partial(self.on_progress, done, len(parts)), cancelled))
        self.on_progress(len(parts), len(parts), "")
        indexes = {part: index for index, part in enumerate(parts)}
        return EngineFolder(
            path,
            self.library.target,
            self.library.version,
            self.request.sms,
            self.manifest.dtype,
            self.manifest.operators,
            sha256_of(self.bundle / MANIFEST_FILE),
            tuple(self.engines),
            {capacity: dict(indexes) for capacity in self.request.capacities},
        )

    def _sizes(self, part: str) -> dict[str, int]:
        """Return the slots of a part's caches and of its pool (0 where it has none), for the largest capacity."""
        most = max(self.request.capacities)
        pool = pool_slots(self.config, most, self.request.max_patch_bytes) if part == "encoder" else 0
        return {"slots": cache_slots(self.config.graph_stacks[part], most), "pool_slots": pool}

    def _build(self, part: str, on_phase: Callable[[str], None], cancelled: Event | None = None) -> EngineSpec:
        spec, sizes = self.manifest.graphs[part], self._sizes(part)
        slots, pool = sizes["slots"], sizes["pool_slots"]
        name = f"{Path(spec.file).stem}-{slots}{f'-{pool}' if pool else ''}.engine"
        on_phase(f"{name}: parsing {spec.file}")
        began = time.perf_counter()
        check_graph(self.bundle / spec.file, load_graph(self.bundle / spec.file), spec)
        lowered, grows = self.manifest.operators == "lowered", self.config.graph_stacks[part].window is None
        # The pool is updated in place, and an engine does that to all of its caches or to none.
        appends = grows and not lowered and not pool
        least = SLOT_STEP if appends or (grows and lowered) else slots
        fixed = sizes if least == slots else {"pool_slots": pool}
        graph = TensorRtGraph(self.library, self.bundle / spec.file, fixed, spec if appends else None)
        aliases = graph.aliases()
        _check_aliases(self.bundle / spec.file, compiled_spec(spec, appends=appends), aliases)
        ranges = {size: (number,) * 3 for size, number in sizes.items()}
        if least < slots:
            ranges["slots"] = (least, min(_USUAL_SLOTS, slots), slots)
        latents = whole_steps(position_count(max(self.request.capacities)))
        profiles = _profiles(spec, self.config.hash.context - 1, latents, ranges, self.request.sequences)
        cache = self.request.timing_cache
        data = graph.build(profiles, self.request.sms, cache, lambda phase: on_phase(f"{name}: {phase}"), cancelled)
        (self.folder / name).write_bytes(data)
        return EngineSpec(
            part,
            name,
            data.nbytes,
            sha256_of(self.folder / name),
            slots,
            pool,
            profiles,
            aliases,
            graph.decomposed,
            round(time.perf_counter() - began, 2),
            least,
            appends,
            graph.activation_bytes,
        )


def _check_aliases(path: Path, spec: GraphSpec, aliases: dict[str, str]) -> None:
    """Raise `TensorRtError` unless every cache update that the graph declares is made in place."""
    expected = {t.name: t.name.removesuffix("_out") for t in spec.outputs if t.role in ("cache_update", "pool_update")}
    if aliases != expected:
        missing = sorted(set(expected) - set(aliases)) or sorted(aliases)
        raise TensorRtError(f"{path}: found {', '.join(missing)} not updated in place, expected every cache to be")


def _profiles(
    spec: GraphSpec, history: int, latents: int, slots: Mapping[str, Sequence[int]], together: int
) -> tuple[ShapeProfile, ...]:
    """Return the profiles of a graph: ranges of all inputs whose shapes depend on the call.

    Args:
        spec: of the graph.
        history: tokens before the rows, where the graph reads ids with history.
        latents: most of a sequence; those of all sequences are bound in every call, and how many depends on the
            runtime.
        slots: fewest, usual and most slots of the caches and of the pool, by symbolic size.
        together: most sequences of a call; those of earlier versions' graphs are one.
    """
    found = []
    together = together if any(BATCH in tensor.shape for tensor in spec.inputs) else 1
    countable = _most_latents(spec)
    for name, (sequences, rows) in PROFILES.items():
        if sequences[0] > together:
            continue
        ranges: dict[int | str, Sequence[int]] = {
            "rows": rows,
            "patches": rows,
            "latents": (1, min(latents, countable), min(together * latents, countable)),
        }
        ranges[BATCH] = [min(number, together) for number in sequences]
        ranges["context_rows"] = [size + history for size in rows]
        ranges.update({size: bounds for size, bounds in slots.items() if bounds[0] < bounds[-1]})
        shapes = {}
        for tensor in spec.inputs:
            if any(size in ranges for size in tensor.shape):
                sizes = [ranges.get(size) or slots.get(str(size)) or [int(size)] * 3 for size in tensor.shape]
                least, usual, most = (tuple(size[bound] for size in sizes) for bound in range(3))
                shapes[tensor.name] = (least, usual, most)
        found.append(ShapeProfile(name, shapes))
    return tuple(found)


def _most_latents(spec: GraphSpec) -> int:
    """Return how many latents a call of a graph may read, whose elements are counted with 32 bits."""
    latents = spec.input("latent_kv")
    sizes = () if latents is None else latents.shape[1:]
    return MOST_ELEMENTS // math.prod(size for size in sizes if isinstance(size, int))
