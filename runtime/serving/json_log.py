"""Writes the log as one JSON object a line: what happened, when, to which request; no prompts, unless asked for."""

from __future__ import annotations

import json
import logging
import time
import traceback
from typing import Any

#: Loggers of the server and of what it runs in.
_LOGGERS = ("fastblt.serving", "uvicorn.error")


class JsonFormatter(logging.Formatter):
    """Turns a record into a line."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        entry: dict[str, Any] = {
            "time": f"{moment}.{int(record.msecs):03}Z",
            "level": record.levelname.lower(),
            "message": record.getMessage(),
            **getattr(record, "facts", {}),
        }
        if record.exc_info and record.exc_info[1] is not None:
            error = record.exc_info[1]
            frames = traceback.extract_tb(error.__traceback__)
            entry["error"] = f"{type(error).__name__}: {error}"[:500]
            entry["where"] = [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in frames[-12:]]
        return json.dumps(entry, default=str)


def start_log(level: int = logging.INFO) -> None:
    """Write the log to standard error from now on."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter())
    for name in _LOGGERS:
        logger = logging.getLogger(name)
        logger.handlers = [handler]
        logger.setLevel(level)
        logger.propagate = False
