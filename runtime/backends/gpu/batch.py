"""Implements `fastblt.runtime.backends.batching.Batch` on a GPU: one launch of a graph for many sequences.

The caches of all slots lie side by side, so a sequence runs alone and leaves without a copy. A batch has places of its
own, its home: sequences that join it elsewhere are exchanged with what is there, once. Its calls begin with the first
place of the home and take 2, 4, 8 or 16 of them, so few ranges occur, and all of them can be recorded beforehand.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from time import perf_counter
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from fastblt.runtime.backends.batching import (
    Answer,
    DraftCall,
    EncoderCall,
    GlobalCall,
    PartCall,
    PatcherCall,
)
from fastblt.runtime.backends.gpu.batch_drafts import BatchDrafter, Outcome
from fastblt.runtime.backends.gpu.batch_graph import BatchGraph
from fastblt.runtime.backends.gpu.batch_parts import BatchDecoder, BatchEncoder, BatchGlobal, BatchPatcher
from fastblt.runtime.backends.gpu.cuda import CudaError
from fastblt.runtime.backends.gpu.places import Exchange, block_of
from fastblt.runtime.backends.gpu.sequence import DeviceSequence
from fastblt.runtime.backends.graph_error import GraphError
from fastblt.runtime.backends.protocol import BackendSequence, CapacityError, DecoderRows, Drafted, Pick

if TYPE_CHECKING:
    from fastblt.runtime.backends.gpu.backend import DeviceBackend

C = TypeVar("C")
Calls = Sequence[tuple[DeviceSequence, C]]
#: A class is recorded when it runs for the second time.
_RUNS = 2
#: Rows up to which calls of different lengths share one: of one shape class, as those of a verification are.
_FEW_ROWS = 16


class DeviceBatch:
    """Runs calls of sequences of one backend together.

    Args:
        backend: theirs.
        size: most sequences.
        together: most of them in one call, a power of two.
        home: places where its sequences are brought together, from the first one on.
    """

    def __init__(self, backend: DeviceBackend, size: int, together: int, home: range) -> None:
        self.size, self._most_together, self.home = size, together, home
        self._backend, self._history = backend, backend.config.hash.context - 1
        self._members: list[weakref.ref[DeviceSequence]] = []
        self._settled = True
        """Whether nobody has joined or left since the members were brought together."""
        self._exchange = Exchange(backend)
        slots, stream, config = backend.slots, backend.stream, backend.config
        self.graphs = {part: _batch_graph(backend, part, together, home) for part in backend.executors}
        self._most_rows = min(graph.most_rows for graph in self.graphs.values())
        patcher = self.graphs.get("patcher")
        self._patcher = None if patcher is None else BatchPatcher(patcher, stream)
        self._encoder = BatchEncoder(self.graphs["encoder"], slots, self._history, backend.tables)
        self._global = BatchGlobal(self.graphs["global"], slots)
        self._decoders = {
            part: BatchDecoder(graph, slots, stream, reads_states=config.decoder_reads_states and part == "decoder")
            for part, graph in self.graphs.items()
            if part in ("decoder", "draft")
        }
        self._drafter = BatchDrafter(
            self._encoder,
            self._decoders["decoder"],
            patcher,
            slots,
            stream,
            self._history,
            on_device=slots[0].device_drafter is not None,
        )
        for array in backend.memory.arrays.values():
            array.fit()

    def run(self, calls: Sequence[tuple[BackendSequence, PartCall]]) -> list[Answer]:
        """Implement `Batch.run`."""
        backend, found = self._backend, dict[int, Answer]()
        own = [(self._check(sequence), call) for sequence, call in calls]
        with backend.lock:
            self._join([sequence for sequence, _ in own])
            for sequence, call in own:
                if isinstance(call, DraftCall):  # before anything is drawn, since that cannot be repeated
                    self._drafter.make_room(sequence.slot.place, call)
            waiting: dict[tuple[int, int], list[int]] = {}
            for index, (sequence, call) in enumerate(own):
                known = self._known(sequence, call)
                if known is not None:
                    found[index] = known
                    continue
                rows = self._rows(call)
                if rows > self._most_rows:
                    found[index] = self._alone(sequence, call)
                    continue
                group = sequence.slot.place // self._most_together, 0 if rows <= _FEW_ROWS else rows
                waiting.setdefault(group, []).append(index)
            for indexes in waiting.values():
                answers = self._group([own[index] for index in indexes])
                if len(waiting) > 1:  # the next group's results arrive in the same memory
                    answers = [answer._replace(result=_copy(answer.result)) for answer in answers]
                found |= zip(indexes, answers, strict=True)
        return [found[index] for index in range(len(calls))]

    def leave(self, sequence: BackendSequence) -> None:
        """Implement `Batch.leave`: a sequence's caches are where it runs alone, too."""
        with self._backend.lock:
            self._keep(one for one in self._open() if one is not sequence)

    def close(self) -> None:
        """Implement `Batch.close`."""
        backend = self._backend
        with backend.lock:
            if self in backend.batches:
                backend.batches.remove(self)
                self._members.clear()
                if not backend.batches:
                    for array in backend.memory.arrays.values():
                        array.set_stride(array.rows)
                backend.stream.synchronize()
                self.graphs.clear()
                del self._patcher, self._encoder, self._global, self._decoders, self._drafter, self._exchange

    def warm_up(self) -> None:
        """Bind, run and record what calls of several sequences at home usually need, but for drafts.

        All rows are padding, so sequences that are open keep what they have. Places that are free run classes of one
        sequence, too, where the caches have moved closer and have other addresses since.

        Raises:
            GraphError: a graph fails.
        """
        backend = self._backend
        for name, part in self._parts().items():
            try:
                for places, rows in self._usual_classes():
                    with suppress(CapacityError):  # a text has reached its end there
                        for _ in range(_RUNS):
                            part.run_padding(places, rows)
                for slot in backend.free_slots:
                    for _ in range(_RUNS):
                        slot.graphs[name].run_moved_classes()
                backend.stream.synchronize()
            except (GraphError, CudaError, MemoryError) as error:
                raise backend.failure(name, error) from error

    def _parts(self) -> dict[str, BatchPatcher | BatchEncoder | BatchGlobal | BatchDecoder]:
        patcher = {} if self._patcher is None else {"patcher": self._patcher}
        return {**patcher, "encoder": self._encoder, "global": self._global, **self._decoders}

    def _usual_classes(self) -> Iterator[tuple[range, int]]:
        """Return the places and rows of calls of 2, 4, 8 and more sequences that are at home."""
        size, least = 2, self.graphs["decoder"].padded(1)
        while size <= self._most_together:
            rows, places = least, self.home[:size]
            while places and rows <= self._most_rows:
                yield places, rows
                rows *= 2
            size *= 2

    def clear(self) -> None:
        """Empty what padding rows may read."""
        for graph in self.graphs.values():
            graph.clear_links()

    @property
    def places(self) -> frozenset[int]:
        """Return where its sequences are."""
        return frozenset(member.slot.place for member in self._open())

    def _check(self, sequence: BackendSequence) -> DeviceSequence:
        """Return a sequence, which is of this backend; the batch is open."""
        if not isinstance(sequence, DeviceSequence) or sequence.backend is not self._backend:
            raise ValueError("sequence: found one of another backend, expected one of the batch's")
        if self not in self._backend.batches:
            raise ValueError("batch: found a closed one, expected one that is open")
        return sequence

    def _open(self) -> list[DeviceSequence]:
        members = (member() for member in self._members)
        return [member for member in members if member is not None and member.is_open]

    def _keep(self, members: Iterable[DeviceSequence]) -> None:
        """Let the batch consist of these sequences."""
        kept = list(members)
        self._settled &= kept == [member() for member in self._members]
        self._members = [weakref.ref(member) for member in kept]

    def _join(self, callers: Sequence[DeviceSequence]) -> None:
        """Let callers join that have not, and bring the sequences of the batch together where they have changed."""
        self._backend.reset_closed()
        members = self._open()
        self._keep([*members, *(caller for caller in callers if caller not in members)])
        if self._settled:
            return
        self._settled = True
        slots = [member.slot for member in self._open()]
        if len(slots) > 1:
            taken = [batch.places for batch in self._backend.batches if batch is not self]
            block = block_of(len(slots), self._backend.sequences, self.home.start, taken)
            if block is not None:
                self._exchange.gather(slots, block)
        for array in self._backend.memory.arrays.values():
            array.fit()

    def _known(self, sequence: DeviceSequence, call: PartCall) -> Answer | None:
        """Return the entropies that were asked ahead, if a call asks for them."""
        if not isinstance(call, PatcherCall):
            return None
        asked = sequence.slot.look_ahead.answer
        known = sequence.slot.look_ahead.take(*call)
        if asked is None or known is None:
            return None
        # Its seconds are those of the decoder, whose results came with the same wait.
        return Answer(known, 0.0, self._moved_bytes("patcher", sequence, call, asked.together), 1 / asked.together)

    def _rows(self, call: PartCall) -> int:
        """Return the rows of a call, padding included."""
        return self.graphs["decoder"].padded(call.rows(self._backend.config))

    def _alone(self, sequence: DeviceSequence, call: PartCall) -> Answer:
        """Make a call of one sequence, as it makes it without a batch; what its pick raises ends no other."""
        began, raised = perf_counter(), list[Exception]()
        if isinstance(call, DraftCall) and call.pick is not None:
            call = call._replace(pick=_noting(call.pick, raised))
        try:
            result = call.run(sequence)
        except Exception as error:
            if not raised:
                raise
            return Answer(None, perf_counter() - began, 0.0, 0.0, error)
        return self._answer(sequence, call, result, perf_counter() - began, 1)

    def _group(self, calls: Calls[PartCall]) -> list[Answer]:
        """Run calls of one kind together; each alone where a place has no room for the rows of such a call."""
        if len(calls) > 1:
            with suppress(CapacityError):
                return self._together(calls)
        return [self._alone(*call) for call in calls]

    def _together(self, calls: Calls[PartCall]) -> list[Answer]:
        """Run calls of one kind that share calls of the graph."""
        part, began = calls[0][1].part(self._backend.config), perf_counter()
        by_place: dict[int, Any] = {sequence.slot.place: call for sequence, call in calls}
        try:
            results = self._run(part, by_place)
        except (GraphError, CudaError, MemoryError) as error:
            raise self._backend.failure(part, error) from error
        seconds, found = perf_counter() - began, [results.get(sequence.slot.place) for sequence, _ in calls]
        parts = [result.calls if isinstance(result, Outcome) else 1.0 for result in found]
        return [
            self._answer(sequence, call, result, seconds * part / sum(parts), len(calls))
            for (sequence, call), result, part in zip(calls, found, parts, strict=True)
        ]

    def _run(self, part: str, calls: dict[int, Any]) -> dict[int, Any]:
        """Return the results of calls of one kind, by place."""
        kind = type(next(iter(calls.values())))
        if kind is PatcherCall:
            assert self._patcher is not None, "the model has no patcher"
            return dict(self._patcher.run(calls))
        if kind is DraftCall:
            return dict(self._drafter.draft(calls))
        if kind is EncoderCall:
            self._encoder.run(calls)
            return {}
        if kind is GlobalCall:
            self._global.run(calls)
            return {}
        if all(len(call.ids) == 1 and call.block == 0 for call in calls.values()):
            return dict(self._drafter.single_rows(calls))
        return dict(self._decoders[part].run(calls))

    def _answer(self, sequence: DeviceSequence, call: PartCall, result: Any, seconds: float, together: int) -> Answer:
        if isinstance(result, Outcome):
            own = seconds if result.seconds is None else result.seconds
            return Answer(result.drafted, own, result.moved_bytes, result.calls, result.error)
        config, steps = self._backend.config, 1
        parts = [call.part(config)]
        if isinstance(call, DraftCall):
            drafted: Drafted = result
            steps = len(drafted.tokens)
            parts += ["encoder"] if config.decoder_reads_states else []
        moved = steps * sum(self._moved_bytes(part, sequence, call, together) for part in parts)
        return Answer(result, seconds, moved, steps / together)

    def _moved_bytes(self, part: str, sequence: DeviceSequence, call: PartCall, together: int) -> float:
        """Return what a call of a part reads for one of ``together`` sequences."""
        if together > 1:
            return self.graphs[part].moved_bytes(together)
        return sequence.moved_bytes(part, call[0], self._rows(call))


def _noting(pick: Pick, raised: list[Exception]) -> Pick:
    """Return a pick that notes what it raises."""

    def noting(row: DecoderRows) -> tuple[int, bool]:
        try:
            return pick(row)
        except Exception as error:
            raised.append(error)
            raise

    return noting


def _copy(result: Any) -> Any:
    """Return a result that later calls leave alone; drafts are no views."""
    return result.copy() if isinstance(result, DecoderRows | np.ndarray) else result


def _batch_graph(backend: DeviceBackend, part: str, together: int, home: range) -> BatchGraph:
    """Bind the graph of a part to the places of all slots."""
    graphs = [slot.graphs[part] for slot in backend.slots]
    executor, latents = backend.executors[part], backend.slots[0].rows["latent_kv"]
    stores = latents.stores(together) if executor.spec.input("latent_kv") is not None else []
    return BatchGraph(executor, graphs, backend.stream, together, home, stores)
