"""Deployment stack for byte-level language models: export to ONNX, then run fast through ONNX Runtime.

The names below are imported when they are first used, so that ``import fastblt`` costs nothing, and running a bundle
neither pays for nor requires the packages that only the export needs. Everything else is imported from
``fastblt.models``, ``fastblt.export``, ``fastblt.runtime`` or ``fastblt.calibration``.
"""

TYPE_CHECKING = False  # as in typing, which takes longer to import than this package
if TYPE_CHECKING:
    from fastblt.runtime.blt_runtime import BltRuntime
    from fastblt.runtime.generation import ByteStream, Chunk, Generation
    from fastblt.runtime.huggingface.causal_lm import ORTBltForCausalLM
    from fastblt.runtime.request import GenerationRequest
    from fastblt.runtime.sequence.likelihood import Score
    from fastblt.runtime.sequences.sequence import Sequence

__version__ = "0.2.0"

__all__ = [
    "BltRuntime",
    "ByteStream",
    "Chunk",
    "Generation",
    "GenerationRequest",
    "ORTBltForCausalLM",
    "Score",
    "Sequence",
    "__version__",
]

_MODULES = {
    "BltRuntime": "fastblt.runtime.blt_runtime",
    "ByteStream": "fastblt.runtime.generation",
    "Chunk": "fastblt.runtime.generation",
    "Generation": "fastblt.runtime.generation",
    "GenerationRequest": "fastblt.runtime.request",
    "ORTBltForCausalLM": "fastblt.runtime.huggingface.causal_lm",
    "Score": "fastblt.runtime.sequence.likelihood",
    "Sequence": "fastblt.runtime.sequences.sequence",
}


def __getattr__(name: str) -> object:
    """Import a public name when it is first used (PEP 562)."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    found: object = getattr(import_module(_MODULES[name]), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
