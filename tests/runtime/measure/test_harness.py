"""The model of lm-evaluation-harness: its answers are those of the eager model, and the command runs local tasks."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lm_eval import simple_evaluate
from lm_eval.api.registry import get_model
from lm_eval.tasks import TaskManager
from lm_eval.utils import simple_parse_args_string
from typer.testing import CliRunner

from fastblt.cli import app
from fastblt.models.blt import Blt
from fastblt.models.tokens import encode
from fastblt.runtime.measure.harness.model import HarnessModel
from fastblt.runtime.measure.harness.texts import fit_context, rolling_windows
from fastblt.runtime.request import GenerationRequest

PAIRS = [
    ("Where is it? ", "here"),
    ("", "A text without context"),
    ("Where is it? ", "there, or nowhere"),
    ("naïve", " café €"),
    ("Where was it? ", "here"),
    ("a", ""),
    ("Where is it", "? here"),
]
QUESTIONS = [
    {"question": "one two", "choices": [" three", " four"], "answer": 0},
    {"question": "a b c", "choices": [" d", " xyz"], "answer": 1},
    {"question": "naïve", "choices": [" café", " and"], "answer": 0},
]
TASK = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}, cache_dir: {cache}}}
test_split: test
output_type: {kind}
{rest}
"""
TASKS = {
    "local_choices": (
        "multiple_choice",
        "doc_to_text: '{{question}}'\ndoc_to_target: answer\ndoc_to_choice: '{{choices}}'\ntarget_delimiter: ''\n"
        "metric_list: [{metric: acc}]",
    ),
    "local_rolling": (
        "loglikelihood_rolling",
        "doc_to_text: ''\ndoc_to_target: '{{question}}, {{question}}'\nmetric_list: [{metric: bits_per_byte}]",
    ),
    "local_text": (
        "generate_until",
        "doc_to_text: '{{question}}'\ndoc_to_target: nothing\ngeneration_kwargs: {until: [e], max_gen_toks: 12}\n"
        "metric_list: [{metric: exact_match}]",
    ),
}

Make = Callable[..., HarnessModel]


def asked(*requests: tuple[Any, ...]) -> list[Any]:
    """Return requests as the harness makes them."""
    return [SimpleNamespace(args=args) for args in requests]


@torch.inference_mode()
def eager_logprob(model: Blt, context: str, continuation: str) -> float:
    ids = encode(context + continuation)
    logprobs = model(torch.from_numpy(ids[:-1])[None])[0][0].double().log_softmax(-1)
    every = logprobs[torch.arange(len(ids) - 1), torch.from_numpy(ids[1:])]
    return float(every[len(context.encode()) :].sum())


@pytest.fixture(scope="module")
def make(tiny_bundle: Path) -> Make:
    """Return a function that loads the tiny bundle."""
    return lambda **options: HarnessModel(tiny_bundle, **{"max_bytes": 128, "threads": 1, **options})


@pytest.fixture(scope="module")
def harness(make: Make) -> HarnessModel:
    return make()


def test_log_likelihoods_are_those_of_the_eager_model(harness: HarnessModel, tiny_model: Blt) -> None:
    found = harness.loglikelihood(asked(*PAIRS))
    expected = [eager_logprob(tiny_model, *pair) if pair[1] else 0.0 for pair in PAIRS]
    assert [total for total, _ in found] == pytest.approx(expected, abs=1e-3)
    assert [greedy for _, greedy in found] == [continuation == "" for _, continuation in PAIRS]


def test_what_greedy_decoding_writes_is_greedy(harness: HarnessModel) -> None:
    for context in ("Where is it? ", "In the beginning", ""):
        text = harness.runtime.generate(context, 16, method="ar", stop_at_eos=False).data.decode(errors="replace")
        safe = text.partition("\ufffd")[0]  # requests are text
        assert harness.loglikelihood(asked((context, safe)))[0][1]
    score = harness.runtime.score("Where is it? ", harness.runtime.generate("Where is it? ", 16, method="ar").data)
    assert score.greedy.all()
    assert not harness.runtime.score("Where is it? ", b"\x00" + score.data[1:]).greedy[0]


def test_answers_do_not_depend_on_how_many_texts_grow_at_once(make: Make, harness: HarnessModel) -> None:
    several = make(batch_size=3)
    assert several.runtime.sequences == 3
    found, expected = (model.loglikelihood(asked(*PAIRS)) for model in (several, harness))
    assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]
    # Where a text continues an earlier one, other rows are computed together: only the last bits may differ.
    assert [total for total, _ in found] == pytest.approx([total for total, _ in expected], rel=1e-6)
    documents = asked(*((f"{context}{text}" * 9,) for context, text in PAIRS))
    assert several.loglikelihood_rolling(documents) == harness.loglikelihood_rolling(documents)
    texts = asked(*((context, {"until": [], "max_gen_toks": 9}) for context, _ in PAIRS))
    assert several.generate_until(texts) == harness.generate_until(texts)


def test_a_long_context_loses_its_beginning(make: Make) -> None:
    short, context = make(max_bytes=40), "x€" * 30
    assert short.loglikelihood(asked((context, "0123456789"))) == [
        (pytest.approx(short.runtime.score(context.encode()[-30:].lstrip(b"\x82\xac"), "0123456789").total), False)
    ]
    settings = {"until": [], "max_gen_toks": 15}
    written = str(short.runtime.generate(context.encode()[-25:].lstrip(b"\x82\xac"), 15))
    assert short.generate_until(asked((context, settings))) == [written]
    with pytest.raises(ValueError, match="continuation: found 41 bytes, expected at most max_bytes=40"):
        short.loglikelihood(asked(("", "x" * 41)))
    with pytest.raises(ValueError, match="max_gen_toks: found 256 new bytes, expected fewer than max_bytes=40"):
        short.generate_until(asked(("x", {})))


def test_context_is_cut_between_characters() -> None:
    text = "a€b".encode()
    assert [fit_context(text, room) for room in range(7)] == [b"", b"b", b"b", b"b", "€b".encode(), text, text]


@pytest.mark.parametrize("size", [0, 1, 7, 8, 9, 14, 15, 16, 40])
def test_windows_predict_every_byte_once_after_all_context_that_fits(size: int) -> None:
    data = bytes(range(size))
    windows = list(rolling_windows(data, 8))
    assert b"".join(predicted for _, predicted in windows) == data
    assert [len(context) + len(predicted) for context, predicted in windows] == ([8] * len(windows) or []) or size < 8
    assert all(context or data.startswith(predicted) for context, predicted in windows)
    assert len(windows) == (0 if not size else 1 + max(0, math.ceil((size - 8) / 7)))


def test_documents_are_scored_whole_or_in_windows(make: Make, harness: HarnessModel, tiny_model: Blt) -> None:
    document = "Some words, and some more words after them. " * 2
    assert harness.loglikelihood_rolling(asked((document,), ("",))) == [
        pytest.approx(eager_logprob(tiny_model, "", document), abs=1e-3),
        0.0,
    ]
    data = document.encode()
    parts = [(b"", data[:40]), (data[39:40], data[40:79]), (data[48:79], data[79:])]
    short = make(max_bytes=40)
    expected = sum(eager_logprob(tiny_model, before.decode(), after.decode()) for before, after in parts)
    assert short.loglikelihood_rolling(asked((document,))) == [pytest.approx(expected, abs=1e-3)]


def test_text_ends_where_the_task_says(make: Make, harness: HarnessModel) -> None:
    whole = str(harness.runtime.generate("Once", 40, method="ar"))
    stop = whole[7]
    for method in ("ar", "s:4", "dv:4@one"):
        model = make(method=method, bytes_per_token=4)
        settings = {"until": [stop, ""], "max_gen_toks": 10, "do_sample": False, "temperature": 0.7, "num_beams": 1}
        assert model.generate_until(asked(("Once", settings))) == [whole.partition(stop)[0]]
        assert model.generate_until(asked(("Once", {"until": [], "max_gen_toks": 10}))) == [whole]
    sampled = {"max_gen_toks": 20, "do_sample": True, "temperature": 1.0, "top_p": 0.9}
    twice = asked(*[("Once", sampled)] * 2)
    first, second = harness.generate_until(twice)
    assert first != second
    assert harness.generate_until(twice) == [first, second]


def test_settings_that_cannot_be_honored_are_refused(make: Make, harness: HarnessModel) -> None:
    with pytest.raises(ValueError, match="generation_kwargs: found num_beams=4, expected max_gen_toks"):
        harness.generate_until(asked(("x", {"num_beams": 4})))
    with pytest.raises(ValueError, match="method 'z:8'"):
        make(method="z:8")
    refused = {"batch_size": (0, "many"), "bytes_per_token": (0,), "max_bytes": (1,), "seed": (-1, "x")}
    for name, value in ((name, value) for name, values in refused.items() for value in values):
        with pytest.raises(ValueError, match=f"{name}: found .*, expected an integer >="):
            make(**{name: value})


def test_model_args_that_do_not_exist_are_refused(tiny_bundle: Path) -> None:
    for text, message in (
        ("bundle=x,metod=ar", "model_args: found 'metod', expected bundle, method, backend"),
        ("bundle=x,batch_size=2", "model_args: found 'batch_size', expected bundle"),
        ("method=ar", "model_args: found no bundle, expected bundle=FOLDER"),
        ("bundle=7", "7: not a folder, expected a bundle"),
        (f"bundle={tiny_bundle},method=z:8", "method 'z:8': unknown"),
    ):
        with pytest.raises(ValueError, match=message):
            HarnessModel.create_from_arg_string(text, {"batch_size": 1})
        with pytest.raises(ValueError, match=message):
            HarnessModel.create_from_arg_obj(simple_parse_args_string(text), {"batch_size": 1})


def test_progress_counts_what_is_done(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make(batch_size=2, max_bytes=512)
    done: list[str] = []
    counted: list[int] = []

    def generate(context: bytes, request: GenerationRequest) -> str:
        done.append(context.decode())
        return "text"

    def shown(items: Iterable[str], *_: object, **__: object) -> Iterator[str]:
        for item in items:
            counted.append(len(done))
            yield item

    monkeypatch.setattr(model.runtime, "generate", generate)
    monkeypatch.setattr("fastblt.runtime.measure.harness.model.tqdm", shown)
    assert model.generate_until(asked(("a", {}), ("b", {}), ("c", {}))) == ["text"] * 3
    assert all(found > before for before, found in enumerate(counted))


def test_local_tasks_are_scored(harness: HarnessModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    data = tmp_path / "questions.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in QUESTIONS), encoding="utf-8")
    for name, (kind, rest) in TASKS.items():
        text = TASK.format(name=name, data=data, cache=tmp_path / "cache", kind=kind, rest=rest)
        (tmp_path / f"{name}.yaml").write_text(text, encoding="utf-8")
    tasks = TaskManager(include_path=str(tmp_path), include_defaults=False)
    report = simple_evaluate(model=harness, tasks=list(TASKS), task_manager=tasks, bootstrap_iters=0)
    own = harness.runtime
    right, nats, size = 0, 0.0, 0
    for row in QUESTIONS:
        totals = [own.score(row["question"], choice).total for choice in row["choices"]]
        right += totals.index(max(totals)) == row["answer"]
        document = f"{row['question']}, {row['question']}"
        nats -= own.score("", document).total
        size += len(document.encode())
    found = report["results"]
    assert found["local_choices"]["acc,none"] == pytest.approx(right / len(QUESTIONS))
    assert found["local_rolling"]["bits_per_byte,none"] == pytest.approx(nats / math.log(2) / size)
    assert report["config"]["model_name"] == "tiny"
    written = {row["doc"]["question"]: row["resps"][0][0] for row in report["samples"]["local_text"]}
    assert written == {
        row["question"]: str(own.generate(row["question"], 12, method="ar", stop="e")) for row in QUESTIONS
    }


def test_command_is_the_harness_that_knows_the_model(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr("lm_eval.__main__.cli_evaluate", lambda: seen.append(list(sys.argv)))
    arguments = [
        "--model",
        "fastblt",
        "--model_args",
        f"bundle={tiny_bundle},method=s:4,max_bytes=64",
        "-t",
        "--",
        "-h",
    ]
    before = list(sys.argv)
    result = CliRunner().invoke(app, ["lm-eval", *arguments])
    assert result.exit_code == 0, result.stderr or result.exception
    assert seen == [["fastblt lm-eval", *(word for word in arguments if word != "--")]]
    assert sys.argv == before
    given = {"batch_size": "2", "max_batch_size": None, "device": "cuda:0"}  # as the harness's command line passes them
    made = get_model("fastblt").create_from_arg_string(arguments[3], given)
    assert isinstance(made, HarnessModel)
    assert (made.max_length, made.runtime.sequences) == (64, 2)
