"""What ``--replay`` says: the rates at which a benchmark drives the control flow of each method.

Items, with commas between; a later item wins over an earlier one, one for a method over one for all:

* ``acceptance=0.91``: part of the drafted bytes that verification keeps (``s``, ``dv``); of ``auto``, which chooses its
  draft lengths itself, the chance of each byte given that those before it are kept.
* ``steps=2.92``: decoder calls that a block takes (``d``, ``dv``; rule ``one`` always takes 1).
* ``patch=2.05``: bytes per patch on average, all methods alike (the paper's models: 4).
* ``METHOD/acceptance=...`` or ``METHOD/steps=...``: for that method alone, such as ``s:16/acceptance=0.77``.
* ``paper``: the paper's figures of its 1B models, French to English (`method.md`), also for a method that differs from
  the paper's in options only (``dv:8@one+partial``).
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

from fastblt.models.config import BltConfig
from fastblt.runtime.methods import Method, parse_method
from fastblt.runtime.methods.block_argument import BlockArgument
from fastblt.runtime.methods.block_diffusion import BlockDiffusion
from fastblt.runtime.methods.denoising import OneStep
from fastblt.runtime.methods.diffusion_verification import DiffusionVerification
from fastblt.runtime.methods.self_speculation import SelfSpeculation

ACCEPTANCE, STEPS, PATCH = "acceptance", "steps", "patch"
_FORM = "expected paper, or acceptance=A, steps=S or patch=P, the first two also as METHOD/KEY=VALUE"
_PAPER_NAME = "paper"
_PAPER_PATCH = 2.05
_DEFAULT_PATCH = 4.0
#: Steps are decoder calls / blocks; for dv:8@0.3 less the verification: 176 calls, two E+G calls a round, 134 of them.
_PAPER: dict[str, dict[str, float]] = {
    "s:4": {ACCEPTANCE: 0.9677},
    "s:8": {ACCEPTANCE: 0.9114},
    "s:16": {ACCEPTANCE: 0.7693},
    "d:4@0.7": {STEPS: 213 / 128},
    "d:8@0.7": {STEPS: 187 / 64},
    "d:16@0.7": {STEPS: 100 / 32},
    "d:8@eb1.0": {STEPS: 244 / 64},
    "dv:8@one": {ACCEPTANCE: 0.8034},
    "dv:8@0.3": {ACCEPTANCE: 0.8381, STEPS: 176 / 67 - 1},
    "dv:16@one": {ACCEPTANCE: 0.7719},
}
#: Lowest and highest value, in words too; how high steps and patch really may be depends on the method and the model.
_RANGES = {
    ACCEPTANCE: (0.0, 1.0, "a number in 0..1"),
    STEPS: (1.0, 1e6, "a number >= 1"),
    PATCH: (1.0, 1e6, "a number >= 1"),
}


class ReplayError(ValueError):
    """A replay that is malformed, or that no run of a method can show."""


@dataclass(frozen=True)
class ReplayProfile:
    """How a method is driven."""

    draft_rate: float
    """Chance that a byte drafted by a decoder row of its own agrees, given that those before it do."""
    block_rate: float
    """The same of a byte of a block."""
    patch_rate: float
    """Chance that a patch goes on after each of its bytes, below the maximum length."""
    patch: float
    """Bytes per patch."""
    acceptance: float | None = None
    """Accepted / drafted that the rates were made for."""
    steps: float | None = None
    """Decoder calls of a block."""
    clean_first: bool = True
    """Whether the row before a block decides the block's first byte."""
    clean_drafts: bool = False
    """Whether that row is part of the draft, not the model's own word."""

    @property
    def first_is_sure(self) -> bool:
        """Whether a block's first byte is the model's own word; ``block_rate`` is about the others then."""
        return self.clean_first and not self.clean_drafts


@dataclass(frozen=True)
class ReplayRates:
    """A parsed ``--replay``."""

    text: str
    """As given."""
    patch: float = _DEFAULT_PATCH
    general: dict[str, float] = field(default_factory=dict)
    by_method: dict[str, dict[str, float]] = field(default_factory=dict)
    paper: bool = False

    @classmethod
    def parse(cls, text: str, measured: Collection[str]) -> ReplayRates:
        """Parse the module's syntax.

        Args:
            text: as the user gave it.
            measured: names of the methods that are measured; no item may be about another one.

        Raises:
            ReplayError: it is malformed; the message quotes the item.
        """
        patch, paper = _DEFAULT_PATCH, False
        general: dict[str, float] = {}
        by_method: dict[str, dict[str, float]] = {}
        for item in text.split(","):
            if item.strip() == _PAPER_NAME:
                patch, paper = _PAPER_PATCH, True
                continue
            method, key, value = _parse_item(item.strip())
            if method and (key == PATCH or method not in measured):
                raise ReplayError(
                    f"--replay: found {item.strip()!r}, expected acceptance or steps of one of {', '.join(measured)}"
                )
            if key == PATCH:
                patch = value
            elif method:
                by_method.setdefault(method, {})[key] = value
            else:
                general[key] = value
        return cls(text, patch, general, by_method, paper)

    def value(self, method: str, key: str) -> float | None:
        """What holds for a method; None where nothing was said."""
        paper = _PAPER.get(method.partition("+")[0], {}) if self.paper else {}
        for source in (self.by_method.get(method, {}), paper, self.general):
            if key in source:
                return source[key]
        return None

    def profile(self, name: str, config: BltConfig) -> ReplayProfile:
        """How a method is driven on a model.

        Raises:
            MethodError: no such method.
            ReplayError: a figure is missing, or no run of the method can show it.
        """
        longest = config.patching.max_patch_length or _LONGEST
        if self.patch > longest:
            raise ReplayError(f"--replay: found patch={self.patch:g}, expected at most {longest}, the longest patch")
        patch_rate = rate_for(self.patch - 1, longest - 1)
        return self._profile(parse_method(name), patch_rate)

    def _profile(self, method: Method, patch_rate: float) -> ReplayProfile:
        name = method.name
        if isinstance(method, SelfSpeculation):
            acceptance = self._needed(name, ACCEPTANCE)
            rate = rate_for(acceptance * method.k, method.k)
            return ReplayProfile(rate, rate, patch_rate, self.patch, acceptance)
        if isinstance(method, BlockDiffusion):
            steps, clean_first = self._steps(method.argument), method.argument.clean_first
            return ReplayProfile(1.0, 1.0, patch_rate, self.patch, steps=steps, clean_first=clean_first)
        if isinstance(method, DiffusionVerification):
            return self._block_draft(method.argument, patch_rate)
        if name == "auto":
            # Draft lengths are its own choice: no acceptance can be promised.
            return ReplayProfile(*self._adaptive(name), patch_rate, self.patch, steps=1.0, clean_drafts=True)
        return ReplayProfile(1.0, 1.0, patch_rate, self.patch)

    def _block_draft(self, argument: BlockArgument, patch_rate: float) -> ReplayProfile:
        acceptance = self._needed(argument.name, ACCEPTANCE)
        # With the open patch's latent, the row before the block is the model's own: what it drafts is always kept.
        clean_drafts = argument.latent == "closed"
        sure = argument.clean_first and not clean_drafts
        if sure and acceptance * argument.size < 1:
            raise ReplayError(
                f"--replay: found acceptance={acceptance:g} for {argument.name}, expected at least "
                f"{1 / argument.size:g}: its first byte is always kept"
            )
        rate = rate_for(acceptance * argument.size - sure, argument.size - sure)
        steps = self._steps(argument)
        return ReplayProfile(rate, rate, patch_rate, self.patch, acceptance, steps, argument.clean_first, clean_drafts)

    def _adaptive(self, name: str) -> tuple[float, float]:
        """Rates of a byte for drafts whose length is not known: the acceptance itself, or those of the paper's k=8."""
        own = self.by_method.get(name, {}).get(ACCEPTANCE)
        if own is None and self.paper:
            return rate_for(8 * _PAPER["s:8"][ACCEPTANCE], 8), rate_for(8 * _PAPER["dv:8@one"][ACCEPTANCE], 8)
        rate = self._needed(name, ACCEPTANCE)
        return rate, rate

    def _steps(self, argument: BlockArgument) -> float:
        if isinstance(argument.rule, OneStep):
            return 1.0
        steps = self._needed(argument.name, STEPS)
        most = max(1, argument.size - argument.clean_first)
        if steps > most:
            raise ReplayError(f"--replay: found steps={steps:g} for {argument.name}, expected at most {most}")
        return steps

    def _needed(self, method: str, key: str) -> float:
        value = self.value(method, key)
        if value is None:
            raise ReplayError(f"--replay: found no {key} for {method}, expected {key}=VALUE or {method}/{key}=VALUE")
        return value


#: Stands for "no limit" of a patch's length.
_LONGEST = 512


def _parse_item(item: str) -> tuple[str, str, float]:
    left, _, text = item.partition("=")
    method, _, key = left.rpartition("/")
    if key not in _RANGES:
        raise ReplayError(f"--replay: found {item!r}, {_FORM}")
    low, high, words = _RANGES[key]
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not low <= value <= high:
        raise ReplayError(f"--replay: found {item!r}, expected {words} after {key}=")
    return method, key, value


def rate_for(mean: float, count: int) -> float:
    """The rate a with a + a^2 + ... + a^count = mean: of ``count`` bytes so many come before the first that fails.

    Args:
        mean: 0..count.
        count: >= 0.
    """
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        if sum(middle**power for power in range(1, count + 1)) < mean:
            low = middle
        else:
            high = middle
    return 1.0 if mean >= count else high
