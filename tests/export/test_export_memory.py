"""Exports a large checkpoint within a bound on memory."""

from __future__ import annotations

import dataclasses
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from fastblt.models.checkpoint import WEIGHTS_FILE
from fastblt.models.config import HashConfig, StackConfig
from fastblt.models.formats.checkpoint import expected_shapes
from fastblt.models.formats.safetensors_writer import Table, write_tables
from fastblt.models.presets import preset
from fastblt.runtime.bundle.manifest import CONFIG_FILE

MEASURED = """
import sys
from pathlib import Path
from fastblt.export.bundle_writer import export_bundle

export_bundle(Path(sys.argv[1]), Path(sys.argv[2]))
print(next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")))
"""


@pytest.fixture(scope="module")
def large_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """About 1 GB of random fp32 weights in the proportions of blt-1b, written piece by piece."""
    local = StackConfig(dim=512, layers=1, heads=8, ffn_dim=1408, window=512)
    config = dataclasses.replace(
        preset("blt-1b"),
        name="large",
        patcher=StackConfig(dim=256, layers=4, heads=4, ffn_dim=768, rope_theta=10_000.0, window=512),
        encoder=local,
        global_transformer=StackConfig(dim=1024, layers=12, heads=16, ffn_dim=2816),
        decoder=dataclasses.replace(local, layers=4),
        hash=HashConfig(rows=32_000),
    )
    random = np.random.default_rng(0).random(1 << 22, dtype=np.float32)  # again and again: drawing 1 GB takes seconds
    values = (random - 0.5) * 0.07

    def pieces(shape: tuple[int, ...]) -> Iterator[np.ndarray]:
        if len(shape) == 1:
            yield np.ones(shape, dtype=np.float32).view(np.uint8)
            return
        for first in range(0, shape[0], 4096):
            rows = min(4096, shape[0] - first)
            yield np.resize(values, (rows, *shape[1:])).view(np.uint8)

    folder = tmp_path_factory.mktemp("large") / "checkpoint"
    folder.mkdir()
    try:
        config.save(folder / CONFIG_FILE)
        shapes = expected_shapes(config)
        tables = {n: Table("F32", 4, list(shape), partial(pieces, shape)) for n, shape in shapes.items()}
        write_tables(folder / WEIGHTS_FILE, tables)
        yield folder
    finally:
        shutil.rmtree(folder)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
def test_peak_memory_is_1_3_times_the_checkpoint_and_1_gb_at_most(large_checkpoint: Path, tmp_path: Path) -> None:
    # Writing and verification follow each other in one process: the peak bounds that of an unverified export, too.
    size = (large_checkpoint / WEIGHTS_FILE).stat().st_size
    assert 0.9e9 < size < 1.2e9
    bundle = tmp_path / "bundle"
    command = [sys.executable, "-c", MEASURED, str(large_checkpoint), str(bundle)]
    started = time.perf_counter()
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert (bundle / "global.onnx.data").stat().st_size > 0.5e9
    finally:
        shutil.rmtree(bundle, ignore_errors=True)
    peak = int(done.stdout.split()[1]) * 1024
    print(f"checkpoint {size / 1e9:.3f} GB, peak {peak / 1e9:.3f} GB, {time.perf_counter() - started:.0f} s")
    assert peak <= 1.3 * size + 1e9
