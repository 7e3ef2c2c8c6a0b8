"""Loads the graphs of a bundle into ONNX Runtime on the CPU."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any
from weakref import WeakSet

from fastblt.models.config import BltConfig
from fastblt.models.machine_memory import host_memory
from fastblt.runtime.backends.cpu.batch import OnnxRuntimeBatch
from fastblt.runtime.backends.cpu.batch_parts import batch_bytes
from fastblt.runtime.backends.cpu.buffers import buffer_bytes
from fastblt.runtime.backends.cpu.sequence import OnnxRuntimeSequence
from fastblt.runtime.backends.cpu.sessions import LoadedGraph, session_options
from fastblt.runtime.backends.host_embeddings import HostEmbeddings
from fastblt.runtime.backends.memory import check_batch_fits, sequences_that_fit
from fastblt.runtime.backends.open_sequences import OpenSequences
from fastblt.runtime.bundle.bundle import Bundle
from fastblt.runtime.bundle.dtypes import numpy_dtype
from fastblt.runtime.bundle.manifest import BundleError
from fastblt.runtime.machine import usable_cores


class OnnxRuntimeBackend:
    """Implements `fastblt.runtime.backends.protocol.Backend`; `load` is the constructor for users.

    Args:
        bundle: an opened bundle.
        max_bytes: longest prompt plus new bytes.
        options: of the sessions, an ``onnxruntime.SessionOptions``.
        sequences: most at once; None: as `sequences_that_fit`.

    Raises:
        BundleError: a graph cannot be loaded, or is not the one that the manifest describes.
        CapacityError: the machine has too little memory.
    """

    name = "onnxruntime"
    device = "cpu"

    def __init__(self, bundle: Bundle, max_bytes: int, options: Any, sequences: int | None = None) -> None:
        self.config: BltConfig = bundle.config
        self.manifest = bundle.manifest
        self.max_bytes = max_bytes
        self.path = bundle.path
        self.activations = numpy_dtype(bundle.activations)
        needed = partial(buffer_bytes, self.config, self.activations.itemsize)
        self.sequence_bytes = needed(max_bytes)
        self.sequences = sequences_that_fit(
            self.manifest.weight_bytes, needed, max_bytes, sequences, host_memory(), "this machine"
        )
        stacks = self.config.graph_stacks
        self.graphs = {
            part: LoadedGraph.load(bundle.graph(part), spec, stacks[part], options)
            for part, spec in self.manifest.graphs.items()
        }
        """The sessions, by part."""
        self.operator_threads: int = options.intra_op_num_threads or usable_cores()
        """Threads that a call keeps busy."""
        self.open_sequences = OpenSequences[OnnxRuntimeSequence]()
        self.batches = WeakSet[OnnxRuntimeBatch]()
        """Those that are open."""
        self._changing_batches = Lock()
        path, width = bundle.embeddings, self.config.encoder.dim
        self.tables = None if path is None else HostEmbeddings(path, self.config.hash, width)

    @classmethod
    def load(
        cls, bundle: Path, max_bytes: int, threads: int | None, options: Any = None, sequences: int | None = None
    ) -> OnnxRuntimeBackend:
        """Load a bundle.

        Args:
            bundle: its folder.
            max_bytes: longest prompt plus new bytes.
            threads: of one operator; None: as many as suit the model.
            options: an ``onnxruntime.SessionOptions`` that replaces ours and ``threads``; None: ours.
            sequences: most at once; None: as `sequences_that_fit`.

        Raises:
            BundleError: a file is missing or damaged, or a graph cannot be loaded.
            CapacityError: the machine has too little memory.
            ConfigError: the configuration is invalid.
        """
        opened = Bundle.open(bundle)
        if options is None:
            options = session_options(opened.manifest, threads)
        return cls(opened, max_bytes, options, sequences)

    @property
    def providers(self) -> list[str]:
        """Return the execution providers that ONNX Runtime reports for the decoder's session, the fallback included."""
        return list(self.graphs["decoder"].session.get_providers())

    @property
    def model_digest(self) -> str:
        """Implement `Backend.model_digest`."""
        return self.manifest.digest

    def new_sequence(self) -> OnnxRuntimeSequence:
        """Implement `Backend.new_sequence`."""
        return self.open_sequences.make(self.sequences, lambda: OnnxRuntimeSequence(self))

    def new_batch(self, size: int) -> OnnxRuntimeBatch:
        """Implement `fastblt.runtime.backends.batching.BatchingBackend.new_batch`.

        Raises:
            BundleError: the graphs are of an earlier version and take one sequence.
            CapacityError: there is no memory for it.
            ValueError: there is none for so few sequences.
        """
        if size < 1:
            raise ValueError(f"batch: found a size of {size}, expected at least 1")
        if not self.manifest.batches:
            raise BundleError(
                f"{self.path}: found graphs for one sequence, expected graphs for several: export it again with "
                "'fastblt export'"
            )
        with self._changing_batches:  # of two threads, the second counts what the first has taken
            check_batch_fits(
                self.manifest.weight_bytes + self.sequences * self.sequence_bytes,
                sum(batch_bytes(self, batch.size) for batch in self.batches),
                partial(batch_bytes, self),
                size,
                host_memory(),
                "this machine",
            )
            batch = OnnxRuntimeBatch(self, size)
            self.batches.add(batch)
            return batch

    def forget_batch(self, batch: OnnxRuntimeBatch) -> None:
        """Note that a batch has let go of its memory."""
        with self._changing_batches:
            self.batches.discard(batch)
