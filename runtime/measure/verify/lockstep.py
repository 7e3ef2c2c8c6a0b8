"""Runs two backends side by side: the reference decides, the other gets the reference's inputs and is compared.

Because every call of the candidate gets the reference's patch embeddings, latents and byte states, an error shows in
the graph that makes it. Its own keys and values stay its own: they are compared, and carry on.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fastblt.models.config import BltConfig
from fastblt.runtime.backends.protocol import (
    Backend,
    BackendSequence,
    DecoderRows,
    Drafted,
    Floats,
    Ids,
    Pick,
    Progress,
    State,
    decoder_of,
)
from fastblt.runtime.measure.agreement import common_prefix
from fastblt.runtime.measure.verify.comparison import Comparison


class Inspectable(BackendSequence, Protocol):
    """A sequence whose tensors can be read and written between calls."""

    def tensor(self, name: str, first: int, count: int) -> NDArray[Any]:
        """Return a copy of rows [count, ...] of what passes from graph to graph, or of a cache.

        Args:
            name: ``patch_embeddings``, ``latent_kv``, ``states``, or a part and its cache: ``decoder.key_0``.
            first: patch (of the last `run_encoder`), latent, or position of the first row.
            count: rows.
        """
        ...

    def set_tensor(self, name: str, first: int, values: NDArray[Any]) -> None:
        """Overwrite rows of what passes from graph to graph."""
        ...


class InspectableBackend(Backend, Protocol):
    """A backend whose sequences' tensors can be read and written."""

    def new_sequence(self) -> Inspectable:
        """See `Backend.new_sequence`."""
        ...


class LockstepBackend:
    """Implements `Backend`, and its only sequence, by a reference, and compares another backend with it.

    Args:
        reference: decides.
        candidate: is compared.
    """

    name = "lockstep"

    def __init__(self, reference: InspectableBackend, candidate: InspectableBackend) -> None:
        self._backends = (reference, candidate)
        self.config: BltConfig = reference.config
        self.device = reference.device
        self.max_bytes = min(reference.max_bytes, candidate.max_bytes)
        self.sequences, self.sequence_bytes = 1, 0
        self.comparisons: dict[tuple[str, str], Comparison] = {}
        self._ends: dict[str, int] = {}

    @property
    def model_digest(self) -> str:
        """Implement `Backend.model_digest`."""
        return self._backends[0].model_digest

    def new_sequence(self) -> LockstepBackend:
        """Implement `Backend.new_sequence`."""
        self.reference, self.candidate = (backend.new_sequence() for backend in self._backends)
        return self

    def close(self) -> None:
        """Implement `BackendSequence.close`."""
        self.reference.close()
        self.candidate.close()

    def reset(self) -> None:
        """Implement `BackendSequence.reset`."""
        self.reference.reset()
        self.candidate.reset()

    def state(self, progress: Progress) -> dict[str, NDArray[Any]]:
        """Raise NotImplementedError: what is compared is not saved."""
        raise NotImplementedError

    def restore(self, state: State, progress: Progress) -> None:
        """Raise NotImplementedError: what is compared is not saved."""
        raise NotImplementedError

    def _compare(self, graph: str, output: str, found: NDArray[Any], expected: NDArray[Any]) -> None:
        known = self.comparisons.setdefault((graph, output), Comparison(graph, output))
        known.add(found, expected)

    def _pass_on(self, graph: str, name: str, first: int, count: int) -> None:
        """Compare rows that a graph made, then overwrite the candidate's with the reference's."""
        expected = self.reference.tensor(name, first, count)
        self._compare(graph, name, self.candidate.tensor(name, first, count), expected)
        self.candidate.set_tensor(name, first, expected)

    def run_patcher(self, position: int, ids: Ids, visible_from: Ids | None = None) -> Floats:
        """Run both patchers, compare, and return the reference's entropies."""
        expected = self.reference.run_patcher(position, ids, visible_from).copy()
        self._compare("patcher", "entropy", self.candidate.run_patcher(position, ids, visible_from), expected)
        self._ends["patcher"] = position + len(ids)
        return expected

    def run_encoder(self, position: int, ids: Ids, starts: Ids, ends: Ids, visible_from: Ids | None = None) -> None:
        """Run both encoders, compare, and overwrite the candidate's outputs."""
        for backend in (self.reference, self.candidate):
            backend.run_encoder(position, ids, starts, ends, visible_from)
        self._pass_on("encoder", "patch_embeddings", 0, len(starts))
        rows = len(ids) - (self.config.hash.context - 1)
        if self.config.decoder_reads_states:
            self._pass_on("encoder", "states", position, rows)
        self._ends["encoder"] = position + rows

    def run_global(self, first_patch: int, count: int, visible_from: Ids | None = None) -> None:
        """Run both global transformers, compare, and overwrite the candidate's latents."""
        for backend in (self.reference, self.candidate):
            backend.run_global(first_patch, count, visible_from)
        self._pass_on("global", "latent_kv", first_patch, count)
        self._ends["global"] = first_patch + count

    def run_decoder(
        self, position: int, ids: Ids, latents: Ids, block: int = 0, visible_from: Ids | None = None
    ) -> DecoderRows:
        """Run both decoders, compare, and return the reference's rows."""
        expected = self.reference.run_decoder(position, ids, latents, block, visible_from).copy()
        found = self.candidate.run_decoder(position, ids, latents, block, visible_from)
        self._compare_rows(found, expected, decoder_of(self.config, block))
        self._ends["decoder"] = position + len(ids)
        return expected

    def _compare_rows(self, found: DecoderRows, expected: DecoderRows, part: str = "decoder") -> None:
        for output in ("logits", "probability", "entropy"):
            self._compare(part, output, getattr(found, output), getattr(expected, output))
        # The token itself may be another one at a tie: the logit of the candidate's is compared with the highest.
        chosen = np.take_along_axis(expected.logits, found.best[:, None], -1)
        self._compare(part, "best", chosen, expected.logits.max(-1))

    def draft(
        self, position: int, ids: Ids, latent: int, count: int, pick: Pick | None = None, visible_from: int = 0
    ) -> Drafted:
        """Let both draft by themselves, then the candidate again with the reference's bytes; return the reference's."""
        rows: list[DecoderRows] = []
        decided: list[tuple[int, bool]] = []

        def noted(row: DecoderRows) -> tuple[int, bool]:
            rows.append(row.copy())
            decided.append(pick(row) if pick is not None else (int(row.best[0]), True))
            return decided[-1]

        drafted = self.reference.draft(position, ids, latent, count, noted, visible_from)
        tokens, probabilities = drafted.tokens.copy(), drafted.probabilities.copy()
        if pick is None:
            free = self.candidate.draft(position, ids, latent, count, None, visible_from)
            self._compare_draft(free.tokens, tokens, rows)
        expected = iter(zip(rows, decided, strict=True))

        def forced(row: DecoderRows) -> tuple[int, bool]:
            known, decision = next(expected)
            self._compare_rows(row, known)
            return decision

        self.candidate.draft(position, ids, latent, count, forced, visible_from)
        return Drafted(tokens, probabilities, drafted.encoder_seconds)

    def _compare_draft(self, found: Ids, expected: Ids, rows: list[DecoderRows]) -> None:
        """Compare drafted bytes up to the first difference, by the reference's logits of both."""
        seen = min(common_prefix(found, expected) + 1, len(expected))
        logits = np.concatenate([row.logits for row in rows[:seen]])
        chosen = np.take_along_axis(logits, found[:seen, None], -1)
        self._compare("decoder", "draft", chosen, logits.max(-1))

    def compare_caches(self) -> None:
        """Compare the last keys and values of every layer."""
        for part, end in self._ends.items():
            stack = self.config.stacks[part]
            count = min(end, stack.window or end)
            for layer in range(stack.layers):
                for kind in ("key", "value"):
                    name = f"{part}.{kind}_{layer}"
                    found, expected = (b.tensor(name, end - count, count) for b in (self.candidate, self.reference))
                    self._compare(part, f"{kind} cache", found, expected)

    def can_resume_from(self, position: int, open_patch: int) -> bool:
        """Return whether both backends can resume there."""
        return self.reference.can_resume_from(position, open_patch) and self.candidate.can_resume_from(
            position, open_patch
        )

    def moved_bytes(self, part: str, position: int, rows: int) -> int:
        """Return what the reference moves."""
        return self.reference.moved_bytes(part, position, rows)
