import pytest

from fastblt.calibration.heldout import CORPORA, load_edit_prompts, load_prompts, load_text
from fastblt.commands.prompts import SHORTEST_PROMPT, default_prompt, heldout_prompts


def test_prompts_are_shipped_ones_of_corpora_in_turn() -> None:
    found = heldout_prompts(8, SHORTEST_PROMPT)
    expected = [load_prompts(corpus)[i].data[:SHORTEST_PROMPT] for i in range(2) for corpus in CORPORA]
    assert found == expected
    assert {len(prompt) for prompt in found} == {SHORTEST_PROMPT}


def test_long_prompts_are_cut_from_heldout_text() -> None:
    found = heldout_prompts(5, 4096)
    assert found[0] == load_text(CORPORA[0])[:4096]
    assert found[4] == load_text(CORPORA[0])[4096:8192]
    assert len(set(found)) == 5


def test_prompts_end_at_the_same_places_when_their_sizes_differ() -> None:
    for short, long in zip(heldout_prompts(8, 256), heldout_prompts(8, 4096), strict=True):
        assert long.endswith(short)


def test_error_names_limit_when_too_many_are_asked_for() -> None:
    with pytest.raises(ValueError, match="found 97 of 10 bytes, expected at most 96"):
        heldout_prompts(97, 10)
    with pytest.raises(ValueError, match="expected at most 0"):
        heldout_prompts(1, 1_000_000)


def test_default_prompt_is_prose() -> None:
    assert default_prompt().corpus == "web"


def test_named_corpora_follow_one_another() -> None:
    found = heldout_prompts(5, SHORTEST_PROMPT, ["web", "pycode"])
    web, code = ([prompt.data[:SHORTEST_PROMPT] for prompt in load_prompts(name)] for name in ("web", "pycode"))
    assert found == [*web[:3], *code[:2]]
    with pytest.raises(ValueError, match=r"found 'wbe', expected some of .*web"):
        heldout_prompts(1, 10, ["wbe"])
    with pytest.raises(ValueError, match="found 25 of 10 bytes, expected at most 24"):
        heldout_prompts(25, 10, ["web"])


def test_editing_prompts_are_whole_and_of_each_task_in_turn() -> None:
    found = heldout_prompts(5, SHORTEST_PROMPT, ["edit"])
    shipped = {prompt.data: prompt.document for prompt in load_edit_prompts()}
    tasks = [shipped[prompt] for prompt in found]
    assert len(set(tasks[:4])) == 4
    assert tasks[4] == tasks[0]
    assert min(map(len, found)) > SHORTEST_PROMPT
