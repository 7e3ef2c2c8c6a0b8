"""Specifies how a model is served: limits, keys, what browsers may do."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path

from fastblt.models import limits
from fastblt.models.shown import shown
from fastblt.runtime.methods import parse_method
from fastblt.runtime.serving.api_keys import ApiKeys

#: New bytes of a text whose request does not specify any, where the model has room for them.
DEFAULT_NEW_BYTES = 256


@dataclass(frozen=True)
class ServingSettings:
    """Holds what an operator decides; plain values, which other processes can be sent.

    Raises:
        MethodError: the method does not exist, or is malformed.
        ValueError: a number is out of range.
    """

    model_name: str | None = None
    """What clients call the model; None: the name in its configuration."""
    method: str | None = None
    """Method of requests that name none; None: ``auto``, or ``s:8`` for those with a seed."""
    workers: int | None = None
    """Threads that generate; None: as many as suit the machine (`fastblt.runtime.serving.scheduler`)."""
    slots: int | None = None
    """Most texts of a worker whose rounds share calls of the model; None: all of them; 1: none."""
    queue: int = 64
    """Most texts that wait for a place; a request for more is refused with 429."""
    choices: int = 8
    """Most texts of one request: prompts times ``n``."""
    timeout: float = 600.0
    """Seconds after which a request is given up, waiting included."""
    stall: float = 30.0
    """Seconds after which a client that sends, or reads, nothing is given up."""
    max_body: int = 4 * 2**20
    """Most bytes of a request's body."""
    drain: float = 30.0
    """Seconds that texts may go on growing once the server has been asked to end."""
    keys: ApiKeys = field(default_factory=ApiKeys)
    """Who may ask; empty: everybody."""
    cors_origins: tuple[str, ...] = ()
    """Origins whose pages may ask, such as ``https://example.org``; ``*``: all."""
    chat_template: Path | None = None
    """A file with a Jinja template, or a checkpoint's folder that has one; None: a plain default."""
    log_prompts: bool = False
    """Whether the log has prompts and texts in it."""
    page: bool = True
    """Whether ``/`` is a page to try the model with."""

    def __post_init__(self) -> None:
        counts = {"queue": (0, 2**20), "choices": (1, limits.CHOICES), "max_body": (1, limits.TEXT_BYTES)}
        if self.workers is not None:  # none at all would let every text wait for ever
            counts["workers"] = 1, limits.THREADS
        if self.slots is not None:
            counts["slots"] = 1, limits.SEQUENCES
        for name, (least, most) in counts.items():
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
                raise ValueError(f"{name}: found {shown(value)}, expected an integer from {least} to {most}")
        for name in ("timeout", "stall", "drain"):
            seconds = getattr(self, name)
            if not (isinstance(seconds, int | float) and math.isfinite(seconds) and 0 < seconds <= limits.SECONDS):
                raise ValueError(f"{name}: found {shown(seconds)}, expected seconds greater than 0")
        if self.method is not None:
            parse_method(self.method)
