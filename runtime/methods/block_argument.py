"""Parses the argument of block methods, ``B@RULE`` and options such as ``8@eb1.0+closed``; what these methods share."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fastblt.models.config import BltConfig
from fastblt.runtime.methods.denoising import FirstPass, OneStep, Rule, denoise_block, parse_rule
from fastblt.runtime.methods.method import MethodError
from fastblt.runtime.methods.replay_profile import STEPS, Rates, ReplayError
from fastblt.runtime.sequence.requests import Latent, Steps
from fastblt.runtime.sequence.sampling import Draft, Sampler

if TYPE_CHECKING:
    from typing import Self  # Python 3.11

_LATENTS: dict[str, Latent] = {"closed": "closed", "partial": "partial"}
#: The block's first byte comes from the block too (paper), not from the row of the byte before it.
_BLOCK_ONLY = "block"


@dataclass(frozen=True)
class BlockArgument:
    """Holds size, unmasking rule and options of a block method."""

    name: str
    """The complete name of the method."""
    size: int
    """Bytes of a block."""
    rule: Rule
    latent: Latent | None
    """Which latent the block reads; None: the one that the model's blocks were trained on."""
    clean_first: bool
    """Whether the row of the byte before the block decides the block's first byte."""

    @classmethod
    def parse(cls, method: str, text: str, *, rule: str) -> BlockArgument:
        """Parse ``B``, ``B@RULE`` or ``B@RULE+OPTION...``; options: ``closed`` or ``partial``, and ``block``.

        Args:
            method: name of the method.
            text: its argument.
            rule: the default rule, see `parse_rule`.

        Raises:
            MethodError: it is malformed; the message quotes it.
        """
        name = f"{method}:{text}"
        head, *options = text.split("+")
        size, _, rule_text = head.partition("@")
        if not size.isascii() or not size.isdigit() or int(size) < 1:
            raise MethodError(f"method {name!r}: found block size {size!r}, expected a positive integer")
        latents = [_LATENTS[option] for option in options if option in _LATENTS]
        if len(latents) > 1 or len(set(options)) != len(options) or not {*options} <= {*_LATENTS, _BLOCK_ONLY}:
            raise MethodError(f"method {name!r}: found options {options}, expected closed or partial, and block")
        try:
            parsed = parse_rule(rule_text or rule)
        except MethodError as error:
            raise MethodError(f"method {name!r}: {error}") from None
        return cls(name, int(size), parsed, latents[0] if latents else None, _BLOCK_ONLY not in options)

    def latent_for(self, config: BltConfig) -> Latent:
        """Return which latent the block of a model reads."""
        return self.latent or config.block_latent

    def denoise(self, sampler: Sampler, first_pass: FirstPass) -> Steps[Draft]:
        """Decide one block by `fastblt.runtime.methods.denoising.denoise_block`."""
        return denoise_block(sampler, self.size, self.rule, first_pass, clean_first=self.clean_first)

    def replay_steps(self, rates: Rates) -> float:
        """Return the decoder calls that a block takes in a replay.

        Raises:
            ReplayError: there is no such rate, or a block has fewer bytes to decide than it has steps.
        """
        if isinstance(self.rule, OneStep):
            return 1.0
        steps = rates.needed(self.name, STEPS)
        most = max(1, self.size - self.clean_first)
        if steps > most:
            raise ReplayError(f"--replay: found steps={steps:g} for {self.name}, expected at most {most}")
        return steps

    def check(self, config: BltConfig) -> None:
        """Raise `MethodError` where a model cannot denoise such blocks."""
        if not config.block_size:
            raise MethodError(
                f"method {self.name!r}: {config.name} has no [MASK] row, expected a BLT-D model (ar and s:K run on any)"
            )
        if self.size > config.block_size:
            raise MethodError(
                f"method {self.name!r}: found blocks of {self.size} bytes, expected at most {config.block_size}, "
                f"which {config.name} was trained on"
            )


@dataclass(frozen=True)
class BlockMethod:
    """Is the base of methods over blocks; what they do with blocks is their own."""

    argument: BlockArgument

    @property
    def name(self) -> str:
        """Return the complete name."""
        return self.argument.name

    def check(self, config: BltConfig) -> None:
        """Accept a model with a [MASK] row, and blocks no longer than those it was trained on."""
        self.argument.check(config)

    @property
    def rule(self) -> Rule:
        """Return the rule that chooses the bytes to decide in each step."""
        return self.argument.rule

    def with_rule(self, rule: Rule) -> Self:
        """Return the same method with another rule; it keeps its name."""
        return dataclasses.replace(self, argument=dataclasses.replace(self.argument, rule=rule))
