"""Resets connections to a server at random moments: while it reads a request, before it begins, while it answers."""

from __future__ import annotations

import asyncio
import json
import random
import socket
import struct
from typing import Any
from urllib.parse import urlsplit

#: Close at once, with a reset instead of an orderly end.
_RESET = struct.pack("ii", 1, 0)
KINDS = ("before the body is complete", "before anything is answered", "while the answer streams")
_LONGEST_WAIT = 20.0


async def reset_connections(rng: random.Random, url: str, bodies: list[dict[str, Any]], at_once: int) -> dict[str, int]:
    """Send every body to ``completions`` on a connection of its own that is reset; return how many of each kind.

    Args:
        rng: decides the moments.
        url: of the server, without a path.
        bodies: of requests for streams.
        at_once: connections at the same time.
    """
    places = asyncio.Semaphore(at_once)
    plans = [(rng.choice(KINDS), body, rng.random()) for body in bodies]

    async def disturb(kind: str, body: dict[str, Any], moment: float) -> None:
        async with places:
            await _reset_one(url, kind, json.dumps(body).encode(), moment)

    await asyncio.gather(*(disturb(*plan) for plan in plans))
    return {kind: sum(plan[0] == kind for plan in plans) for kind in KINDS}


async def _reset_one(url: str, kind: str, body: bytes, moment: float) -> None:
    """Reset one connection.

    Args:
        url: of the server.
        kind: one of `KINDS`.
        body: of the request.
        moment: 0 to 1: how much of the body is sent, how long nothing happens, how much of the answer is read.
    """
    address = urlsplit(url)
    reader, writer = await asyncio.open_connection(address.hostname, address.port)
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    head = (
        f"POST /v1/completions HTTP/1.1\r\nhost: {address.netloc}\r\ncontent-type: application/json\r\n"
        f"content-length: {len(body)}\r\n\r\n"
    ).encode()
    try:
        if kind == KINDS[0]:
            writer.write((head + body)[: int(moment * (len(head) + len(body) - 1))])
            await asyncio.sleep(moment / 5)
            return
        writer.write(head + body)
        if kind == KINDS[1]:
            await asyncio.sleep(moment**2 / 4)
            return
        seen = 0
        while seen < 1 + 20 * moment and (data := await asyncio.wait_for(reader.read(4096), _LONGEST_WAIT)):
            seen += data.count(b"data: ")
    except ConnectionError:
        pass  # the server may end it first: it refuses what it cannot read
    finally:
        writer.transport.abort()
