"""Interrupts code between two of its instructions, as Ctrl-C may."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType, ModuleType
from typing import Any


class Interrupts:
    """Runs code of some modules and raises KeyboardInterrupt before one of their instructions.

    Args:
        modules: whose instructions count.
    """

    def __init__(self, *modules: ModuleType) -> None:
        self._files = {module.__file__ for module in modules}
        self._left = 0

    def interrupt(self, run: Callable[[], object], after: int) -> bool:
        """Run, but for what comes after so many instructions; return whether there was any."""
        self._left = after
        before = sys.gettrace()
        sys.settrace(self._enter)
        try:
            run()
        except KeyboardInterrupt:
            return True
        finally:
            sys.settrace(before)
        return False

    def _enter(self, frame: FrameType, event: str, _: Any) -> Any:
        if frame.f_code.co_filename not in self._files:
            return None
        frame.f_trace_opcodes = True
        return self._step

    def _step(self, frame: FrameType, event: str, _: Any) -> Any:
        if event == "opcode":
            self._left -= 1
            if self._left < 0:
                raise KeyboardInterrupt
        return self._step
