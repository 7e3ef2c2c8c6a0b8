"""Deployment stack for byte-level language models: export to ONNX, then run fast through ONNX Runtime.

The root package holds only the version. Import what is needed from ``fastblt.models``,
``fastblt.export``, ``fastblt.runtime`` or ``fastblt.calibration``: that way the runtime never pays for
(or requires) the packages that only the export needs.
"""

__version__ = "0.1.0"
