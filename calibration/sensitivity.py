"""Orders mixtures of precisions by what each part of a model loses when it alone is quantized."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from fastblt.calibration.linear_layers import LinearLayer
from fastblt.calibration.precision import Precision, Scheme

#: Denotes all groups of a graph.
WHOLE_GRAPH = "*"


@dataclass(frozen=True)
class Group:
    """Describes layers that share a precision: a transformer block, or a layer outside of one."""

    part: str
    name: str
    layers: tuple[str, ...]
    inputs: Mapping[str, int]
    """Width of each layer's input."""
    bytes: int
    """Bytes of the weights in the bundle's own type."""
    smaller: int
    """Bytes of the weights in the scheme's precision, without scales."""

    def precisions(self, precision: Precision) -> dict[str, Precision]:
        """Return the precision of each of its layers, with blocks that fit."""
        return {name: precision.fitted(self.inputs[name]) for name in self.layers}


@dataclass(frozen=True)
class Sensitivity:
    """Holds what quantizing one group costs and saves."""

    part: str
    group: str
    """Name of the group; `WHOLE_GRAPH`: all groups of the part."""
    saved_bytes: int
    bits_per_byte: float
    loss: float
    """Relative growth of bits per byte; of the graph of drafts, the decrease of its accuracy on hidden bytes."""


def groups_of(layers: Sequence[tuple[str, LinearLayer]], scheme: Scheme) -> list[Group]:
    """Return the groups in the order of the graphs."""
    found: dict[tuple[str, str], list[LinearLayer]] = {}
    for part, layer in layers:
        found.setdefault((part, layer.group), []).append(layer)
    return [
        Group(
            part,
            name,
            tuple(layer.name for layer in members),
            {layer.name: layer.shape[0] for layer in members},
            sum(layer.nbytes for layer in members),
            sum(
                layer.shape[0] * layer.shape[1] * scheme.precision.fitted(layer.shape[0]).bits // 8 for layer in members
            ),
        )
        for (part, name), members in found.items()
    ]


def assignment(choice: Sequence[tuple[Group, Precision | None]]) -> dict[str, dict[str, Precision]]:
    """Return the precision of each layer, by part; groups without one are left out and keep theirs."""
    found: dict[str, dict[str, Precision]] = {}
    for group, precision in choice:
        if precision is not None:
            found.setdefault(group.part, {}).update(group.precisions(precision))
    return found


def choices(
    groups: Sequence[Group], scheme: Scheme, sensitivities: Sequence[Sensitivity]
) -> list[list[Precision | None]]:
    """Return mixtures from the smallest to the most exact; each step raises the group that loses most per saved byte.

    First every group is raised to the scheme's fallback, then every group to its own type.

    Args:
        groups: of the model.
        scheme: precision of every group in the first mixture.
        sensitivities: of every group.
    """
    loss = {(s.part, s.group): s.loss / max(s.saved_bytes, 1) for s in sensitivities}
    order = sorted(range(len(groups)), key=lambda i: -loss[groups[i].part, groups[i].name])
    current: list[Precision | None] = [scheme.precision] * len(groups)
    found = [list(current)]
    for precision in [scheme.fallback, None] if scheme.fallback else [None]:
        for index in order:
            current[index] = precision
            found.append(list(current))
    return found


def first_that_fits(count: int, fits: Callable[[int], bool]) -> int | None:
    """Find the first of ``count`` choices that fits, by bisection; each is assumed to be better than those before.

    Returns:
        Its index, for which ``fits`` was true; None if not even the last one fits.
    """
    low, high, found = 0, count - 1, None
    while low <= high:
        middle = (low + high) // 2
        if fits(middle):
            found, high = middle, middle - 1
        else:
            low = middle + 1
    return found
