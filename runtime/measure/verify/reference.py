"""Loads a bundle on the CPU, as what a GPU is compared with."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from fastblt.models.atomic_folder import scratch_folder
from fastblt.runtime.bundle.manifest import Manifest

if TYPE_CHECKING:
    from fastblt.runtime.backends.cpu.backend import OnnxRuntimeBackend

#: Writes the twin of a bf16 bundle that runs on CPUs: `fastblt.export.emulation.emulate_bf16`.
Emulate = Callable[[Path, Path], object]


class DeviceError(ValueError):
    """A backend computes something else than the CPU does, or there is nothing to compare the CPU with."""


@contextmanager
def cpu_reference(
    bundle: Path, manifest: Manifest, capacity: int, emulate: Emulate | None
) -> Iterator[OnnxRuntimeBackend]:
    """Load the bundle on the CPU; where there are no kernels for its type, a twin in wider arithmetic.

    Args:
        bundle: its folder.
        manifest: of the bundle.
        capacity: longest prompt plus new bytes.
        emulate: needed for bf16 bundles only.

    Raises:
        DeviceError: a bf16 bundle, and ``emulate`` is missing.
        BundleError: the bundle cannot be loaded.
    """
    from fastblt.runtime.backends.cpu.backend import OnnxRuntimeBackend
    from fastblt.runtime.backends.cpu.sessions import session_options

    # A GPU multiplies with quantized weights as the graph specifies: it does not round their inputs to 8 bits.
    exact = session_options(manifest, None, exact=True)
    if manifest.dtype != "bf16":
        yield OnnxRuntimeBackend.load(bundle, capacity, None, exact)
        return
    if emulate is None:
        raise DeviceError(f"{bundle}: found a bf16 bundle, which no CPU runs, expected a way to emulate it")
    with scratch_folder() as folder:
        emulate(bundle, folder / "twin")
        yield OnnxRuntimeBackend.load(folder / "twin", capacity, None, exact)
