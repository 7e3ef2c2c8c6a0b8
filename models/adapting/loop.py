"""Trains a draft decoder; the same on a CPU, on one GPU, and on several with a process each."""

from __future__ import annotations

import json
import logging
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from fastblt.models.adapting.blocks import HiddenBlocks, draft_loss, draw, hide, place
from fastblt.models.adapting.drafts import own_drafts
from fastblt.models.adapting.frozen import Frozen, mean_states, mixed_precision, run_frozen
from fastblt.models.adapting.memory import check_plain, check_room
from fastblt.models.adapting.optimizers import build_draft_optimizers, checkpoint_activations
from fastblt.models.adapting.quality import HeldOut
from fastblt.models.adapting.recipe import AdaptConfig
from fastblt.models.adapting.run_folder import check_same_run, weights_digest, write_adapted, write_run
from fastblt.models.adapting.text_files import Text
from fastblt.models.checkpoint import load_model
from fastblt.models.config import expect
from fastblt.models.draft_decoder import DraftDecoder
from fastblt.models.formats.checkpoint import Checkpoint
from fastblt.models.training.batches import IGNORE
from fastblt.models.training.log_file import append_record, drop_broken_record
from fastblt.models.training.loop import OnStep, set_rates
from fastblt.models.training.optimizer import schedule
from fastblt.models.training.processes import Processes
from fastblt.models.training.run_files import CHECKPOINT_FOLDER, LOG_FILE, STATE_FILE
from fastblt.models.training.state import Progress, load_state, optimizer_tensors, restore_optimizers, save_state

logger = logging.getLogger(__name__)

_ALONE = Processes()


class Adapter:
    """Adapts a checkpoint in a folder: recipe, state, log and, at the end, ``checkpoint/``.

    Args:
        config: how.
        base: checkpoint of a BLT without blocks.
        text: what the draft decoder learns from.
        out: folder of the run.
        device: where it runs.
        processes: this process among those that share the run.

    Raises:
        ConfigError: the checkpoint has blocks already, or the processes cannot share a step.
        CheckpointError: weights are damaged.
        MemoryTooSmallError: the device has too little memory.
    """

    def __init__(
        self,
        config: AdaptConfig,
        base: Checkpoint,
        text: Text,
        out: Path,
        device: torch.device | None = None,
        processes: Processes = _ALONE,
    ) -> None:
        self.config, self.base, self.text, self.out, self.processes = config, base, text, out, processes
        self.device = torch.device("cpu") if device is None else device
        check_plain(base)
        pieces = processes.count * config.accumulate
        expect(config.batch % pieces == 0, "batch", config.batch, f"a multiple of {pieces}, the pieces of a step")
        check_room(base, config, processes.count, self.device)
        torch.manual_seed(config.seed)
        on_gpu = self.device.type == "cuda"
        self.original = load_model(base, device=str(self.device), dtype=torch.bfloat16 if on_gpu else torch.float32)
        self.digest = weights_digest(self.original)
        self.model = self.original.with_draft(config.block_size, config.rank)
        self.draft = cast(DraftDecoder, self.model.draft).float().requires_grad_(True)
        if config.checkpoint_activations:
            checkpoint_activations(self.draft)
        self.progress = Progress("model")
        self._saved_optimizers: dict[str, Tensor] = {}
        self._begun = False
        self._heldout = HeldOut(text.heldout, config.window, config.block_size, self.device)

    def resume(self) -> bool:
        """Continue the run in the folder, if there is one; the log of a run without a saved state is removed.

        Raises:
            ConfigError: the run has another recipe.
            CheckpointError: its state is damaged, or it adapts another checkpoint.
        """
        path = self.out / STATE_FILE
        if not path.exists():
            if self.processes.first:
                (self.out / LOG_FILE).unlink(missing_ok=True)  # of a run that was killed before its first save
            return False
        check_same_run(self.out, self.config, self.digest)
        self.progress, self._saved_optimizers = load_state(path, self.draft)
        self._begun = True
        if self.processes.first:
            drop_broken_record(self.out / LOG_FILE)
        return True

    def run(self, max_seconds: float, on_step: OnStep | None = None) -> bool:
        """Train until all steps are done or ``max_seconds`` of wall time have passed.

        Returns:
            Whether all steps are done; the adapted checkpoint is then in the folder.
        """
        deadline = time.monotonic() + max_seconds
        if not self._begun:
            self._begin()
        if self.progress.phase == "model":
            if not self._train(deadline, on_step):
                return False
            self.progress = replace(self.progress, phase="done")
            self._save([])
        if self.processes.first and not (self.out / CHECKPOINT_FOLDER).exists():
            write_adapted(self.out / CHECKPOINT_FOLDER, self.base, self.model.config, self.draft)
        self.processes.wait()
        return True

    def _begin(self) -> None:
        """Make the draft decoder a copy of the decoder, which reads what that reads of each byte on average."""
        ids = torch.cat([self.text.window(self.config.window, self._generator(0, w))[0] for w in range(16)])
        embeddings = self.model.encoder.tok_embeddings.weight
        states = mean_states(run_frozen(self.model, ids.to(self.device)), len(embeddings), embeddings)
        self.draft.start_from(self.model.decoder, states)
        if self.processes.first:
            self.out.mkdir(parents=True, exist_ok=True)
            write_run(self.out, self.config, self.digest)
            self._log(self._heldout.original(self.original))
        self._begun = True

    def _generator(self, step: int, window: int) -> np.random.Generator:
        return np.random.default_rng([self.config.seed, step, window])

    def _train(self, deadline: float, on_step: OnStep | None) -> bool:
        """Optimize until all steps are done (True) or the deadline passes (False)."""
        config, progress = self.config, self.progress
        optimizers = build_draft_optimizers(self.draft, config)
        restore_optimizers(optimizers, self.draft, self._saved_optimizers)
        shared = DistributedDataParallel(self.draft) if self.processes.count > 1 else None
        parameters = list(self.draft.parameters())
        saved = progress.seconds
        while progress.step < config.steps:
            if self.processes.agree(time.monotonic() >= deadline, self.device):
                self._save(optimizers)
                self._saved_optimizers = optimizer_tensors(optimizers, self.draft)  # for the next call of `run`
                return False
            begin = self._clock()
            set_rates(optimizers, schedule(progress.step / config.steps, config.warmup, config.hold))
            for optimizer in optimizers:
                optimizer.zero_grad(set_to_none=True)
            loss = self._backward(progress.step + 1, shared)
            nn.utils.clip_grad_norm_(parameters, config.clip)
            for optimizer in optimizers:
                optimizer.step()
            report = {"draft_nats": float(self.processes.mean(loss))}
            progress.step += 1
            progress.tokens += config.batch * config.window
            progress.seconds += self._clock() - begin
            progress.total_seconds = progress.seconds
            if on_step:
                on_step(progress, progress.step / config.steps, report)
            if progress.seconds - saved >= config.save_every:
                self._save(optimizers)
                saved = progress.seconds
            if progress.step % config.eval_every == 0 or progress.step == config.steps:
                self._evaluate(report)
        self._save(optimizers)
        return True

    def _clock(self) -> float:
        # As in training of whole models: processor time ignores pauses and other processes.
        return time.process_time() if self.device.type == "cpu" else time.monotonic()

    def _backward(self, step: int, shared: DistributedDataParallel | None) -> Tensor:
        """Add up the gradients of this process's windows of a step, piece by piece; return their loss."""
        pieces = self.config.accumulate
        size = self.config.batch // (pieces * self.processes.count)
        total = torch.zeros((), device=self.device)
        for piece in range(pieces):
            first = (self.processes.rank * pieces + piece) * size
            frozen, hidden = self._blocks([self._generator(step, first + window) for window in range(size)])
            last = piece == pieces - 1
            # Gradients are exchanged once, with the last piece.
            quiet = cast("AbstractContextManager[None]", shared.no_sync()) if shared and not last else nullcontext()
            with quiet:
                with mixed_precision(self.model):
                    logits = (shared or self.draft)(hidden.blocks, frozen.clean, hidden.anchors)
                loss = draft_loss(logits, hidden.targets, hidden.weights) / pieces
                loss.backward()
            total += loss.detach()
        return total

    @torch.no_grad()
    def _blocks(self, generators: list[np.random.Generator]) -> tuple[Frozen, HiddenBlocks]:
        """Return what fixed parts compute for windows, one for each generator, and their hidden blocks."""
        config, device = self.config, self.device
        windows = [self.text.window(config.window, rng) for rng in generators]
        ids, targets = (torch.cat(each).to(device) for each in zip(*windows, strict=True))
        draws = draw(config, generators).to(device)
        frozen = run_frozen(self.model, ids)
        sites = place(draws, targets, frozen.patches, config.block_size)
        if config.distilled:
            chosen = draws.distilled & (sites.content[..., 0] != IGNORE)
            own = own_drafts(self.model, frozen, sites)
            sites = replace(sites, content=torch.where(chosen.unsqueeze(-1), own, sites.content))
        return frozen, hide(draws, sites, ids, config.position_decay)

    def _save(self, optimizers: list[torch.optim.Optimizer]) -> None:
        if self.processes.first:
            save_state(self.out / STATE_FILE, self.draft, optimizers, self.progress)

    def _evaluate(self, report: dict[str, float]) -> None:
        if self.processes.first:
            self._log(report | self._heldout.drafts(self.model))

    def _log(self, figures: dict[str, float]) -> None:
        record = {**asdict(self.progress), **figures}
        append_record(self.out / LOG_FILE, record)
        logger.info("%s", json.dumps(record))
