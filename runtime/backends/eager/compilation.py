"""Compiles modules with ``torch.compile``, and reports in one line where that is not possible."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fastblt.runtime.backends.entry import BackendError

Program = Callable[..., Any]

#: Arguments of ``torch.compile``. A program is only called with what it was compiled for, so that nothing has to be
#: checked before each call. On a CPU, operators that are called from C++ instead of Python make a call of a small part
#: 2.4 times as fast; neither frozen weights nor max-autotune were faster (docs/performance.md).
_UNGUARDED = {"guard_filter_fn": torch.compiler.skip_all_guards_unsafe}
OPTIONS: Mapping[str, Mapping[str, Any]] = {
    "cpu": {"options": {**_UNGUARDED, "cpp_wrapper": True}},
    "cuda": {"options": {**_UNGUARDED, **torch._inductor.list_mode_options("reduce-overhead")}},
}


class CompilerError(BackendError):
    """Reports that nothing can be compiled on this machine."""


class Compiler:
    """Compiles for one device.

    Args:
        device: ``cpu`` or ``cuda``.
        arguments: of ``torch.compile``; None: `OPTIONS`.

    Raises:
        CompilerError: there is no C++ compiler where one is needed.
    """

    def __init__(self, device: str, arguments: Mapping[str, Any] | None = None) -> None:
        self._arguments = OPTIONS[device] if arguments is None else arguments
        self._steps = device == "cuda"
        if device == "cpu" and arguments is None:
            _require_cxx()

    def compile(self, name: str, module: nn.Module, calls: Sequence[Sequence[Tensor]], dynamic: int | None) -> Program:
        """Compile a module, and call it once with each of some arguments.

        Args:
            name: of what the module computes, for the error.
            module: returns and takes tensors.
            calls: arguments; they differ at most in the length of one.
            dynamic: index of that one, int64 [length]; None: all shapes are fixed.

        Raises:
            CompilerError: it cannot be compiled here.
        """

        def call(*arguments: Tensor) -> Any:
            return module(*arguments)

        # Programs are kept by the code that they were compiled from: each needs code of its own.
        call.__code__ = call.__code__.replace()
        program = torch.compile(call, fullgraph=True, dynamic=None if dynamic is not None else False, **self._arguments)
        try:
            for arguments in calls:
                if dynamic is not None:
                    torch._dynamo.mark_dynamic(arguments[dynamic], 0)
                self.run(program, *arguments)
        except Exception as error:  # of compilers, linkers and drivers, of any kind
            raise CompilerError(
                f"eager-compiled: {name}: torch.compile failed here ({_reason(error)}), expected a working C++ "
                "compiler and Python's headers on a CPU (apt-get install g++ python3-dev), or Triton on a GPU"
            ) from error
        return program

    def run(self, program: Program, *arguments: Tensor) -> Any:
        """Call a program. On a GPU its results are overwritten by the next call of any program."""
        if self._steps:
            torch.compiler.cudagraph_mark_step_begin()
        return program(*arguments)


def _require_cxx() -> None:
    """Raise where the C++ compiler that PyTorch would call does not exist."""
    cxx = os.environ.get("CXX", "g++")
    if shutil.which(cxx) is None:
        raise CompilerError(
            f"eager-compiled: found no C++ compiler {cxx!r}, expected one, which torch.compile needs on a CPU; "
            "install it (apt-get install g++), or name another one in CXX"
        )


def _reason(error: Exception) -> str:
    """Return the line of an error's text that names the cause."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return next((line for line in lines if "error:" in line), lines[0])[:300]
