"""The commands of ``fastblt``, one module each: a function ``command`` that declares the options and does the work.

A module is imported when its command is used (see `fastblt.cli`). It imports what is slow to import (PyTorch, ONNX,
ONNX Runtime) inside its functions, after the arguments have been checked.
"""
