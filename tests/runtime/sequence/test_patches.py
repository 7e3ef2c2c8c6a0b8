"""The rule that closes patches, applied to whole sequences and to tokens as they come, is one rule."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from properties import examples

from fastblt.models.config import PatchingConfig
from fastblt.models.patch_rule import closes_by_rule, ends_by_entropy, ends_by_space, is_full
from fastblt.models.patching import closes_patch, find_patches, space_ends
from fastblt.models.tokens import BOS_ID, SPACE_LIKE, encode
from fastblt.runtime.backends.protocol import Floats, Ids
from fastblt.runtime.sequence.patches import PatchTable

configs = st.builds(
    PatchingConfig,
    threshold=st.just(1.5),
    max_patch_length=st.none() | st.integers(1, 7),
    mode=st.sampled_from(["entropy", "space", "static"]),
)
# The threshold itself is drawn often, since the comparison is strict; spaces, words and special tokens are frequent.
entropies = st.sampled_from([0.0, 1.0, 1.5, 1.5000001, 3.0])
ids = st.sampled_from([1, 2, 3, *encode(b" .\n", bos=False).tolist()]) | st.integers(4, 259)


def whole(config: PatchingConfig, tokens: Ids, nats: Floats) -> tuple[list[int], list[int]]:
    """Ends of patches, and the patch whose latent each position reads, from the whole sequence."""
    if config.mode == "entropy":
        ends = torch.from_numpy(nats)[None]
    elif config.mode == "space":
        ends = space_ends(torch.from_numpy(tokens)[None])
    else:
        ends = torch.zeros(1, len(tokens), dtype=torch.bool)
    closes = closes_patch(ends, config)
    return (closes[0].nonzero().flatten() + 1).tolist(), find_patches(closes).latent_index[0].tolist()


def read(table: PatchTable, tokens: Ids, nats: Floats, end: int) -> None:
    first = table.read_until
    before = int(tokens[first - 1]) if first else -1
    table.read(tokens[first:end], before, nats[first:end] if table.config.mode == "entropy" else None)


@examples(300)
@given(
    config=configs,
    text=st.lists(st.tuples(ids, entropies), max_size=60),
    other=st.lists(st.tuples(ids, entropies), max_size=30),
    keep=st.integers(1, 61),
    cuts=st.lists(st.integers(1, 60), max_size=8),
    latents=st.integers(0, 60),
)
def test_tokens_that_come_in_pieces_have_the_patches_of_the_whole_sequence(
    config: PatchingConfig,
    text: list[tuple[int, float]],
    other: list[tuple[int, float]],
    keep: int,
    cuts: list[int],
    latents: int,
) -> None:
    """Also after a rewind and another continuation, of which nothing before it was to be seen."""
    table = PatchTable(config, 100)
    keep = min(keep, 1 + len(text))
    for rows in ([(BOS_ID, 0.5), *text], [(BOS_ID, 0.5), *text][:keep] + other):
        tokens = np.array([token for token, _ in rows], dtype=np.int64)
        nats = np.array([value for _, value in rows], dtype=np.float32)
        for end in sorted({cut for cut in cuts if table.read_until < cut < len(rows)} | {len(rows)}):
            read(table, tokens, nats, end)
            table.latents_ready = min(latents, len(table.ends))
            expected, index = whole(config, tokens[:end], nats[:end])
            assert table.read_until == end
            assert table.ends == expected
            assert table.latent_of[:end].tolist() == index
            assert table.open_start == expected[-1]
            assert [table.start_of(patch) for patch in range(len(expected) + 1)] == [0, *expected]
            assert table.without_latent == len(expected) - table.latents_ready
            assert table.bounds_without_latent() == [0, *expected][table.latents_ready :]
        table.rewind(keep)
        assert table.ends == whole(config, tokens[:keep], nats[:keep])[0]
        assert table.latents_ready <= len(table.ends)


def test_patches_that_are_forgotten_can_be_read_again() -> None:
    table, tokens = PatchTable(PatchingConfig(mode="space"), 20), encode(b"a few words")
    read(table, tokens, tokens.astype(np.float32), len(tokens))
    found = list(table.ends)
    table.latents_ready = 2
    table.clear()
    assert (table.ends, table.read_until, table.latents_ready, table.open_start) == ([], 0, 0, 0)
    read(table, tokens, tokens.astype(np.float32), len(tokens))
    assert table.ends == found == [1, 3, 7]


@given(rows=st.lists(st.tuples(ids, entropies), min_size=1, max_size=30), config=configs)
def test_definitions_mean_the_same_of_numbers_arrays_and_tensors(
    rows: list[tuple[int, float]], config: PatchingConfig
) -> None:
    tokens, nats = (np.array(values) for values in zip(*rows, strict=True))
    like = np.array(SPACE_LIKE)[tokens]
    before = np.roll(like, 1)
    ends, position, length = nats > 1, np.arange(len(rows)), 1 + np.arange(len(rows))
    for rule, arguments in (
        (lambda n: ends_by_entropy(n, config), (nats,)),
        (ends_by_space, (tokens, like, before)),
        (closes_by_rule, (position, ends)),
    ):
        expected = [bool(rule(*one)) for one in zip(*arguments, strict=True)]
        assert rule(*arguments).tolist() == expected
        assert rule(*map(torch.from_numpy, arguments)).tolist() == expected
    full = [config.max_patch_length is not None and n % config.max_patch_length == 0 for n in length.tolist()]
    for values in (length, torch.from_numpy(length)):
        found = is_full(values, config)
        assert (found.tolist() if config.max_patch_length else [found] * len(rows)) == full
    assert [is_full(n, config) for n in length.tolist()] == full


@pytest.mark.parametrize(
    ("text", "ends"), [(b"a bc", [1, 3]), (b" a", [1]), (b"a  b", [1, 3]), ("aà b".encode(), [1, 3, 5])]
)
def test_spaces_end_patches(text: bytes, ends: list[int]) -> None:
    table, tokens = PatchTable(PatchingConfig(mode="space"), 20), encode(text)
    table.read(tokens, 0, None)
    assert table.ends == ends
