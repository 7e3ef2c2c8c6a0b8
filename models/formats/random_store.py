"""Makes the tensors of a random checkpoint when they are read, chunk by chunk, always the same.

No file and no tensor is held.

A random entropy model is about as uncertain as possible after every byte, so that a trained model's threshold would
make each byte a patch. Unless something else limits patches, the threshold is therefore chosen such that patches of
random bytes have `BYTES_PER_PATCH` bytes on average. What such a model generates is less varied, and its patches are
shorter (measured: 1.8 to 2.7 bytes).
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import torch
from torch import Tensor

from fastblt.models.config import BltConfig
from fastblt.models.formats.checkpoint import expected_shapes
from fastblt.models.formats.random_weights import PREFIX
from fastblt.models.formats.stores import StoredTensor
from fastblt.models.initialization import initial_std
from fastblt.models.patcher import Patcher, entropy
from fastblt.models.presets import preset
from fastblt.models.tokens import encode

#: Average of trained models of the released geometry on web text.
BYTES_PER_PATCH = 4.3
_TEXT_BYTES = 512
#: Elements that are made at a time.
_CHUNK = 1 << 22


def random_config(name: str) -> BltConfig:
    """Return the configuration of the random checkpoint of a preset.

    Raises:
        ConfigError: there is no such preset.
    """
    config = dataclasses.replace(preset(name), name=f"{name}-random")
    rule = config.patching
    if config.patcher is None or rule.max_patch_length is not None:
        return config
    return dataclasses.replace(config, patching=dataclasses.replace(rule, threshold=_threshold(config)))


def _threshold(config: BltConfig) -> float:
    """Return the quantile of the random patcher's entropies that makes patches of `BYTES_PER_PATCH`, in nats."""
    assert config.patcher is not None
    with torch.device("meta"):
        patcher = Patcher(config.patcher, config.vocab_size)
    store = RandomStore(config)
    weights = {name: store.read(f"patcher.{name}") for name in patcher.state_dict()}
    patcher.load_state_dict(weights, assign=True)
    text = np.random.default_rng(0).bytes(_TEXT_BYTES)
    with torch.inference_mode():
        entropies = entropy(patcher(torch.from_numpy(encode(text)).unsqueeze(0)))
    return float(entropies.quantile(1 - 1 / BYTES_PER_PATCH))


class RandomStore:
    """Makes fp32 weights, scaled as they are before training; those of norms are 1."""

    def __init__(self, config: BltConfig, seed: int = 0) -> None:
        shapes = expected_shapes(config)
        self.tensors = {name: StoredTensor(shape, "F32", f"{PREFIX}{config.name}") for name, shape in shapes.items()}
        self._seed = {name: [seed, index] for index, name in enumerate(shapes)}

    def read(self, name: str) -> Tensor:
        """Implement `fastblt.models.formats.stores.TensorStore.read`."""
        return self.rows(name, 0, self.tensors[name].shape[0])

    def rows(self, name: str, first: int, last: int) -> Tensor:
        """Implement `fastblt.models.formats.stores.TensorStore.rows`."""
        shape = self.tensors[name].shape
        if len(shape) < 2:
            return torch.ones(last - first)
        per_chunk = self._rows_per_chunk(name)
        pieces = []
        for chunk in range(first // per_chunk, -(-last // per_chunk)):
            begin = chunk * per_chunk
            pieces.append(self._chunk(name, chunk)[max(first - begin, 0) : last - begin])
        return torch.from_numpy(np.concatenate(pieces))

    def gather(self, name: str, rows: Tensor) -> Tensor:
        """Implement `fastblt.models.formats.stores.TensorStore.gather`."""
        per_chunk = self._rows_per_chunk(name)
        out = torch.empty(len(rows), self.tensors[name].shape[1])
        for chunk in torch.unique(rows // per_chunk).tolist():
            inside = rows // per_chunk == chunk
            out[inside] = torch.from_numpy(self._chunk(name, chunk))[rows[inside] - chunk * per_chunk]
        return out

    def _rows_per_chunk(self, name: str) -> int:
        return max(1, _CHUNK // math.prod(self.tensors[name].shape[1:]))

    def _chunk(self, name: str, chunk: int) -> np.ndarray:
        shape, per_chunk = self.tensors[name].shape, self._rows_per_chunk(name)
        count = min(per_chunk, shape[0] - chunk * per_chunk)
        values = np.random.default_rng([*self._seed[name], chunk]).standard_normal((count, *shape[1:]), np.float32)
        return values * np.float32(initial_std(name, shape))
