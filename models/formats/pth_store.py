"""Reads tensors from ``.pth`` files, which are zip archives of a pickle and the data that it refers to."""

from __future__ import annotations

import warnings
from pathlib import Path

import torch
from torch import Tensor

from fastblt.models.formats.errors import CheckpointError
from fastblt.models.formats.stores import DTYPE_NAMES, StoredTensor, check_names
from fastblt.models.plain_zip import check_plain
from fastblt.models.shown import shown_text

#: Begins what PyTorch's unpickler reports; the text before it advises to load what may run code.
_REASON = "WeightsUnpickler error: "


class PthStore:
    """Reads a ``.pth`` file that contains ``{"model": {name: tensor}}`` or the inner mapping alone.

    The file is read by ``torch.load(weights_only=True, mmap=True)``, whose unpickler creates tensors and plain
    containers and runs nothing; other content (optimizer state) is not touched.

    Raises:
        CheckpointError: the file is missing or damaged, or contains something else.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        state = self._load()
        check_names(path, state)
        self.tensors: dict[str, StoredTensor] = {
            name: StoredTensor(tuple(tensor.shape), DTYPE_NAMES.get(tensor.dtype, str(tensor.dtype)), str(path))
            for name, tensor in state.items()
        }

    def _load(self) -> dict[str, Tensor]:
        path = self._path
        try:
            check_plain(path)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about pickle's version, for one
                data = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except FileNotFoundError as error:
            raise CheckpointError(f"{path}: no such file, expected the checkpoint's weights") from error
        except Exception as error:  # the unpickler raises whatever a damaged pickle makes Python raise
            raise CheckpointError(f"{path}: not a readable .pth file of tensors ({_reason(error)})") from error
        state = data.get("model", data) if isinstance(data, dict) else data
        if not isinstance(state, dict) or not all(_is_named_tensor(*item) for item in state.items()):
            raise CheckpointError(
                f"{path}: found {type(state).__name__}, expected tensors by name under 'model', all dense"
            )
        return dict(state)

    def read(self, name: str) -> Tensor:
        """Implement `TensorStore.read`."""
        return self._load()[name]

    def rows(self, name: str, first: int, last: int) -> Tensor:
        """Implement `TensorStore.rows`."""
        return self._load()[name][first:last]

    def gather(self, name: str, rows: Tensor) -> Tensor:
        """Implement `TensorStore.gather`."""
        return self.read(name)[rows]


def _reason(error: Exception) -> str:
    """Return one line about an error."""
    lines = str(error).partition(_REASON)[2].strip().splitlines() or str(error).strip().splitlines()
    text = lines[0] if lines else type(error).__name__
    return shown_text(text)


def _is_named_tensor(name: object, value: object) -> bool:
    if not isinstance(name, str) or not isinstance(value, Tensor):
        return False
    # A tensor of few stored values that are repeated may claim any size.
    dense = value.layout == torch.strided and value.device.type == "cpu"
    return dense and value.untyped_storage().nbytes() >= value.nbytes
