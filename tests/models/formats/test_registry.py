"""Layouts come from one list; recognizing them needs no PyTorch."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from fastblt.models.checkpoint import save_checkpoint
from fastblt.models.formats import registry
from fastblt.models.formats.checkpoint import Checkpoint
from fastblt.models.formats.errors import CheckpointError
from fastblt.models.formats.layout import BUNDLE_FILE, CONFIG_FILE, WEIGHTS_FILE
from fastblt.models.formats.open import check_path, open_checkpoint
from fastblt.models.formats.own import FastbltLayout

ROOT = Path(__file__).parents[3]


class BackwardsLayout(FastbltLayout):
    """Our layout with a configuration file that is written backwards."""

    name = "backwards"
    description = "backwards checkpoint"
    title = "backwards"
    contents = "a text and weights"
    recognized_by = "the text"
    files = ("gifnoc.txt", WEIGHTS_FILE)

    def recognizes(self, path: Path, config: Mapping[str, Any]) -> bool:
        return (path / "gifnoc.txt").is_file()

    def open(self, path: Path, patcher: Path | None) -> Checkpoint:
        text = (path / "gifnoc.txt").read_text()[::-1]
        (path / CONFIG_FILE).write_text(text)
        return super().open(path, patcher)


def test_layout_needs_one_line_to_be_recognized_opened_and_documented(
    tiny_model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "LAYOUTS", (*registry.LAYOUTS, BackwardsLayout()))
    save_checkpoint(tmp_path / "model", tiny_model)
    config = tmp_path / "model" / CONFIG_FILE
    (tmp_path / "model" / "gifnoc.txt").write_text(config.read_text()[::-1])
    config.unlink()
    assert open_checkpoint(tmp_path / "model").layout.name == "backwards"
    assert "backwards checkpoint" in registry.layouts_help()
    assert "| backwards | a text and weights | the text |" in registry.layouts_table()
    with pytest.raises(CheckpointError, match=r"gifnoc\.txt and model\.safetensors \(backwards checkpoint\)"):
        open_checkpoint(tmp_path / "nowhere")


def test_documentation_has_the_table_of_layouts() -> None:
    assert registry.layouts_table() in (ROOT / "docs" / "checkpoints.md").read_text(encoding="utf-8")


def test_names_are_unique_and_errors_list_them() -> None:
    names = [layout.name for layout in registry.LAYOUTS]
    assert len(set(names)) == len(names)
    with pytest.raises(CheckpointError, match=f"found 'gguf', expected one of {', '.join(names)}"):
        registry.layout_named("gguf")
    with pytest.raises(CheckpointError, match="to: found 'random', expected one of transformers, fastblt"):
        registry.writable_layout("random")


def test_presets_and_folders_are_checked_without_torch(tmp_path: Path) -> None:
    (tmp_path / "hub").mkdir()
    (tmp_path / "hub" / CONFIG_FILE).write_text(json.dumps({"args": {}}))
    program = f"""
import sys
from fastblt.models.formats.open import check_path
from fastblt.models.formats.registry import WRITABLE, layouts_help, layouts_table, recognize
from pathlib import Path
assert recognize(Path("random:tiny")).name == "random"
assert recognize(Path({str(tmp_path / "hub")!r})).name == "meta-hub"
layouts_help(), layouts_table(), list(WRITABLE)
for wrong in ("random:nosuch", "./nowhere"):
    try:
        check_path(wrong)
    except ValueError as error:
        print(error)
assert "torch" not in sys.modules and "safetensors" not in sys.modules
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "preset 'nosuch': unknown, expected one of tiny, " in result.stdout
    assert "nowhere: found no such folder, expected a checkpoint: " in result.stdout


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({CONFIG_FILE: {"args": {}}}, "meta-hub"),
        ({CONFIG_FILE: {"model_type": "blt"}}, "transformers"),
        ({CONFIG_FILE: {"name": "ours"}}, "a bundle"),
        ({"params.json": {}, "consolidated.pth": {}}, "a bundle"),
        ({}, "a bundle"),
    ],
)
def test_folder_with_a_manifest_is_a_bundle_unless_its_configuration_is_of_other_software(
    files: dict[str, Any], expected: str, tmp_path: Path
) -> None:
    for name, content in {BUNDLE_FILE: {}, **files}.items():
        (tmp_path / name).write_text(json.dumps(content))
    if expected != "a bundle":
        assert registry.recognize(tmp_path).name == expected
        return
    with pytest.raises(CheckpointError, match=r"found a bundle \(manifest\.json\), expected the checkpoint"):
        registry.recognize(tmp_path)


def test_id_of_the_hub_is_not_looked_up_by_the_check() -> None:
    check_path("hf://facebook/blt-1b")
