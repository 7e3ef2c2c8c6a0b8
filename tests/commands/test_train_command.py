import dataclasses
import io
import json
from functools import partial
from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from typer.testing import CliRunner

from fastblt.cli import app
from fastblt.commands import train
from fastblt.commands.train import Display, RunError, evaluation_line, load_recipe, refuse_existing_run
from fastblt.models.training import report
from fastblt.models.training.corpus import build_corpus
from fastblt.models.training.corpus_sources import Document, Source, text_digest
from fastblt.models.training.recipe import TrainConfig
from fastblt.models.training.run_files import STATE_FILE
from fastblt.models.training.state import Progress

DOCUMENTS: list[Document] = [(f"doc{i:03d}", f"{i} bottles of beer on the wall\n".encode() * 40) for i in range(60)]
SOURCE = Source("toy", "CC0-1.0", "made up", "1", 4, text_digest(DOCUMENTS), client="pip")
RECIPE = TrainConfig(model="tiny", budget_seconds=0.5, patcher_seconds=0.3, batch=2, window=64, long_window=128)


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    folder = tmp_path / "corpus"
    return build_corpus(folder, tmp_path, sources=[SOURCE], reader=lambda source, cache: DOCUMENTS)


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.json"
    path.write_text(json.dumps(dataclasses.asdict(RECIPE)), encoding="utf-8")
    return path


def test_recipe_is_found_by_name_or_file(recipe: Path) -> None:
    assert load_recipe(str(recipe)) == RECIPE
    assert load_recipe("blt-d-8m").model == "blt-d-8m"


def test_unknown_recipe_is_named_with_shipped_ones() -> None:
    with pytest.raises(RunError, match="'nothing': neither a file nor one of the shipped recipes blt-d-8m"):
        load_recipe("nothing")


def test_existing_run_is_refused_without_resume(tmp_path: Path) -> None:
    refuse_existing_run(tmp_path / "new", resume=False)
    (tmp_path / STATE_FILE).touch()
    refuse_existing_run(tmp_path, resume=True)
    with pytest.raises(RunError, match=f"found {STATE_FILE} of an earlier run"):
        refuse_existing_run(tmp_path, resume=False)


def test_run_stops_in_time_resumes_and_ends_with_checkpoint(
    corpus: Path, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report, "heldout_report", partial(report.heldout_report, windows=4, length=256))
    run = tmp_path / "run"
    arguments = ["train", str(recipe), "--out", str(run), "--data", str(corpus), "--threads", "1"]
    stopped = CliRunner().invoke(app, [*arguments, "--max-seconds", "0"])
    assert stopped.exit_code == 0, stopped.stderr or stopped.exception
    assert "time is up" in stopped.stdout
    refused = CliRunner().invoke(app, arguments)
    assert refused.exit_code == 1
    assert "expected a new folder or --resume" in refused.stderr
    resumed = CliRunner().invoke(app, [*arguments, "--resume"])
    assert resumed.exit_code == 0, resumed.stderr or resumed.exception
    assert f"{run}: continues at step 0 of phase patcher" in resumed.stdout
    evaluations = [line for line in resumed.stdout.splitlines() if "bits_per_byte" in line]
    assert evaluations
    assert evaluations[0].startswith("model step ")
    assert resumed.stdout.splitlines()[-1] == f"done, see {run / 'checkpoint'}"
    assert CliRunner().invoke(app, ["inspect", str(run / "checkpoint")]).exit_code == 0


def test_run_starts_from_the_checkpoint_it_is_given(
    corpus: Path, recipe: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    arguments = ["train", str(recipe), "--out", str(run), "--data", str(corpus), "--threads", "1"]
    stopped = CliRunner().invoke(app, [*arguments, "--init", str(tiny_checkpoint), "--max-seconds", "0"])
    assert stopped.exit_code == 0, stopped.stderr or stopped.exception
    # What is saved counts from then on, not the checkpoint.
    resumed = CliRunner().invoke(app, [*arguments, "--init", str(tmp_path / "gone"), "--resume", "--max-seconds", "0"])
    assert resumed.exit_code == 0, resumed.stderr or resumed.exception
    assert f"{run}: continues at step 0 of phase model" in resumed.stdout
    state = load_file(run / STATE_FILE)
    name = "decoder.output.weight"
    expected = load_file(tiny_checkpoint / "model.safetensors")[name]
    assert any(torch.equal(tensor, expected) for key, tensor in state.items() if key.endswith(name))


def test_run_starts_from_a_commit_on_the_hub(
    corpus: Path, recipe: Path, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = tmp_path / ("0123456789" * 4)
    commit.symlink_to(tiny_checkpoint)

    def snapshot_download(repo_id: str, *, revision: str, allow_patterns: list[str]) -> str:
        assert (repo_id, revision) == ("a/b", "v1")
        return str(commit)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    run = tmp_path / "run"
    arguments = ["train", str(recipe), "--out", str(run), "--data", str(corpus), "--threads", "1", "--max-seconds", "0"]
    done = CliRunner().invoke(app, [*arguments, "--init", "hf://a/b", "--revision", "v1"])
    assert done.exit_code == 0, done.stderr or done.exception
    assert f"{run}: starts from hf://a/b@{commit.name}" in done.stdout


def test_checkpoint_to_start_from_must_exist(corpus: Path, recipe: Path, tmp_path: Path) -> None:
    arguments = ["train", str(recipe), "--out", str(tmp_path / "run"), "--data", str(corpus)]
    result = CliRunner().invoke(app, [*arguments, "--init", str(tmp_path / "nowhere")])
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1)
    assert "nowhere" in result.stderr


def test_cuda_is_refused_when_there_is_none(corpus: Path, recipe: Path, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    arguments = [
        "train",
        str(recipe),
        "--out",
        str(tmp_path / "r"),
        "--data",
        str(corpus),
        "--device",
        "cuda",
    ]
    result = CliRunner().invoke(app, arguments)
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1)
    assert not (tmp_path / "r").exists()


def test_evaluations_are_printed_once_and_only_new_whole_lines(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    old, new = ({"phase": "model", "step": step, "seconds": 1.0, "bits_per_byte": 2.5} for step in (1, 2))
    log.write_text(json.dumps(old) + "\n", encoding="utf-8")
    out = io.StringIO()
    with Display(Console(file=out, width=200), log) as display:
        with log.open("a", encoding="utf-8") as file:
            file.write(json.dumps(new) + "\n" + '{"half')
        for step in (1, 2):
            display.on_step(Progress("model", step, tokens=100 * step), 0.5, {"clean_nats": 1.0})
    lines = [line for line in out.getvalue().splitlines() if "step" in line and "bits_per_byte" in line]
    assert lines == [evaluation_line(new)] == ["model step 2 (1 s)  bits_per_byte 2.5"]


def test_missing_matplotlib_leaves_out_the_curves_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "find_spec", lambda name: None)
    monkeypatch.setattr("fastblt.models.checkpoint.load_checkpoint", lambda path: None)
    monkeypatch.setattr("fastblt.models.training.report.heldout_report", lambda model, corpus: {"windows": 1})
    console = Console(file=io.StringIO(), width=200)
    train._report(tmp_path, None, console)  # type: ignore[arg-type]
    assert console.file.getvalue().splitlines()[1:] == [  # type: ignore[attr-defined]
        "no plot of the curves: matplotlib is not installed (pip install matplotlib)"
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["report.json"]
