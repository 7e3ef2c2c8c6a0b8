"""`fastblt verify` passes on a real GPU, with every backend that loads there. Run with ``pytest -m gpu``."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fastblt.cli import app
from fastblt.export.bundle_writer import export_bundle
from fastblt.runtime.backends.cuda_provider import cuda_problem
from fastblt.runtime.backends.gpu.cuda import Cuda, CudaError, load_api
from fastblt.runtime.backends.providers import tensorrt_works
from fastblt.runtime.bundle.tensorrt_library import TensorRtError, load_library

pytestmark = pytest.mark.gpu


def missing(backend: str, provider: str) -> str | None:
    """Return why a backend cannot run on this machine; None where it can."""
    try:
        Cuda(load_api())
        if backend != "onnxruntime":
            load_library(backend)
        elif not (cuda_problem() is None if provider == "cuda" else tensorrt_works()):
            return f"ONNX Runtime's provider {provider} does not load"
    except (CudaError, TensorRtError) as error:
        return str(error)
    return None


@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("lowered", [False, True], ids=["standard", "lowered"])
@pytest.mark.parametrize(
    ("backend", "provider"),
    [("onnxruntime", "cuda"), ("onnxruntime", "tensorrt"), ("tensorrt-rtx", "cuda"), ("tensorrt", "cuda")],
)
def test_verify_passes_on_a_real_gpu(
    shipped_checkpoint: Path, tmp_path: Path, backend: str, provider: str, dtype: str, lowered: bool
) -> None:
    reason = missing(backend, provider)
    if reason is not None:
        pytest.skip(reason)
    bundle = tmp_path / "bundle"
    export_bundle(shipped_checkpoint, bundle, dtype=dtype, lowered=lowered, verify=False)
    if backend != "onnxruntime":
        compiled = CliRunner().invoke(app, ["compile", str(bundle), "--target", backend, "--max-bytes", "1024"])
        assert compiled.exit_code == 0, compiled.output
    result = CliRunner().invoke(app, ["verify", str(bundle), "--backend", backend, "--provider", provider])
    assert result.exit_code == 0, result.output
    shutil.rmtree(bundle)
