import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fastblt.models.config import HASH_PRIMES, HashConfig
from fastblt.models.hashing import hash_powers, hash_rows

RELEASED = HashConfig()
SEVERAL = HashConfig(sizes=(5, 2, 8), rows=997, functions=3)


def signed(value: int) -> int:
    """What 64 bits keep of an integer."""
    value %= 2**64
    return value - 2**64 if value >= 2**63 else value


def rows_of(tokens: list[int], config: HashConfig) -> list[list[int]]:
    """The published formula over exact integers: fused rows of every table, for every token."""
    tables = []
    for prime in HASH_PRIMES[: config.functions]:
        for size in config.sizes:
            rows = []
            for i in range(len(tokens)):
                window = [tokens[j] if j >= 0 else 0 for j in range(i - size + 1, i + 1)]
                total = signed(sum(w * prime**m for m, w in enumerate(window)))
                rows.append(total % config.rows + len(tables) * config.rows)
            tables.append(rows)
    return tables


def padded(tokens: list[int], config: HashConfig) -> np.ndarray:
    return np.array([0] * (config.context - 1) + tokens, dtype=np.int64)


@pytest.mark.parametrize("config", [RELEASED, SEVERAL], ids=["released", "several"])
@given(tokens=st.lists(st.integers(0, 259), min_size=1, max_size=20))
def test_rows_equal_exact_integer_formula(config: HashConfig, tokens: list[int]) -> None:
    expected = rows_of(tokens, config)
    ids = padded(tokens, config)
    assert [r.tolist() for r in hash_rows(ids, config)] == expected
    assert [r.tolist() for r in hash_rows(torch.from_numpy(ids), config)] == expected


def test_some_hashes_overflow_to_negative_numbers_when_ngrams_are_long() -> None:
    tokens = list(range(4, 24))
    totals = [sum(w * HASH_PRIMES[0] ** m for m, w in enumerate(tokens[i - 7 : i + 1])) for i in range(7, len(tokens))]
    assert any(signed(t) != t for t in totals)
    assert any(signed(t) < 0 for t in totals)
    rows = hash_rows(padded(tokens, RELEASED), RELEASED)
    for table, found in enumerate(rows):
        assert (found >= table * RELEASED.rows).all()
        assert (found < (table + 1) * RELEASED.rows).all()


def test_powers_wrap_when_greater_than_64_bits() -> None:
    powers = hash_powers(SEVERAL)
    assert len(powers) == 3
    for prime, found in zip(HASH_PRIMES, powers, strict=False):
        assert found == [signed(prime**m) for m in range(8)]
    assert powers[0][7] != HASH_PRIMES[0] ** 7


def test_oldest_token_has_exponent_zero() -> None:
    config = HashConfig(sizes=(3,), rows=10**9, functions=1)
    p = HASH_PRIMES[0]
    (rows,) = hash_rows(np.array([5, 6, 7], dtype=np.int64), config)
    assert rows.tolist() == [(5 + 6 * p + 7 * p * p) % 10**9]


@given(tokens=st.lists(st.integers(0, 259), min_size=2, max_size=40), data=st.data())
def test_rows_are_the_same_when_tokens_come_in_pieces(tokens: list[int], data: st.DataObject) -> None:
    cut = data.draw(st.integers(1, len(tokens) - 1))
    ids = padded(tokens, SEVERAL)
    whole = hash_rows(ids, SEVERAL)
    first = hash_rows(ids[: SEVERAL.context - 1 + cut], SEVERAL)
    second = hash_rows(ids[cut:], SEVERAL)
    for expected, a, b in zip(whole, first, second, strict=True):
        assert np.array_equal(expected, np.concatenate([a, b]))


def test_batch_rows_are_those_of_each_sequence() -> None:
    rng = np.random.default_rng(0)
    ids = rng.integers(0, 260, size=(2, 3, 7 + 5))
    for table, found in enumerate(hash_rows(ids, RELEASED)):
        assert found.shape == (2, 3, 5)
        assert np.array_equal(found[1, 2], hash_rows(ids[1, 2], RELEASED)[table])


def test_there_are_no_rows_when_there_are_no_tables() -> None:
    for config in (HashConfig(sizes=(), rows=7), HashConfig(functions=0)):
        assert config.tables == 0
        assert hash_rows(padded([5, 6], config), config) == []
