"""The token rules of published checkpoints."""

import numpy as np
import pytest

from fastblt.models.tokens import BOE_ID, BOS_ID, EOS_ID, MASK_ID, VOCAB_SIZE, decode, encode


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("my name is", [1, 113, 125, 36, 114, 101, 113, 105, 36, 109, 119]),
        ("", [1]),
        (b"\x00\xff", [1, 4, 259]),
        ("é", [1, 0xC3 + 4, 0xA9 + 4]),
        # What spells a special token is plain bytes.
        ("<s>", [1, 64, 119, 66]),
        ("</s>", [1, 64, 51, 119, 66]),
    ],
)
def test_prompt_is_bos_then_bytes_plus_four(text: str | bytes, expected: list[int]) -> None:
    ids = encode(text)
    assert ids.dtype == np.int64
    assert ids.tolist() == expected
    assert encode(text, bos=False).tolist() == expected[1:]


def test_half_of_a_surrogate_pair_is_no_text() -> None:
    with pytest.raises(ValueError, match=r"text: found '\\ud800' at 1, half of a surrogate pair, expected UTF-8"):
        encode("a\ud800")


def test_special_ids_are_those_of_published_checkpoints() -> None:
    assert (BOE_ID, BOS_ID, EOS_ID, VOCAB_SIZE, MASK_ID) == (0, 1, 2, 260, 260)


def test_every_byte_comes_back() -> None:
    raw = bytes(range(256))
    ids = encode(raw)
    assert EOS_ID not in ids
    assert decode(ids) == raw


def test_ids_below_four_are_dropped_when_decoding() -> None:
    assert decode([1, 64, 0, 119, 3, 66, 2]) == b"<s>"
    assert decode([]) == b""
