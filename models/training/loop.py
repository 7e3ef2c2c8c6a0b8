"""Trains the patcher first, then the model; the same on a CPU, on one GPU, and on several that share its weights."""

from __future__ import annotations

import dataclasses
import json
import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from fastblt.models.atomic_file import write_file
from fastblt.models.blt import Blt
from fastblt.models.checkpoint import load_checkpoint, save_checkpoint
from fastblt.models.config import ConfigError, expect
from fastblt.models.initialization import initial_std
from fastblt.models.patcher import Patcher, entropy
from fastblt.models.patching import closes_patch
from fastblt.models.training.batches import sample_windows
from fastblt.models.training.compilation import compile_layers
from fastblt.models.training.corpus import Split
from fastblt.models.training.evaluation import evaluate
from fastblt.models.training.log_file import append_record, drop_broken_record
from fastblt.models.training.losses import Losses
from fastblt.models.training.optimizer import build_optimizers, schedule
from fastblt.models.training.patch_ends import PatchEnds
from fastblt.models.training.processes import Processes
from fastblt.models.training.recipe import TrainConfig
from fastblt.models.training.run_files import CHECKPOINT_FOLDER, LOG_FILE, PATCH_ENDS_FILE, RECIPE_FILE, STATE_FILE
from fastblt.models.training.shared_tensors import whole
from fastblt.models.training.state import (
    Progress,
    load_state,
    optimizer_tensors,
    restore_optimizers,
    save_state,
)

logger = logging.getLogger(__name__)

#: Called after each step with the progress of the phase in [0, 1] and the step's losses.
OnStep = Callable[[Progress, float, dict[str, float]], None]

_ALONE = Processes()


class Trainer:
    """Runs a recipe in a folder: recipe, ``state.safetensors``, ``log.jsonl`` and, at the end, ``checkpoint/``."""

    def __init__(
        self,
        config: TrainConfig,
        train: Split,
        heldout: Split,
        out: Path,
        device: str | torch.device = "cpu",
        processes: Processes = _ALONE,
        *,
        compiled: bool = False,
    ) -> None:
        self.config = config
        self.train_text = train
        self.heldout_text = heldout
        self.out = out
        self.device = torch.device(device)
        self.processes = processes
        for length in (config.window, config.long_window):
            windows = max(1, config.batch * config.window // length)
            expect(windows % processes.count == 0, "batch", config.batch, f"a multiple of {processes.count} processes")
        expect(not compiled or processes.count == 1, "--compile", processes.count, "one process")
        torch.manual_seed(config.seed)
        self.model = Blt(config.model_config)
        initialize(self.model)
        self.model.to(self.device)
        if compiled:
            compile_layers(self.model)
        self.losses = Losses(config, self.model, train, self.device, processes=processes)
        self.progress = Progress("model" if self.model.patcher is None else "patcher")
        self._saved_optimizers: dict[str, Tensor] = {}

    @property
    def _patcher(self) -> Patcher:
        assert self.model.patcher is not None
        return self.model.patcher

    def resume(self) -> bool:
        """Continue the run in the folder, if there is one.

        Raises:
            ConfigError: the run has another recipe.
            CheckpointError: its state is damaged.
        """
        path = self.out / STATE_FILE
        if not path.exists():
            return False
        self._check_recipe()
        self.progress, self._saved_optimizers = load_state(path, self.model)
        if self.progress.threshold:
            self._set_threshold(self.progress.threshold)
        if self.processes.first:
            drop_broken_record(self.out / LOG_FILE)
        return True

    def start_from(self, checkpoint: Path) -> None:
        """Begin with the weights of a checkpoint, including its frozen patcher and its threshold.

        Raises:
            CheckpointError: it is missing or damaged.
            ConfigError: its geometry is not that of the recipe's model.
        """
        found = load_checkpoint(checkpoint)
        threshold = found.config.patching.threshold
        ours = self.model.config
        wanted = dataclasses.replace(ours, patching=dataclasses.replace(ours.patching, threshold=threshold))
        for field in dataclasses.fields(wanted):
            if field.name == "name":
                continue
            has, needs = getattr(found.config, field.name), getattr(wanted, field.name)
            if has != needs:
                raise ConfigError(f"{checkpoint}: found {field.name} {has}, expected {needs} as in the recipe's model")
        self.model.load_state_dict(found.state_dict())
        self.progress = Progress("model")
        self._set_threshold(threshold)

    def run(self, max_seconds: float, on_step: OnStep | None = None) -> bool:
        """Train until the recipe is done or ``max_seconds`` of wall time have passed.

        Returns:
            Whether the recipe is done; its checkpoint is then in the folder.
        """
        self.out.mkdir(parents=True, exist_ok=True)
        if self.progress.total_seconds == 0 and self.processes.first:
            self._write_recipe()
        deadline = time.monotonic() + max_seconds
        if self.progress.phase == "patcher":
            if not self._phase(self._patcher, self.losses.patcher, deadline, on_step):
                return False
            self._set_threshold(self._find_threshold())
            self._start_phase("model")
        if self.progress.phase == "model":
            if self.model.patcher is not None:
                self._patcher.requires_grad_(False)
            # Processes do not share a file that grows: each lets the patcher read its windows.
            if self.config.patch_once and self.processes.count == 1 and not self._find_patch_ends(deadline):
                return False
            if not self._phase(self.model, self.losses.rest, deadline, on_step):
                return False
            self._start_phase("done")
        if self.processes.first:
            save_checkpoint(self.out / CHECKPOINT_FOLDER, self.model, torch.float16)
        self.processes.wait()
        return True

    def _find_patch_ends(self, deadline: float) -> bool:
        """Find the patches of the whole text, or what is missing of them; return False if the deadline passes first."""
        began, before = self._clock(), self.progress.total_seconds
        ends = PatchEnds(self._patcher, self.model.config.patching, self.train_text, self.out / PATCH_ENDS_FILE)

        def on_document(done: float) -> bool:
            self.progress.total_seconds = before + self._clock() - began
            logger.info("patches of %.1f %% of the text found", 100 * done)
            return time.monotonic() < deadline

        self.losses.patch_ends = ends
        return ends.find(on_document)

    def _write_recipe(self) -> None:
        write_file(self.out / RECIPE_FILE, json.dumps(dataclasses.asdict(self.config), indent=1) + "\n")

    def _check_recipe(self) -> None:
        path = self.out / RECIPE_FILE
        if not path.exists():
            return
        ours, theirs = dataclasses.asdict(self.config), dataclasses.asdict(TrainConfig.load(path))
        for name, value in ours.items():
            if name not in ("eval_every", "save_every") and value != theirs[name]:
                raise ConfigError(
                    f"{path}: found a run with {name}={theirs[name]!r}, expected {value!r} as in the recipe"
                )

    def _start_phase(self, name: str) -> None:
        p = self.progress
        self.progress = Progress(name, 0, 0.0, p.total_seconds, 0, p.threshold)
        self._saved_optimizers = {}
        self._save([])

    def _save(self, optimizers: list[torch.optim.Optimizer]) -> None:
        save_state(self.out / STATE_FILE, self.model, optimizers, self.progress, write=self.processes.first)

    def _clock(self) -> float:
        # Processor time ignores pauses and other processes; a GPU run waits for the device, so wall time is right.
        return time.process_time() if self.device.type == "cpu" else time.monotonic()

    def _phase(
        self,
        module: nn.Module,
        loss_of: Callable[[float, np.random.Generator], tuple[Tensor, dict[str, float]]],
        deadline: float,
        on_step: OnStep | None,
    ) -> bool:
        """Optimize ``module`` until its budget is spent (True) or the deadline passes (False)."""
        config, progress = self.config, self.progress
        budget = config.patcher_seconds if progress.phase == "patcher" else config.budget_seconds
        if self.processes.count > 1:
            from fastblt.models.training.sharding import shard  # takes a second to import

            loss_of = shard(module, loss_of, self.processes, self.device)
        optimizers = build_optimizers(module, config.matrix_lr, config.embedding_lr, config.weight_decay)
        restore_optimizers(optimizers, self.model, self._saved_optimizers)
        parameters = [p for p in module.parameters() if p.requires_grad]
        saved = progress.seconds
        evaluated = saved - saved % config.eval_every  # runs in pieces shorter than eval_every are evaluated, too
        report: dict[str, float] = {}  # stays empty when a run was killed after its last step
        for seconds in self._ticks(budget, deadline):
            done = progress.seconds / budget
            rng = np.random.default_rng([config.seed, progress.phase == "model", progress.step])
            set_rates(optimizers, schedule(done, config.warmup, config.hold))
            loss, report = loss_of(done, rng)
            for optimizer in optimizers:
                optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, config.clip)
            for optimizer in optimizers:
                optimizer.step()
            progress.step += 1
            progress.tokens += config.batch * config.window
            spent = self.processes.same(seconds(), self.device)
            progress.seconds += spent
            progress.total_seconds += spent
            if on_step:
                on_step(progress, min(1.0, progress.seconds / budget), report)
            if progress.seconds - saved >= config.save_every:
                self._save(optimizers)
                saved = progress.seconds
            if progress.phase == "model" and progress.seconds - evaluated >= config.eval_every:
                self._evaluate(report)
                evaluated = progress.seconds
        self._save(optimizers)
        self._saved_optimizers = optimizer_tensors(optimizers, self.model)  # for the next call of `run`
        self._put_together()
        if progress.seconds >= budget:
            self._evaluate(report)
        return progress.seconds >= budget

    def _put_together(self) -> None:
        """Give every process the whole model again."""
        if self.processes.count > 1:
            self.model = self.losses.model = _copy(self.model, self.device).train()

    def _ticks(self, budget: float, deadline: float) -> Iterator[Callable[[], float]]:
        """Yield one function per step; it returns the training seconds since the step began."""
        while self.progress.seconds < budget and self.processes.agree(time.monotonic() < deadline, self.device):
            begin = self._clock()
            yield lambda begin=begin: self._clock() - begin  # type: ignore[misc]

    @torch.no_grad()
    def _find_threshold(self) -> float:
        """Bisect the threshold to the wanted bytes per patch on training text."""
        ids, _ = sample_windows(self.train_text, 64, 512, np.random.default_rng(self.config.seed))
        entropies = entropy(self._patcher(ids.to(self.device)))
        low, high = 0.0, float(entropies.max())
        for _ in range(30):
            middle = (low + high) / 2
            rule = dataclasses.replace(self.model.config.patching, threshold=middle)
            rate = ids.numel() / int(closes_patch(entropies, rule).sum())
            low, high = (middle, high) if rate < self.config.bytes_per_patch else (low, middle)
        return round((low + high) / 2, 4)

    def _set_threshold(self, threshold: float) -> None:
        rule = dataclasses.replace(self.model.config.patching, threshold=threshold)
        self.model.config = dataclasses.replace(self.model.config, patching=rule)
        self.progress.threshold = threshold

    def _evaluate(self, report: dict[str, float]) -> None:
        record = {**dataclasses.asdict(self.progress), **report}
        alone = self.device.type == "cpu" and self.processes.count == 1
        reference = self.model if alone or self.progress.phase != "model" else _copy(self.model, torch.device("cpu"))
        if not self.processes.first:
            return
        if self.progress.phase == "model":
            record |= evaluate(reference, self.heldout_text)
        append_record(self.out / LOG_FILE, record)
        logger.info("%s", record)


def _copy(model: Blt, device: torch.device) -> Blt:
    """Return a copy whose parameters no processes share, in evaluation mode."""
    copy = Blt(model.config)
    copy.load_state_dict({name: whole(tensor) for name, tensor in model.state_dict().items()})
    return copy.to(device).eval()


def initialize(model: nn.Module) -> None:
    """Draw random weights with the standard deviations of `initial_std`; norms stay 1."""
    for name, p in model.named_parameters():
        if p.ndim >= 2:
            nn.init.normal_(p, std=initial_std(name, p.shape))


def set_rates(optimizers: list[torch.optim.Optimizer], factor: float) -> None:
    """Scale every learning rate to ``factor`` of its peak."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["peak_lr"] * factor
