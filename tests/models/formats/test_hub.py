"""Ids of the hub: only with their prefix, at a revision, and never instead of a path. Nothing here uses a network."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from fastblt.cli import app
from fastblt.models.formats.errors import CheckpointError
from fastblt.models.formats.hub import locate
from fastblt.models.formats.hub_id import HubId, is_hub_id, parse_hub_id, with_revision
from fastblt.models.formats.open import check_path, open_checkpoint

COMMIT = "0123456789abcdef0123456789abcdef01234567"

Asked = list[tuple[str, str | None]]


@pytest.fixture
def hub(tmp_path: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> Asked:
    """A hub that has every model, and remembers what was asked for."""
    asked: Asked = []
    snapshot = tmp_path / "cache" / COMMIT
    snapshot.parent.mkdir()
    snapshot.symlink_to(tiny_checkpoint, target_is_directory=True)

    def snapshot_download(repo_id: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        assert "*.safetensors" in allow_patterns
        asked.append((repo_id, revision))
        return str(snapshot)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    return asked


def invoke(*arguments: object) -> Any:
    return CliRunner().invoke(app, list(map(str, arguments)))


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("hf://a/b", HubId("a/b", None)),
        ("hf://facebook/blt-1b@main", HubId("facebook/blt-1b", "main")),
        (f"hf://_o.w-n/M_0.1-x@{COMMIT}", HubId("_o.w-n/M_0.1-x", COMMIT)),
        ("hf://a/b@refs/pr/1", HubId("a/b", "refs/pr/1")),
    ],
)
def test_id_has_owner_model_and_perhaps_a_revision(name: str, parts: HubId) -> None:
    assert is_hub_id(name)
    assert parse_hub_id(name) == parts
    assert str(parts) == name
    check_path(name)


@pytest.mark.parametrize(
    "name",
    [
        "hf://", "hf://a", "hf://a/", "hf:///b", "hf://a/b/c", "hf://a/b@", "hf://a/b@x@y", "hf://../b", "hf://a/..",
        "hf://a/b?x", "hf://a b/c", "hf://a/b\x1b[31m", "hf://a/b\n", "hf://a/b@../c", "hf://\u00e4/b", "hf://-a/b",
    ],
)  # fmt: skip
def test_malformed_id_is_one_line_and_asks_nobody(name: str, hub: Asked, tmp_path: Path) -> None:
    for look in (check_path, locate, open_checkpoint):
        with pytest.raises(CheckpointError, match=r"^hub id: found .*, expected hf://OWNER/MODEL or ") as caught:
            look(name)
        assert str(caught.value).isprintable()
    result = invoke("export", name, tmp_path / "bundle")
    assert (result.exit_code, len(result.stderr.splitlines())) == (2, 1)
    assert hub == []


@pytest.mark.parametrize("name", ["facebook/blt-1b", "no/such.folder", "nowhere"])
@pytest.mark.parametrize("command", ["export", "convert", "inspect", "train"])
def test_name_without_the_prefix_is_a_path(name: str, command: str, hub: Asked, tmp_path: Path) -> None:
    rest = {
        "export": (name, tmp_path / "out"),
        "convert": (name, tmp_path / "out", "--to", "fastblt"),
        "inspect": (name,),
        "train": ("blt-d-8m", "--out", tmp_path / "out", "--init", name),
    }
    result = invoke(command, *rest[command])
    assert result.exit_code == 1
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"error: {name}: found no such folder, expected a checkpoint: ")
    assert (f"; a model of the Hugging Face hub is hf://{name}" in line) == ("/" in name)
    assert hub == []


@pytest.mark.parametrize("path", ["/no/such", "../no/such", "~/such", "a/b/c", "a"])
def test_what_cannot_be_an_id_is_told_nothing_about_the_hub(path: str) -> None:
    with pytest.raises(CheckpointError, match="no such folder") as caught:
        check_path(path)
    assert "hf://" not in str(caught.value)


def test_folder_is_read_though_it_looks_like_an_id(
    hub: Asked, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "facebook").mkdir()
    (tmp_path / "facebook" / "blt-1b").symlink_to(tiny_checkpoint)
    monkeypatch.chdir(tmp_path)
    assert open_checkpoint("facebook/blt-1b").config.name == "tiny"
    assert hub == []


def test_id_is_downloaded_at_its_revision(hub: Asked) -> None:
    assert open_checkpoint("hf://a/b").config.name == "tiny"
    assert open_checkpoint("hf://a/b@v1").config.name == "tiny"
    found = locate("hf://a/b@v1")
    assert (found.folder.name, found.name) == (COMMIT, f"hf://a/b@{COMMIT}")
    assert hub == [("a/b", None), ("a/b", "v1"), ("a/b", "v1")]


def test_revision_of_an_option_is_that_of_the_id() -> None:
    assert with_revision("some/folder", None) == "some/folder"
    assert with_revision("hf://a/b", None) == "hf://a/b"
    assert with_revision("hf://a/b", "v1") == with_revision("hf://a/b@v1", "v1") == "hf://a/b@v1"
    for name, revision, message in (
        ("some/folder", "v1", "^--revision: found the path some/folder, expected an id of the hub, hf://OWNER/MODEL$"),
        ("hf://a/b@v1", "v2", "^--revision: found 'v2' for hf://a/b@v1, expected one revision$"),
        ("hf://a/b", "../x", "^hub id: found 'hf://a/b@../x', expected"),
        ("hf://a/b", "", "^hub id: found 'hf://a/b@', expected"),
    ):
        with pytest.raises(CheckpointError, match=message):
            with_revision(name, revision)


def test_commands_pass_the_revision_and_print_the_commit(hub: Asked, tmp_path: Path) -> None:
    result = invoke("convert", "hf://a/b", tmp_path / "out", "--to", "fastblt", "--revision", "v1")
    assert result.exit_code == 0, result.stderr
    assert f"hf://a/b@{COMMIT}: found fastblt checkpoint" in result.stderr
    result = invoke("inspect", "hf://a/b", "--revision", "v2", "--json", tmp_path / "facts.json")
    assert result.exit_code == 0, result.stderr
    assert f"hf://a/b@{COMMIT}: fastblt checkpoint, tiny" in result.stdout
    assert json.loads((tmp_path / "facts.json").read_text())["path"] == f"hf://a/b@{COMMIT}"
    patcher = ("--patcher", "hf://p/q@v4")
    result = invoke("convert", "hf://a/b", tmp_path / "other", "--to", "fastblt", "--revision", "v3", *patcher)
    assert result.exit_code == 0, result.stderr
    assert f"hf://p/q@{COMMIT}: found the entropy model" in result.stderr
    assert hub == [("a/b", "v1"), ("a/b", "v2"), ("a/b", "v3"), ("p/q", "v4")]


@pytest.mark.parametrize("command", ["export", "convert", "inspect"])
def test_revision_of_a_path_is_refused(command: str, tiny_checkpoint: Path, tmp_path: Path) -> None:
    rest = {"export": (tmp_path / "out",), "convert": (tmp_path / "out", "--to", "fastblt"), "inspect": ()}
    result = invoke(command, tiny_checkpoint, *rest[command], "--revision", "v1")
    assert result.exit_code == 2
    assert result.stderr == (
        f"error: --revision: found the path {tiny_checkpoint}, expected an id of the hub, hf://OWNER/MODEL\n"
    )
    assert os.listdir(tmp_path) == []


def test_malformed_id_is_no_bundle_either() -> None:
    result = invoke("inspect", "hf://a/../b")
    assert result.exit_code == 2
    assert result.stderr == (
        "error: hub id: found 'hf://a/../b', expected hf://OWNER/MODEL or hf://OWNER/MODEL@REVISION\n"
    )


@pytest.mark.parametrize("arguments", [("generate", "hf://a/b@v1", "text"), ("pack", "hf://a/b@v1")])
def test_id_in_place_of_a_bundle_is_one_line_with_what_to_do(arguments: tuple[str, ...], hub: Asked) -> None:
    result = invoke(*arguments)
    assert result.exit_code == 1
    assert result.stderr == (
        "error: hf://a/b@v1: found an id of the hub, expected a bundle; export the checkpoint first: "
        "fastblt export hf://a/b@v1 BUNDLE\n"
    )
    assert hub == []


def test_revision_without_a_checkpoint_to_start_from_is_refused(tmp_path: Path) -> None:
    result = invoke("train", "blt-d-8m", "--out", tmp_path / "run", "--revision", "v1")
    assert result.exit_code == 2
    assert result.stderr == "error: --revision: found no --init, expected the checkpoint that it is of\n"
