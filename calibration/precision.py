"""Describes the precisions of layers (of weights, or of weights and inputs), and the schemes that users name."""

from __future__ import annotations

from dataclasses import dataclass

#: Blocks of TensorRT and of ONNX Runtime's fused kernel, largest first.
BLOCKS = (128, 64, 32, 16)
SCHEMES = ("w8", "w4", "int8", "fp8")
#: How weights are rounded.
ROUNDINGS = ("rtn", "gptq")
#: How the ranges of inputs are chosen.
RANGES = ("minmax", "percentile", "entropy", "mse")
#: Largest magnitude of a quantized weight or input, by type.
LARGEST = {"int8": 127.0, "int4": 7.0, "fp8": 448.0}
BITS = {"int8": 8, "int4": 4, "fp8": 8}


class CalibrationError(ValueError):
    """Reports a quantization that cannot be done as requested, or whose result is not good enough."""


@dataclass(frozen=True)
class Precision:
    """Describes how one linear layer is quantized; symmetric, i.e. zero points are 0."""

    weights: str
    """``int8``, ``int4`` or ``fp8`` (E4M3)."""
    block: int = 0
    """Inputs that share a scale; 0: all inputs of an output channel."""
    activations: bool = False
    """Whether inputs are quantized, too, to the same type with one scale."""

    @property
    def bits(self) -> int:
        """Return the bits of a weight."""
        return BITS[self.weights]

    @property
    def label(self) -> str:
        """Return the name in reports, e.g. ``w4/32`` or ``int8``."""
        if self.activations:
            return self.weights
        return f"{'fp8' if self.weights == 'fp8' else f'w{self.bits}'}{f'/{self.block}' if self.block else ''}"

    def fitted(self, inputs: int) -> Precision:
        """Return the precision with a block that divides ``inputs``, because TensorRT only accepts whole blocks.

        If no smaller block fits, this is 8 bits and a scale per channel; 4 bits would be too few for that.
        """
        if not self.block:
            return self
        fitting = next((block for block in BLOCKS if block <= self.block and inputs % block == 0), 0)
        return Precision(self.weights if fitting else "int8", fitting, self.activations)


@dataclass(frozen=True)
class Scheme:
    """Describes a kind of quantization that a user can choose."""

    name: str
    precision: Precision
    fallback: Precision | None
    """Precision of layers for which `precision` exceeds the budget; None: they keep the bundle's own."""
    needs_activations: bool
    """Whether the inputs of layers must be known."""


def parse_scheme(name: str, block: int | None = None) -> Scheme:
    """Return the scheme with this name.

    Args:
        name: one of `SCHEMES`.
        block: of ``w8`` (0: per channel, the default; or 128) and ``w4`` (32, 64, 128; default 32).

    Raises:
        CalibrationError: there is no such scheme, or it has no such blocks.
    """
    if name not in SCHEMES:
        raise CalibrationError(f"--scheme: found {name!r}, expected one of {', '.join(SCHEMES)}")
    allowed = {"w8": (0, 128), "w4": (32, 64, 128)}.get(name, (0,))
    if block is not None and block not in allowed:
        expected = " or ".join(str(size) for size in allowed)
        raise CalibrationError(f"--block: found {block}, expected {expected} with scheme {name}")
    size = allowed[0] if block is None else block
    if name == "w8":
        return Scheme(name, Precision("int8", size), None, False)
    if name == "w4":
        return Scheme(name, Precision("int4", size), Precision("int8"), False)
    return Scheme(name, Precision(name, activations=True), Precision("int8") if name == "int8" else None, True)
