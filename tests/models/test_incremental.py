"""The incremental path (new rows over caches) is the same function as the whole-sequence path."""

from dataclasses import dataclass, field

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from properties import examples
from torch import Tensor

from fastblt.models.blt import Blt
from fastblt.models.cache import StackCache
from fastblt.models.config import StackConfig
from fastblt.models.patcher import entropy
from fastblt.models.tokens import BOS_ID, encode

CAPACITY = 160
CPU = torch.device("cpu")


@dataclass
class Stepper:
    """Feeds chunks of tokens to the four parts, as the specification's section 9 says."""

    model: Blt
    logits: list[Tensor] = field(default_factory=list)
    entropies: list[float] = field(default_factory=list)
    ids: list[int] = field(default_factory=list)
    states: list[Tensor] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)
    latent_of: list[int] = field(default_factory=list)
    latents: list[Tensor] = field(default_factory=list)

    def __post_init__(self) -> None:
        config = self.model.config
        self.caches = {
            "patcher": self._cache(config.patcher),
            "encoder": self._cache(config.encoder),
            "global": self._cache(config.global_transformer),
            "decoder": self._cache(config.decoder),
        }

    @staticmethod
    def _cache(stack: StackConfig) -> StackCache:
        return StackCache(stack, CAPACITY, torch.float32, CPU)

    def feed(self, chunk: list[int]) -> None:
        model, first = self.model, len(self.ids)
        rule = model.config.patching
        rows = torch.tensor([chunk])
        found = model.patcher.step(rows, self.caches["patcher"], first)[0].tolist()
        context = model.config.hash.context - 1
        history = torch.tensor([([0] * context + self.ids)[len(self.ids) :]])
        states = model.encoder.step(model.encoder.embed(rows, history), self.caches["encoder"], first)
        self.ids += chunk
        self.entropies += found
        self.states += list(states[0])
        for position in range(first, len(self.ids)):
            start = self.ends[-1] if self.ends else 0
            full = position + 1 - start == rule.max_patch_length
            if position == 0 or self.entropies[position] > rule.threshold or full:
                self._close(start, position + 1)
            self.latent_of.append(len(self.ends) - 1)
        index = torch.tensor([self.latent_of[first:]])
        inputs = model.decoder.rows(rows, states)
        known = torch.cat(self.latents, dim=1)
        self.logits += list(model.decoder.step(inputs, known, index, self.caches["decoder"], first)[0])

    def _close(self, start: int, end: int) -> None:
        states = torch.stack(self.states[start:end]).unsqueeze(0)
        members = torch.arange(end - start).view(1, 1, -1)
        pooled = self.model.encoder.pool(states, members, torch.ones_like(members, dtype=torch.bool))
        latent = self.model.global_transformer.step(pooled, self.caches["global"], len(self.ends))
        self.latents.append(self.model.decoder.latent_kv(latent))
        self.ends.append(end)


def is_tie(model: Blt, text: bytes) -> bool:
    """Whether an entropy is the threshold but for rounding, so that a boundary may be here or not."""
    entropies = entropy(model.patcher(torch.from_numpy(encode(text)).unsqueeze(0)))
    return float((entropies - model.config.patching.threshold).abs().min()) < 1e-5


def assert_logits_equal(found: Tensor, expected: Tensor) -> None:
    """Equal in fp32: 1e-5 of the largest logit (about 4; the median row differs by 2e-6)."""
    torch.testing.assert_close(found, expected, atol=1e-5 * float(expected.abs().max()), rtol=0)


def assert_chunks_equal_whole(model: Blt, text: bytes, sizes: list[int]) -> None:
    ids = [int(t) for t in encode(text)]
    whole = torch.tensor([ids])
    entropies = entropy(model.patcher(whole))[0]
    stepper = Stepper(model)
    done = 0
    for size in [*sizes, len(ids)]:
        if ids[done : done + size]:
            stepper.feed(ids[done : done + size])
            done += size
    assert stepper.ids == ids
    patches = model.segment(whole)
    torch.testing.assert_close(torch.tensor(stepper.entropies), entropies, atol=1e-5, rtol=0)
    assert stepper.ends == (patches.closes[0].nonzero().flatten() + 1).tolist()
    assert stepper.latent_of == patches.latent_index[0].tolist()
    assert_logits_equal(torch.stack(stepper.logits), model(whole, patches)[0][0])


@examples(40)
@given(text=st.binary(max_size=100), sizes=st.lists(st.integers(1, 60), max_size=20))
def test_logits_and_boundaries_equal_whole_sequence_for_any_split(
    either_model: Blt, text: bytes, sizes: list[int]
) -> None:
    assume(not is_tie(either_model, text))
    assert_chunks_equal_whole(either_model, text, sizes)


@pytest.mark.parametrize("length", [20, 24, 25, 48, 71, 150])
@pytest.mark.parametrize("size", [1, 7, 24, 150])
def test_logits_equal_whole_sequence_around_and_beyond_windows(either_model: Blt, length: int, size: int) -> None:
    """Windows are 20 and 24 positions; multiples of them take another path over whole sequences."""
    config = either_model.config
    assert (config.patcher.window, config.encoder.window, config.decoder.window) == (20, 24, 24)
    rng = torch.Generator().manual_seed(length)
    text = bytes(torch.randint(0, 256, (length - 1,), generator=rng).tolist())
    while is_tie(either_model, text):
        text = text[1:] + b"."
    assert_chunks_equal_whole(either_model, text, [size] * (length // size))


@examples(40)
@given(text=st.binary(min_size=1, max_size=70), other=st.binary(max_size=30), data=st.data())
def test_earlier_logits_stay_when_later_bytes_change(
    either_model: Blt, text: bytes, other: bytes, data: st.DataObject
) -> None:
    keep = data.draw(st.integers(0, len(text)))
    assume(not is_tie(either_model, text[:keep]))
    one = either_model(torch.from_numpy(encode(text)).unsqueeze(0))[0]
    two = either_model(torch.from_numpy(encode(text[:keep] + other)).unsqueeze(0))[0]
    assert_logits_equal(one[:, : keep + 1], two[:, : keep + 1])


def test_rows_of_a_batch_do_not_mix(either_model: Blt) -> None:
    ids = torch.randint(4, 260, (3, 50), generator=torch.Generator().manual_seed(0))
    ids[:, 0] = BOS_ID
    together = either_model(ids)[0]
    for row in range(3):
        alone = either_model(ids[row : row + 1])[0][0]
        assert_logits_equal(together[row], alone)


def test_padded_patches_change_nothing(either_model: Blt) -> None:
    ids = torch.randint(4, 260, (2, 50), generator=torch.Generator().manual_seed(1))
    ids[:, 0] = BOS_ID
    plain = either_model(ids, either_model.segment(ids))[0]
    padded = either_model(ids, either_model.segment(ids, pad_to=16))[0]
    assert_logits_equal(plain, padded)


def test_last_byte_of_patch_reads_its_own_latent(either_model: Blt) -> None:
    """Which latent a row reads follows the patcher's rule, and every row does depend on its latent."""
    ids = torch.randint(4, 260, (1, 30), generator=torch.Generator().manual_seed(2))
    ids[0, 0] = BOS_ID
    patches = either_model.segment(ids)
    closes = patches.closes[0].tolist()
    assert patches.latent_index[0].tolist() == [sum(closes[: i + 1]) - 1 for i in range(30)]
    right = either_model(ids, patches)[0]
    stale = (patches.latent_index - patches.closes.long()).clamp(min=0)
    wrong = either_model(ids, patches, latent_index=stale)[0]
    differs = (right - wrong)[0].abs().amax(-1) > 1e-4
    # Rows before the first stale one are equal, that one is not.
    first = next(i for i in range(1, 30) if closes[i])
    assert not differs[:first].any()
    assert differs[first]
