"""Compares what lossless methods write with what ``ar`` writes, byte for byte, and ``ar`` with PyTorch now and then."""

from __future__ import annotations

import random
from collections import OrderedDict
from pathlib import Path

import numpy as np
from campaign.part import Counts, Limits, Place, failed
from campaign.random_models import MODELS, TRAINED, model_names, prepare_models, random_prompt

from fastblt.runtime.backends.protocol import Backend
from fastblt.runtime.blt_runtime import BltRuntime
from fastblt.runtime.bundle.manifest import load_manifest
from fastblt.runtime.generation import Generation, Prompt
from fastblt.runtime.measure.audit.ties import TIE_BOUND, explain

MAX_BYTES = 1024
_NEW_BYTES = 300
#: Methods a try; threads of one operator: two are for models that are larger than these, and wait for each other.
_METHODS, _THREADS = 4, (*[1] * 15, 2)
#: Models that a worker keeps loaded.
_LOADED = 4
#: One of this many tries compares with eager PyTorch, too; its first bytes.
_EAGER_SHARE, _EAGER_BYTES = 16, 48
#: One of this many tries stops at a string, too.
_STOP_SHARE = 4
_RULES = ("one", "0.3", "0.9", "eb1.0", "one+partial")


class Correctness:
    """Draws a model, a prompt and some methods."""

    name = "correctness"
    summary = "random prompts, bundles of every kind, lossless methods: every byte is that of ar"
    weight = 3.0
    limits = Limits(processor_seconds=120.0, wall_seconds=400.0, memory_bytes=16 * 2**30)
    at_once = False

    def __init__(self) -> None:
        self._loaded: OrderedDict[tuple[str, int], Backend] = OrderedDict()

    def prepare(self, fixtures: Path) -> None:
        """Make a bundle of every kind."""
        prepare_models(fixtures)

    def attempt(self, rng: random.Random, seconds: float, place: Place) -> Counts:
        """Write after one prompt with ``ar`` and with some others."""
        name = rng.choice([*model_names(place.fixtures), TRAINED])
        folder = place.fixtures / MODELS / name
        # A runtime of its own: what `auto` has learned from other tries must not decide anything.
        runtime = BltRuntime(self._backend(folder / "bundle", rng.choice(_THREADS)))
        prompt = random_prompt(rng, MAX_BYTES - _NEW_BYTES)
        count, stop_at_eos = rng.randint(1, _NEW_BYTES), rng.random() < 0.5
        expected = runtime.generate(prompt, count, method="ar", stop_at_eos=stop_at_eos)
        total = Counts(figures={"bytes of ar": len(expected.data)})
        methods = [_method(rng, runtime) for _ in range(_METHODS)]
        place.announce({"model": name, "prompt": repr(prompt), "bytes": count, "eos": stop_at_eos, "methods": methods})
        for method in methods:
            found = _generate(rng, runtime, prompt, count, method, stop_at_eos)
            total.add(_compare(runtime, f"{name}, {method}", prompt, expected, found, self._bound(folder)))
        if rng.randrange(_STOP_SHARE) == 0:
            total.add(_stopped(rng, runtime, prompt, count, methods[0], stop_at_eos, expected))
        if rng.randrange(_EAGER_SHARE) == 0 and (folder / "checkpoint").exists():
            total.add(self._with_eager(folder, name, runtime, prompt, min(count, _EAGER_BYTES)))
        return total

    def _backend(self, bundle: Path, threads: int) -> Backend:
        key = (str(bundle), threads)
        if key not in self._loaded:
            if len(self._loaded) >= _LOADED:
                self._loaded.popitem(last=False)
            loaded = BltRuntime.from_pretrained(bundle, provider="cpu", max_bytes=MAX_BYTES, threads=threads)
            self._loaded[key] = loaded.backend
        self._loaded.move_to_end(key)
        return self._loaded[key]

    def _bound(self, folder: Path) -> float:
        return TIE_BOUND[load_manifest(folder / "bundle").dtype]

    def _with_eager(self, folder: Path, name: str, runtime: BltRuntime, prompt: Prompt, count: int) -> Counts:
        eager = BltRuntime.from_pretrained(folder / "checkpoint", backend="eager", max_bytes=MAX_BYTES, threads=1)
        expected = eager.generate(prompt, count, method="ar", stop_at_eos=False)
        found = runtime.generate(prompt, count, method="ar", stop_at_eos=False)
        return _compare(eager, f"{name}, ar against eager", prompt, expected, found, self._bound(folder))


def _method(rng: random.Random, runtime: BltRuntime) -> str:
    kinds = ["s", "s", "auto"] + ["dv"] * 3 * bool(runtime.config.block_size)
    kind = rng.choice(kinds)
    if kind == "s":
        return f"s:{rng.choice([1, 2, 3, 4, 8, 16, rng.randint(1, 20)])}"
    return "auto" if kind == "auto" else f"dv:{rng.randint(1, runtime.config.block_size)}@{rng.choice(_RULES)}"


def _generate(
    rng: random.Random, runtime: BltRuntime, prompt: Prompt, count: int, method: str, stop_at_eos: bool
) -> Generation:
    """Generate; sometimes after another stream was left half-way, which takes the caches away."""
    if rng.random() < 0.2:
        with runtime.stream(rng.randbytes(20), 30, method=method, stop_at_eos=False) as left:
            next(left, None)
    return runtime.generate(prompt, count, method=method, stop_at_eos=stop_at_eos)


def _compare(
    reference: BltRuntime, what: str, prompt: Prompt, expected: Generation, found: Generation, bound: float
) -> Counts:
    """Return a try that is right if both texts are equal, or differ where the reference could not decide."""
    figures = {"bytes compared": float(len(found.data)), "bytes drafted and kept": float(found.stats.accepted)}
    if (found.data, found.finish, found.tokens) == (expected.data, expected.finish, expected.tokens):
        return Counts(tries=1, ok=1, figures=figures)
    if found.data == expected.data:
        return failed("wrong bytes", f"{what}: finish {found.finish}, expected {expected.finish}")
    difference = explain(reference, "", prompt, expected.data, found.data)
    if difference.is_tie(bound):
        return Counts(tries=1, ok=1, figures=figures | {"ties of two logits": 1})
    text = f"{what}: other bytes at {difference.offset}, logits {difference.gap:.2g} apart"
    return failed("wrong bytes", what + ": other bytes", f"{text}\n{expected.data!r}\n{found.data!r}")


def _stopped(
    rng: random.Random,
    runtime: BltRuntime,
    prompt: Prompt,
    count: int,
    method: str,
    stop_at_eos: bool,
    expected: Generation,
) -> Counts:
    """Stop at a string of the expected text: what comes before it must be the same; and score what was written."""
    data = expected.data
    if not data:
        return Counts()
    start = rng.randrange(len(data))
    stop = data[start : start + rng.randint(1, 4)]
    found = runtime.generate(prompt, count, method=method, stop_at_eos=stop_at_eos, stop=[stop, b"\x00never\xff"])
    wanted = data[: data.index(stop)]
    if found.data != wanted:
        return failed("wrong bytes", f"{method}, stop string: other bytes", f"{stop!r}\n{wanted!r}\n{found.data!r}")
    if not expected.tokens or len(expected.tokens) != len(data):
        return Counts(tries=1, ok=1)
    scored = runtime.score(prompt, data).logprobs
    again = runtime.generate(prompt, count, method="ar", stop_at_eos=stop_at_eos, logprobs=True).logprobs
    if len(scored) != len(again) or not np.allclose(scored, again, atol=1e-3):
        return failed("wrong bytes", "score: other log-probabilities than those of ar", f"{scored}\n{again}")
    return Counts(tries=1, ok=1)
