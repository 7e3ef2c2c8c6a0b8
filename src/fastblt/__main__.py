"""The program ``fastblt``, and ``python -m fastblt``: the command line with signals and standard streams in order."""

from __future__ import annotations

import os
import sys


def main() -> None:
    """Run the command that the arguments name, and end the process with its exit status."""
    try:
        # The signals first: what is imported later takes seconds.
        from fastblt.commands.signals import SIGNALS
        from fastblt.commands.streams import open_descriptors

        open_descriptors()
        SIGNALS.install()
        status = SIGNALS.status(_run())
        SIGNALS.finish()
    except KeyboardInterrupt as stopped:
        os._exit(getattr(stopped, "status", 130))
    if SIGNALS.received is not None:
        os._exit(status)  # threads that still work would delay the end
    sys.exit(status)


def _run() -> int:
    from fastblt.commands.streams import prepare_streams

    prepare_streams()
    from fastblt.cli import app

    try:
        app(prog_name="fastblt")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 0
    return 0


if __name__ == "__main__":
    main()
