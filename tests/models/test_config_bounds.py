"""No number of a configuration is unbounded: each is refused in one line, or makes a model of bounded size."""

import dataclasses
import json
import math
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from properties import examples

from fastblt.models import limits
from fastblt.models.config import BltConfig, ConfigError, HashConfig, PatchingConfig
from fastblt.models.formats.checkpoint import expected_shapes
from fastblt.models.parameters import count_parameters
from fastblt.models.presets import preset

TINY = preset("tiny").to_dict()
#: Each field by its path, e.g. ("decoder", "window"); objects as well.
PARTS = [(name, key) for name, part in TINY.items() if isinstance(part, dict) for key in part]
FIELDS = [*((name,) for name in TINY), *PARTS]
#: The largest value that each number may have.
MOST = {
    "dim": limits.DIM,
    "layers": limits.LAYERS,
    "heads": limits.HEADS,
    "ffn_dim": limits.FFN_DIM,
    "window": limits.WINDOW,
    "rope_theta": limits.ROPE_THETA,
    "norm_eps": limits.NORM_EPS,
    "threshold": limits.THRESHOLD,
    "max_patch_length": limits.PATCH_LENGTH,
    "rows": limits.HASH_ROWS,
    "functions": 11,
    "cross_attn_k": limits.CROSS_ATTN_K,
    "block_size": limits.BLOCK_SIZE,
    "vocab_size": 260,
}
NUMBERS = [path for path in FIELDS if path[-1] in MOST]
#: What no field accepts.
WRONG: tuple[Any, ...] = (True, "7", [], {}, -1, -(10**400), 10**400, 2**64, 1e400, -1e400, math.nan, 1e300)


def changed(path: tuple[str, ...], value: Any) -> dict[str, Any]:
    """The test model's configuration with another value in one field."""
    data: dict[str, Any] = json.loads(json.dumps(TINY))
    *parts, name = path
    (data[parts[0]] if parts else data)[name] = value
    return data


def refusal(path: tuple[str, ...], value: Any) -> str:
    """The one short, printable line that names the field."""
    with pytest.raises(ConfigError) as caught:
        BltConfig.from_dict(changed(path, value))
    line = str(caught.value)
    assert line.startswith(f"config field '{'.'.join(path)}': found ")
    assert line.isprintable()
    assert len(line) < 200
    return line


@pytest.mark.parametrize("path", NUMBERS, ids=".".join)
def test_number_is_refused_in_one_line_unless_it_is_within_its_bounds(path: tuple[str, ...]) -> None:
    for value in WRONG:
        assert ", expected " in refusal(path, value)
    most = MOST[path[-1]]
    whole = isinstance(most, int)
    if path[-1] not in ("dim", "heads", "vocab_size"):  # those depend on others
        BltConfig.from_dict(changed(path, most))
        assert f"up to {most if whole else f'{most:g}'}" in refusal(path, most + 1 if whole else most * 1.01)


@pytest.mark.parametrize(
    ("path", "value", "found"),
    [
        (("hash", "sizes"), [3, 50_000_000], "'hash.sizes': found 50000000, expected a positive integer up to 64"),
        (("hash", "sizes"), list(range(1, 34)), "'hash.sizes': found [1, 2, 3, 4, 5, 6, 7, 8, '... (33 items)'], "),
        (("hash", "sizes"), [3] * 10**6, "a list of at most 1024 items"),
        (("decoder", "layers"), 100_000, "'decoder.layers': found 100000, expected a positive integer up to 256"),
        (("name",), "a\x1b[31mb", r"'name': found 'a\x1b[31mb', expected 1 to 255 printable characters"),
        (("name",), "a\nb", "printable"),
        (("name",), "\u202e", "printable"),
        (("name",), "\ud800", "printable"),
        (("name",), "x" * 256, "printable"),
        (("patching", "mode"), ["entropy"], "expected a string"),
        (("decoder_input",), "x" * 10**6, "... (1000000 characters)"),
    ],
    ids=range(11),
)
def test_other_values_are_bounded_too(path: tuple[str, ...], value: Any, found: str) -> None:
    assert found in refusal(path, value)


def test_unknown_field_is_named_in_a_short_line() -> None:
    with pytest.raises(ConfigError) as caught:
        BltConfig.from_dict({**TINY, "\x1b" * 10**6: [[[[[1]]]]]})
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 800


@pytest.mark.parametrize(
    "wrong",
    [
        HashConfig(sizes=(True,)),
        HashConfig(sizes=("3",)),  # type: ignore[arg-type]
        HashConfig(functions=1.0),  # type: ignore[arg-type]
        HashConfig(rows=True),
        PatchingConfig(threshold="1"),  # type: ignore[arg-type]
        PatchingConfig(max_patch_length=2.0),  # type: ignore[arg-type]
        PatchingConfig(mode=["entropy"]),  # type: ignore[arg-type]
    ],
    ids=repr,
)
def test_types_are_checked_where_no_json_was_read(wrong: HashConfig | PatchingConfig) -> None:
    with pytest.raises(ConfigError, match="expected"):
        wrong.validate()


def test_parts_that_fit_alone_are_refused_when_all_together_are_too_large() -> None:
    stack = {"dim": limits.DIM, "layers": 256, "heads": 512, "ffn_dim": limits.FFN_DIM}
    data = {**TINY, **dict.fromkeys(("encoder", "global_transformer", "decoder"), stack)}
    with pytest.raises(ConfigError, match=r"found \d+, expected at most 10000000000000 parameters"):
        BltConfig.from_dict(data)


def test_tensors_of_a_tall_model_are_listed_in_bounded_time() -> None:
    few = limits.LAYERS // 8
    tall = dataclasses.replace(preset("tiny").encoder, layers=few, dim=4, ffn_dim=4)
    hashes = HashConfig(tuple(range(1, limits.HASH_SIZES + 1)), 7, 11)
    expected_shapes(preset("tiny"))  # imports what PyTorch needs for it
    began = time.process_time()
    shapes = expected_shapes(dataclasses.replace(preset("tiny"), patcher=tall, hash=hashes))
    assert len(shapes) > few * 6
    assert time.process_time() - began < 5  # a quarter of a second


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=300) | st.sampled_from(WRONG),
    lambda inner: st.lists(inner, max_size=40) | st.dictionaries(st.text(max_size=300), inner, max_size=12),
    max_leaves=20,
)


@examples(100)
@given(st.sampled_from(FIELDS), JSON | st.integers(0, 2**40) | st.floats(0, 1e13))
def test_any_value_in_any_field_is_refused_or_makes_a_bounded_model(path: tuple[str, ...], value: Any) -> None:
    data, config, message = changed(path, value), None, ""
    began = time.process_time()
    try:
        config = BltConfig.from_dict(data)
    except ConfigError as error:
        message = str(error)
    assert time.process_time() - began < 1  # about a millisecond
    assert message.isprintable()
    assert len(message) < 4_000
    if config is not None:
        assert count_parameters(config).total <= limits.PARAMETERS
        assert config.hash.context <= limits.NGRAM
        assert json.loads(config.to_json()) == config.to_dict()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[" * 10**5, "not JSON"),
        ('{"a": 1, "b": 2, "a": 3}', "found 'a' twice in an object, expected each field once"),
        (f'{{"name": {"9" * 5000}}}', "not JSON (Exceeds the limit"),
        (f'{{"name": {"9" * 400}}}', "found 'an integer of 1329 bits', expected"),
        (" " * (limits.JSON_BYTES + 1), f"found {limits.JSON_BYTES + 1} bytes, expected at most {limits.JSON_BYTES}"),
    ],
    ids=["deep", "twice", "5000 digits", "400 digits", "large"],
)
def test_file_that_no_parser_should_read_is_one_line(text: str, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        BltConfig.load(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert reason in str(caught.value)
    assert str(caught.value).isprintable()
