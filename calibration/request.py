"""Describes and validates what a quantization is asked to do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from fastblt.calibration.activation_ranges import RANGES
from fastblt.calibration.bundle_quantizer import ROUNDINGS
from fastblt.calibration.precision import CalibrationError, Scheme, parse_scheme
from fastblt.calibration.trace_recorder import RecordingSetting
from fastblt.runtime.backends.protocol import Ids

#: Lets the calibration choose.
AUTO = "auto"


@dataclass(frozen=True)
class CalibrationRequest:
    """Holds the settings of a quantization.

    Raises:
        CalibrationError: a setting is invalid; the message names the option, what was found and what was expected.
    """

    scheme: str
    """One of `fastblt.calibration.precision.SCHEMES`."""
    prompts: tuple[bytes, ...]
    """Text that is continued to record what layers are fed."""
    windows: tuple[Ids, ...]
    """Held-out text that quality is measured on; int64 [1 + bytes] each, beginning with BOS."""
    budget: Mapping[str, float] = field(default_factory=lambda: {"bpb": 0.01})
    """Largest losses, see `fastblt.calibration.quality.parse_budget`."""
    block: int | None = None
    """Inputs of a layer that share a scale, see `fastblt.calibration.precision.parse_scheme`."""
    rounding: str = AUTO
    """How weights are rounded: one of `ROUNDINGS`, or `AUTO`."""
    ranges: str = AUTO
    """How the range of a layer's inputs is chosen: one of `RANGES`, or `AUTO`, the best of them."""
    samples: int = 256
    """Calls of each graph whose inputs are recorded."""
    new_bytes: int = 64
    """Bytes generated after each prompt while inputs are recorded."""
    seed: int = 0
    anchors: int = 8
    """Positions per window after which drafts and blocks are measured."""
    patcher: bool = False
    """Quantize the patcher, too."""
    uniform: bool = False
    """Fail instead of keeping some layers in higher precision."""
    sensitivity: bool = False
    """Measure every group of layers alone even if the budget does not require it."""

    def __post_init__(self) -> None:
        """Validate every setting."""
        parse_scheme(self.scheme, self.block)
        if not self.windows:
            raise CalibrationError("held-out text: found none, expected at least one window")
        for option, value, known in (("rounding", self.rounding, ROUNDINGS), ("range", self.ranges, RANGES)):
            if value not in (AUTO, *known):
                raise CalibrationError(f"--{option}: found {value!r}, expected {AUTO}, {', '.join(known)}")
        if self.needs_traces:
            _ = self.recording

    @property
    def parsed_scheme(self) -> Scheme:
        """Return the scheme that `scheme` and `block` name."""
        return parse_scheme(self.scheme, self.block)

    @property
    def chosen_rounding(self) -> str:
        """Return the rounding to use.

        GPTQ lost least with every integer type (docs/quantization.md); E4M3 is not a grid that it can work on.
        """
        if self.rounding != AUTO:
            return self.rounding
        return "rtn" if self.scheme == "fp8" else "gptq"

    @property
    def tries_ranges(self) -> bool:
        """Whether all ways to choose the ranges of inputs are compared."""
        scheme = self.parsed_scheme
        return scheme.needs_activations and self.ranges == AUTO and scheme.name != "fp8"

    @property
    def needs_traces(self) -> bool:
        """Whether the inputs of layers must be recorded."""
        return self.parsed_scheme.needs_activations or self.chosen_rounding == "gptq"

    @property
    def recording(self) -> RecordingSetting:
        """Return what to record."""
        return RecordingSetting(self.prompts, self.samples, self.new_bytes, self.seed)
