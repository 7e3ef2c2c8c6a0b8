"""Lists what a backend runs once it is loaded, so that nothing is bound, compiled or recorded while a text grows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple

from fastblt.runtime.backends.gpu.decoder_calls import DecoderCalls
from fastblt.runtime.backends.gpu.drafting import DeviceDrafter
from fastblt.runtime.backends.gpu.graph import DeviceGraph

#: A class is recorded when it runs for the second time.
_RUNS = 2
#: Longest draft that is recorded; longer ones are when they occur, of classes that are bound by then.
_LONGEST_DRAFT = 8


class Step(NamedTuple):
    """Holds one step of warming up."""

    part: str
    """Graph that it runs."""
    name: str
    run: Callable[[], None]


def warm_up_steps(
    graphs: Mapping[str, DeviceGraph], decoder: DecoderCalls, drafter: DeviceDrafter | None
) -> list[Step]:
    """Return a step for every shape class of every graph, one for a byte, and one for every length of drafts.

    Args:
        graphs: by part.
        decoder: its calls.
        drafter: drafts on the device; None where the host takes part.
    """
    steps = [
        Step(part, f"{part}, {rows} rows", partial(_run, graph, rows, slots))
        for part, graph in graphs.items()
        for rows, slots in graph.shape_classes()
    ]
    steps.append(Step("decoder", "one byte", decoder.warm_up))
    if drafter is not None:
        counts = range(1, _LONGEST_DRAFT + 1)
        steps += [Step("decoder", f"draft, {count} bytes", partial(drafter.warm_up, count)) for count in counts]
    return steps


def _run(graph: DeviceGraph, rows: int, slots: int) -> None:
    for _ in range(_RUNS):
        graph.run_nothing(rows, slots)
