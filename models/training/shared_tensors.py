"""Reads and makes tensors that processes share (PyTorch's `DTensor`); all processes must call this alike."""

from __future__ import annotations

from torch import Tensor


def is_shared(tensor: Tensor) -> bool:
    """Decide whether this process has only a part of a tensor."""
    # The class is not asked for: importing it takes a second.
    return hasattr(tensor, "full_tensor")


def whole(tensor: Tensor) -> Tensor:
    """Return the whole of a tensor that may be shared."""
    found: Tensor = tensor.full_tensor() if is_shared(tensor) else tensor  # type: ignore[attr-defined]
    return found


def like(full: Tensor, other: Tensor) -> Tensor:
    """Return a whole tensor, which every process has, shared as another one of its shape is."""
    if not is_shared(other) or full.shape != other.shape:
        return full
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(other, DTensor)
    return distribute_tensor(full.to(other.device), other.device_mesh, other.placements, src_data_rank=None)
