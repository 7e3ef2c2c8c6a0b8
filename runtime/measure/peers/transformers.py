"""Measures transformers' ``BltForCausalLM``, built in memory from our weights.

The model recomputes everything for every byte (``use_cache=False``): with its caches it computes something else, see
docs/checkpoints.md. Calls, times and weight bytes of its four modules are observed from outside.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fastblt.models.blt import Blt
from fastblt.models.config import BltConfig
from fastblt.models.formats import transformers as layout
from fastblt.models.formats.names import translate
from fastblt.models.parameters import count_parameters
from fastblt.models.tokens import EOS_ID, VOCAB_SIZE, decode, encode
from fastblt.runtime.backends.eager.loading import load_eager
from fastblt.runtime.generation import Generation
from fastblt.runtime.machine import default_threads
from fastblt.runtime.measure.peers import GeneratedBatch
from fastblt.runtime.methods import MethodError
from fastblt.runtime.sequence.stats import RunStats

#: Our part to transformers' module.
_MODULES = {
    "patcher": "model.patcher",
    "encoder": "model.local_encoder",
    "global": "model.global_transformer",
    "decoder": "model.local_decoder",
}


#: A token that no model has, in place of an end of text.
_NO_TOKEN = VOCAB_SIZE


class PeerError(ValueError):
    """A peer that is not installed, or cannot run the model."""


class TransformersPeer:
    """Generates greedily by ``BltForCausalLM.generate(use_cache=False)``."""

    def __init__(self, model: Blt, threads: int | None = None) -> None:
        _check_comparable(model.config)
        self.config: BltConfig = model.config
        weight = model.decoder.output.weight
        self._device = weight.device
        self.device = self._device.type
        counts = count_parameters(self.config)
        weights = 4 * (counts.total - counts.byte_embeddings - counts.hash_embeddings)
        torch.set_num_threads(threads or default_threads(weights))
        self._model = build(model)
        self._stats = RunStats()
        for part, name in _MODULES.items():
            if part != "patcher" or self.config.patcher is not None:
                self._watch(part, self._model.get_submodule(name))

    @classmethod
    def load(cls, folder: Path, provider: str, threads: int | None) -> TransformersPeer:
        """Load the weights of a bundle, in its dtype, or of a checkpoint, as the eager backend does."""
        return cls(load_eager(folder, provider), threads)

    def _watch(self, part: str, module: nn.Module) -> None:
        """Count and time the calls of a module."""
        weights = sum(p.numel() * p.element_size() for n, p in module.named_parameters() if "embed_tokens" not in n)
        began = 0.0

        def before(*_: Any) -> None:
            nonlocal began
            self._synchronize()
            began = time.perf_counter()

        def after(*_: Any) -> None:
            self._synchronize()
            stats = self._stats
            stats.part_seconds[part] += time.perf_counter() - began
            stats.nfe[part] += 1
            stats.moved_bytes += weights

        module.register_forward_pre_hook(before)
        module.register_forward_hook(after)

    def _synchronize(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize()

    def generate(self, prompt: bytes, max_new_bytes: int, *, method: str) -> Generation:
        """Generate greedily after a prompt, until EOS or ``max_new_bytes`` tokens.

        Raises:
            MethodError: a method other than ``ar``.
        """
        if method != "ar":
            raise MethodError(f"method: found {method!r}, expected 'ar', the only one of transformers")
        ids = torch.from_numpy(encode(prompt)).unsqueeze(0)
        found, stats = self._run(ids, max_new_bytes, EOS_ID)
        tokens = found[0].tolist()
        ended = bool(tokens) and tokens[-1] == EOS_ID
        data = decode(tokens)
        stats.new_bytes = len(data)
        return Generation(data, "eos" if ended else "length", stats, tuple(tokens))

    def generate_batch(self, prompts: Sequence[bytes], max_new_bytes: int) -> GeneratedBatch:
        """Generate greedily after prompts of one length, ``max_new_bytes`` tokens each, whatever they are.

        Raises:
            PeerError: the prompts differ in length, for which transformers would have to pad them: patches would move.
        """
        lengths = sorted({len(prompt) for prompt in prompts})
        if len(lengths) > 1:
            raise PeerError(f"transformers: found prompts of {lengths[0]} to {lengths[-1]} bytes, expected one length")
        ids = torch.from_numpy(np.stack([encode(prompt) for prompt in prompts]))
        found, stats = self._run(ids, max_new_bytes, _NO_TOKEN)
        texts = [decode(tokens) for tokens in found.tolist()]
        stats.new_bytes = sum(map(len, texts))
        return GeneratedBatch(texts, stats)

    def _run(self, ids: Tensor, max_new_bytes: int, eos: int) -> tuple[Tensor, RunStats]:
        """Return the new tokens after ids [batch, n], int64 [batch, new], and what they cost."""
        self._stats = stats = RunStats(prompt_bytes=ids.numel() - len(ids))
        clock = _Clock()
        with torch.inference_mode():
            found = self._model.generate(
                ids.to(self._device), max_new_tokens=max_new_bytes, do_sample=False, use_cache=False, eos_token_id=eos,
                pad_token_id=0, streamer=clock,
            )  # fmt: skip
        new: Tensor = found[:, ids.shape[1] :].cpu()
        stats.rounds = new.shape[1]
        stats.total_seconds = clock.times[-1] - clock.times[0]
        stats.first_byte_seconds = clock.times[1] - clock.times[0]
        stats.byte_seconds = [b - a for a, b in zip(clock.times[1:], clock.times[2:], strict=False)]
        return new, stats


class _Clock:
    """Takes the time of every token as a streamer of transformers; the first is the prompt's."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, _: Tensor) -> None:
        """Take the time; transformers calls this with the prompt and with each new token."""
        self.times.append(time.perf_counter())

    def end(self) -> None:
        """Do nothing; transformers calls this at the end."""


def _check_comparable(config: BltConfig) -> None:
    """Check that transformers computes the same as we do with the same weights.

    Raises:
        PeerError: it computes something else.
        CheckpointError: it has no such model at all.
    """
    layout.write_config(config, "float32")
    rule = config.patching
    if config.document_masks:
        raise PeerError(f"{config.name}: transformers has no document masks, expected a model without them")
    if rule.mode != "entropy" and rule.max_patch_length != 1:
        raise PeerError(f"{config.name}: transformers has no {rule.mode} patches, expected entropy patches or bytes")
    if rule.mode == "entropy" and rule.max_patch_length is not None:
        raise PeerError(f"{config.name}: transformers' max_patch_length is another rule, expected a model without it")


def build(model: Blt) -> Any:
    """Build a ``BltForCausalLM`` with the weights of one of our models.

    Raises:
        PeerError: transformers is not installed, or too old.
        CheckpointError: transformers has no such model.
    """
    text = layout.write_config(model.config, "float32")
    try:
        from transformers import BltConfig as TheirConfig
        from transformers import BltForCausalLM
        from transformers.utils import logging
    except ImportError as error:
        raise PeerError(f"transformers: cannot be imported ({error}), expected: pip install transformers") from error
    if not hasattr(TheirConfig(), "local_attention_window_len"):
        raise PeerError("transformers: found a version without attention windows, expected 5.23 or newer")
    state = model.state_dict()
    weight = state["decoder.output.weight"]
    dtype = weight.dtype
    tensors: dict[str, Tensor] = {}
    for name, pieces in translate(model.config, layout.NAMES).items():
        tensors.update(zip(pieces, state[name].chunk(len(pieces)), strict=True))
    config = TheirConfig.from_dict(json.loads(text))
    with _without_progress(logging):
        theirs = BltForCausalLM.from_pretrained(None, config=config, state_dict=tensors, dtype=dtype)
    if model.patcher is not None:
        # fp32 as in every bundle: lower precision moves patch boundaries. What was loaded has been rounded.
        prefix = layout.NAMES.parts["patcher"]
        exact = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
        theirs.model.patcher.float().load_state_dict(exact)
    return theirs.to(weight.device).eval().requires_grad_(False)


@contextmanager
def _without_progress(logging: Any) -> Iterator[None]:
    """Keep transformers from drawing a bar while it loads."""
    was_on = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if was_on:
            logging.enable_progress_bar()
