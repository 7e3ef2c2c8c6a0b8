from pathlib import Path

import pytest
from typer.testing import CliRunner

from fastblt.cli import app
from fastblt.runtime.bundle.manifest import GRAPH_FILES, load_manifest


@pytest.mark.parametrize(("dtype", "hash_tables"), [("fp32", "host"), ("fp16", "graph")])
def test_export_prints_graphs_sizes_errors_and_total(
    tiny_checkpoint: Path, tmp_path: Path, dtype: str, hash_tables: str
) -> None:
    bundle = tmp_path / "bundle"
    arguments = ["export", str(tiny_checkpoint), str(bundle), "--dtype", dtype, "--hash-tables", hash_tables]
    result = CliRunner().invoke(app, [*arguments, "--polygraphy", str(tmp_path / "calls")])
    assert result.exit_code == 0, result.stderr or result.exception
    assert f"polygraphy run {bundle}/global.onnx --onnxrt --load-inputs {tmp_path}/calls/global." in result.stdout
    manifest = load_manifest(bundle)
    assert (manifest.dtype, manifest.hash_tables) == (dtype, hash_tables)
    lines = [line.split() for line in result.stdout.splitlines()]
    rows = {line[0]: line for line in lines}
    for file in GRAPH_FILES.values():
        name, megabytes, nodes, error, *_ = rows[file]
        assert float(megabytes) == pytest.approx(manifest.files[name]["bytes"] / 1e6, abs=0.01)
        assert int(nodes) > 0
        assert 0 <= float(error) < (1e-4 if dtype == "fp32" else 1)
    total = sum(entry["bytes"] for entry in manifest.files.values())
    assert float(rows["total"][1]) == pytest.approx(total / 1e6, abs=0.01)


def test_unknown_dtype_is_a_usage_error(tiny_checkpoint: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["export", str(tiny_checkpoint), str(tmp_path / "b"), "--dtype", "int3"])
    assert result.exit_code == 2
    assert "int3" in result.stderr
