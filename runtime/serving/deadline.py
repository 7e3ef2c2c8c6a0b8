"""Bounds the time that a request may take."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable
from typing import TypeVar

from fastblt.runtime.serving.api_error import ApiError

Found = TypeVar("Found")


class Deadline:
    """Ends what takes longer than a request may.

    Args:
        seconds: from now on.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._end = time.monotonic() + seconds

    async def wait(self, result: Awaitable[Found], missing: str) -> Found:
        """Return a result that is there in time.

        Args:
            result: to wait for; it is canceled once the time is over, a coroutine even if it need not wait.
            missing: what the error says: what was found at the end of the time, and what was expected.

        Raises:
            ApiError: 504, the time is over.
        """
        try:
            return await asyncio.wait_for(result, max(0.0, self._end - time.monotonic()))
        except (TimeoutError, asyncio.TimeoutError):
            raise ApiError(504, f"after {self.seconds:g} s: {missing}", code="timeout") from None
