from importlib.resources import files
from itertools import pairwise

import pytest

from fastblt.calibration.heldout import CORPORA, Prompt, load_edit_prompts, load_prompts, load_text


def test_prompts_are_24_of_each_corpus_with_unique_ids() -> None:
    prompts = load_prompts()
    assert [prompt.corpus for prompt in prompts] == [name for name in CORPORA for _ in range(24)]
    assert len({prompt.id for prompt in prompts}) == len(prompts)


def test_prompts_have_64_to_160_bytes() -> None:
    assert all(64 <= len(prompt.data) <= 160 for prompt in load_prompts())


def test_prompt_bytes_round_trip() -> None:
    for prompt in load_prompts():
        assert prompt.data.decode() == prompt.text
        assert b"\r" not in prompt.data


def test_prompts_overlap_neither_each_other_nor_the_text() -> None:
    prompts = load_prompts()
    assert len({prompt.data for prompt in prompts}) == len(prompts)
    for prompt in prompts:
        assert prompt.data not in load_text(prompt.corpus), prompt.id
    spans = sorted((p.corpus, p.document, p.offset, len(p.data)) for p in prompts)
    for (*document, offset, length), (*next_document, next_offset, _) in pairwise(spans):
        assert document != next_document or offset + length <= next_offset


def test_editing_prompts_are_four_of_each_task_and_hold_what_they_ask_for() -> None:
    prompts = load_edit_prompts()
    tasks = [prompt.document for prompt in prompts]
    assert {task: tasks.count(task) for task in tasks} == {"rename": 4, "reword": 4, "table": 4, "list": 4}
    assert len({prompt.id for prompt in prompts}) == len({prompt.text for prompt in prompts}) == 16
    assert all(64 <= len(prompt.data) <= 320 and prompt.corpus == "edit" for prompt in prompts)
    for prompt in prompts:
        text = prompt.data
        assert any(text.find(text[at : at + 6], at + 1) > 0 for at in range(len(text) - 6)), "there is no pattern"


@pytest.mark.parametrize("corpus", CORPORA)
def test_prompts_of_one_corpus_when_asked(corpus: str) -> None:
    assert load_prompts(corpus) == [prompt for prompt in load_prompts() if prompt.corpus == corpus]


@pytest.mark.parametrize("corpus", CORPORA)
def test_text_is_about_48_kb_of_utf8_lines(corpus: str) -> None:
    text = load_text(corpus)
    assert 44_000 <= len(text) <= 49_152
    assert text.decode().endswith("\n")
    assert b"\r" not in text


def test_unknown_corpus_is_named_with_the_choices() -> None:
    with pytest.raises(ValueError, match="'milton', expected one of pycode, pydocs, web, shak"):
        load_text("milton")
    with pytest.raises(ValueError, match="milton"):
        load_prompts("milton")


def test_readme_and_license_are_beside_the_text() -> None:
    folder = files("fastblt.calibration") / "heldout"
    readme = (folder / "README.md").read_text(encoding="utf-8")
    assert all(f"`{corpus}.txt`" in readme for corpus in CORPORA)
    license = (folder / "LICENSE-PSF-2.0.txt").read_text(encoding="utf-8")
    assert license.startswith("PYTHON SOFTWARE FOUNDATION LICENSE VERSION 2")


def test_prompt_data_is_utf8_of_its_text() -> None:
    assert Prompt("x", "web", "John", 0, "“Come”").data == "“Come”".encode()
