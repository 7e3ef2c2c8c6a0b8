"""Stands in for the module ``onnxruntime``: the real one, whose kernels do nothing here, and results by a script.

Sessions, bindings and runs are real. After each run, what the host will read is written to the outputs: bytes of a
text, and entropies that close patches, by position alone. So methods have rounds in which drafts are accepted and
rejected. Around each run is a line in the log, so that every call of the driver can be told to which graph it belongs.
"""

from __future__ import annotations

import ctypes
import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from fakes.cuda_stub.runtime_api import RuntimeApi

from fastblt.models.tokens import encode

_TYPES: dict[int, Any] = {1: np.float32, 7: np.int64}
#: What is generated: the token at position i is this text's at i.
_TEXT = np.array(encode(b"in the beginning was the word, and what follows it ", bos=False), dtype=np.int64)
#: A patch closes after this many bytes.
_PATCH = 4
#: One row alone, which a draft is made of, finds another byte at each position that leaves ``_WRONG`` by ``_EVERY``.
_EVERY, _WRONG = 11, 5
#: Greater than any model's threshold, in nats.
_SURPRISE = 1e6

Bound = tuple[int, tuple[int, ...], int]
#: Makes a result from the positions of the rows, int64 [rows].
Rule = Callable[[np.ndarray], np.ndarray]


def entropies(positions: np.ndarray) -> np.ndarray:
    """Return the patcher's results: a patch closes after each `_PATCH` bytes."""
    return np.where(positions % _PATCH == _PATCH - 1, np.float32(_SURPRISE), np.float32(0))


def best(positions: np.ndarray) -> np.ndarray:
    """Return the decoder's most likely tokens: those after the rows at these positions."""
    found = _TEXT[(positions + 1) % len(_TEXT)]
    wrong = (positions % _EVERY == _WRONG) if len(positions) == 1 else np.zeros(len(positions), dtype=bool)
    return np.where(wrong, _TEXT[positions % len(_TEXT)], found)


def probabilities(positions: np.ndarray) -> np.ndarray:
    """Return the probabilities of the most likely tokens; those of every third row are too low to be accepted."""
    return np.where(positions % 3 == 2, np.float32(0.5), np.float32(0.95))


def doubts(positions: np.ndarray) -> np.ndarray:
    """Return the entropies of the decoder's rows."""
    return np.where(positions % 3 == 2, np.float32(0.6), np.float32(0.1))


class ScriptedOnnxRuntime:
    """Implements what fastblt uses of the module.

    Args:
        api: the stub, whose log gets a line before and after each run.
    """

    def __init__(self, api: RuntimeApi) -> None:
        self.api = api
        self.SessionOptions, self.RunOptions = ort.SessionOptions, ort.RunOptions
        self.get_available_providers = ort.get_available_providers

    def InferenceSession(self, path: str, *arguments: Any, **options: Any) -> ScriptedSession:
        self.api.note(f"open {Path(path).stem}")
        return ScriptedSession(self.api, Path(path).stem, ort.InferenceSession(path, *arguments, **options))


class ScriptedSession:
    """Holds a real session; what is not here is the session's."""

    def __init__(self, api: RuntimeApi, part: str, session: Any) -> None:
        self._api, self._part, self._session = api, part, session
        self._bindings = itertools.count(1)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    def io_binding(self) -> ScriptedBinding:
        return ScriptedBinding(self._session.io_binding(), next(self._bindings))

    def run_with_iobinding(self, binding: ScriptedBinding, options: Any = None) -> None:
        if self._api.logs:
            self._api.note(f"run {self._part} {binding.shape()}")
        self._session.run_with_iobinding(binding.real, options)
        if self._api.logs:
            self._api.note("ran")
        binding.fill()


class ScriptedBinding:
    """Holds a real binding and the addresses that are bound."""

    def __init__(self, binding: Any, number: int) -> None:
        self.real = binding
        self._number = number
        self._inputs: dict[str, Bound] = {}
        self._outputs: dict[str, Bound] = {}
        self._fills: list[tuple[np.ndarray, Rule]] | None = None
        self._positions = np.empty((0, 0), dtype=np.int64)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)

    def bind_input(self, name: str, device: str, index: int, kind: Any, shape: Any, address: int) -> None:
        self._inputs[name] = kind, tuple(shape), address
        self.real.bind_input(name, device, index, kind, shape, address)

    def bind_output(self, name: str, device: str, index: int, kind: Any, shape: Any, address: int) -> None:
        self._outputs[name] = kind, tuple(shape), address
        self.real.bind_output(name, device, index, kind, shape, address)

    def shape(self) -> str:
        """Return the sizes of the call and the number of the binding, which tells recorded graphs apart."""
        axes = {"rows": ("positions", 1), "slots": ("key_0", -2), "patches": ("patch_start", 1)}
        axes |= {"batch": ("positions", 0)} if self._inputs["positions"][1][0] > 1 else {}
        bound = {size: self._inputs[name][1][axis] for size, (name, axis) in axes.items() if name in self._inputs}
        return " ".join(f"{name}={size}" for name, size in {**bound, "binding": self._number}.items())

    def fill(self) -> None:
        """Write the results of a run to the outputs."""
        if self._fills is None:
            self._positions = _view(self._inputs["positions"])
            rules: dict[str, Rule] = {"best": best, "probability": probabilities, "entropy": entropies}
            if "best" in self._outputs:
                rules["entropy"] = doubts
            named = [(name, rule) for name, rule in rules.items() if name in self._outputs]
            self._fills = [(_view(self._outputs[name]), rule) for name, rule in named]
        for target, rule in self._fills:
            for row, positions in zip(target, self._positions, strict=True):
                row[...] = rule(positions)


def _view(bound: Bound) -> np.ndarray:
    """Return device memory, which is memory of the host here, as an array."""
    kind, shape, address = bound
    dtype = np.dtype(_TYPES[kind])
    raw = (ctypes.c_uint8 * (math.prod(shape) * dtype.itemsize)).from_address(address)
    return np.ctypeslib.as_array(raw).view(dtype).reshape(shape)
