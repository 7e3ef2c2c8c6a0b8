"""Reads the log of the stub: every call of the driver, and to which graph and which generation it belongs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

#: Calls that make the host wait for the device.
WAITS = (
    *("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize"),
    *("cudaMemcpy", "cudaMemset"),
)
#: Calls that queue one piece of work each; so does every kernel.
COPIES = ("cudaMemcpyAsync", "cudaMemcpy2DAsync", "cudaMemsetAsync", "cudaMemset2DAsync")
#: The graph files of a bundle and the parts that they are.
PARTS = {"entropy": "patcher", "encoder": "encoder", "global": "global", "decoder": "decoder", "draft": "draft"}


@dataclass(frozen=True)
class Event:
    """Holds one call: its name and what the stub wrote about it; numbers stay text."""

    name: str
    fields: dict[str, str]
    text: str

    def number(self, name: str) -> int:
        """Return a field as an integer; 0 where the event has none. Addresses are hexadecimal."""
        return int(self.fields.get(name, "0"), 0)


@dataclass
class GraphRun:
    """Holds what the driver was asked for while a session ran once."""

    part: str
    shape: str
    """Sizes of the call, e.g. ``rows=1 slots=256``, and the number of the binding: one for each recorded graph."""
    events: list[Event] = field(default_factory=list)

    @property
    def captures(self) -> bool:
        """Whether the run was recorded."""
        return any(event.name == "cudaStreamBeginCapture" for event in self.events)

    @property
    def replays(self) -> bool:
        """Whether the run did no more than launch what was recorded."""
        return [event.name for event in self.events] == ["cudaGraphLaunch"]

    @property
    def rows(self) -> int:
        """Rows of the call, padding included."""
        return int(self.shape.partition("rows=")[2].partition(" ")[0])

    @property
    def recorded(self) -> list[str]:
        """Names of the kernels that were recorded."""
        return [e.fields["name"] for e in self.events if e.name == "kernel" and e.number("capture")]


@dataclass
class Section:
    """Holds the log between two notes: of loading a bundle, or of a generation."""

    bundle: str
    name: str
    events: list[Event] = field(default_factory=list)
    runs: list[GraphRun] = field(default_factory=list)

    def count(self, *names: str) -> int:
        """Return the number of events with one of these names."""
        return sum(event.name in names for event in self.events)

    def waits(self) -> int:
        """Return how often the host waited."""
        return self.count(*WAITS)

    def launches(self) -> Counter[str]:
        """Count what the host queued: graphs, single kernels and copies; and what the device ran of it.

        ``host`` is the number of calls that queue work. ``kernels`` and ``copies`` are what the device does, recorded
        work included; ``device`` is their sum.
        """
        found: Counter[str] = Counter()
        for event in self.events:
            if event.name == "cudaGraphLaunch":
                found["graphs"] += 1
                found["kernels"] += event.number("kernels")
                found["copies"] += event.number("copies") + event.number("sets")
            elif event.number("capture") == 0 and event.name == "kernel":
                found["single kernels"] += 1
                found["kernels"] += 1
            elif event.number("capture") == 0 and event.name in COPIES:
                found["single copies"] += 1
                found["copies"] += 1
        found["host"] = found["graphs"] + found["single kernels"] + found["single copies"]
        found["device"] = found["kernels"] + found["copies"]
        return found


def read(path: Path) -> Iterator[Event]:
    """Read a log, call by call."""
    with path.open() as file:
        for line in file:
            name, _, rest = line.rstrip("\n").partition(" ")
            pairs = [] if name == "note" else [pair.partition("=") for pair in rest.split()]
            yield Event(name, {key: value for key, _, value in pairs}, rest)


def sections(path: Path) -> list[Section]:
    """Cut a log into sections at the notes of `fakes.cuda_stub.drive`: ``load``, generations, ``between`` them."""
    found: list[Section] = []
    bundle, section, run = "", None, None
    for event in read(path):
        word, _, rest = event.text.partition(" ") if event.name == "note" else ("", "", "")
        if word == "bundle":
            bundle = rest
        if word in ("bundle", "begin"):
            section = Section(bundle, "load" if word == "bundle" else rest)
            found.append(section)
        elif word == "end":
            section = Section(bundle, "between")
            found.append(section)
        elif word == "run" and section is not None:
            part, _, shape = rest.partition(" ")
            run = GraphRun(PARTS[part], shape)
            section.runs.append(run)
        elif word == "ran":
            run = None
        elif section is not None and event.name != "note":
            section.events.append(event)
            if run is not None:
                run.events.append(event)
    return found
