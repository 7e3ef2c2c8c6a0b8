"""Puts a real server under load, resets connections to it and ends it: every text is right, and nothing is left."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import numpy as np
from campaign.disconnects import reset_connections
from campaign.part import Counts, Limits, Place, failed
from campaign.server_load import Clients, Seen, until
from campaign.server_process import Held, ServerProcess, running_server
from campaign.server_work import Work, known_works

from fastblt.export.bundle_writer import export_bundle

_CHECKPOINT = Path("checkpoints/blt-d-8m")
_BUNDLE = "served"
_WORKS = 48
"""Different requests."""
_CLIENTS, _PLACES = 32, 12
"""More clients than places: the rest waits in the queue."""
_LOAD_SECONDS, _RESETS, _RESETS_AT_ONCE = 60.0, 200, 40
_WARM_UP_TIMES = 6
"""How often every text is asked for first: a place takes memory as texts grow in it."""
GROWTH = 0.02
"""Largest growth of resident memory under load after the first lap, and after resets. In the first one, sequences still
fill the number of bindings that they may keep."""
_QUIET_SECONDS = 15.0
"""In which a server must have forgotten connections that are gone."""
_IN_USE, _QUEUED = "fastblt_places_in_use", "fastblt_queue_length"
"""Metrics of the server."""
_STATUS = 0
"""Exit status of a server that was asked to end."""
_DRAINED = 16
"""Clients whose answers are under way when the server is ended."""


class Serve:
    """Starts `fastblt serve` with the shipped checkpoint."""

    name = "serve"
    summary = "a server with 32 clients, reset connections and SIGTERM under load: every text is that of one user"
    weight = 2.0
    limits = Limits(processor_seconds=36_000.0, wall_seconds=36_000.0, memory_bytes=64 * 2**30)
    at_once = True

    def prepare(self, fixtures: Path) -> None:
        """Export the shipped checkpoint."""
        if not (fixtures / _BUNDLE).exists():
            export_bundle(_CHECKPOINT, fixtures / _BUNDLE, verify=False)

    def attempt(self, rng: random.Random, seconds: float, place: Place) -> Counts:
        """Put on load and reset connections in turn, for about ``seconds`` and at least twice; then end the server."""
        place.announce({"serve": seconds})
        bundle = place.fixtures / _BUNDLE
        works = known_works(rng, bundle, _WORKS)
        share = min(1.0, seconds / 340)  # of the load and the resets, where there is less time than two laps take
        with running_server(bundle, place.scratch / "server.log", "--sequences", str(_PLACES)) as server:
            clients = Clients(server, works)
            end = time.monotonic() + seconds
            total, laps, longest = Counts(), 0, 0.0
            while laps < 2 or time.monotonic() + longest < end:
                began = time.monotonic()
                total.add(asyncio.run(_lap(rng, clients, share, first=not laps)))
                laps, longest = laps + 1, max(longest, time.monotonic() - began)
            total.add(asyncio.run(_drain(rng, clients)))
        return total


async def _lap(rng: random.Random, clients: Clients, share: float, *, first: bool) -> Counts:
    """Put on load, reset connections, and compare what the server holds; growth under load only after a first lap."""
    server = clients.server
    start = server.held()
    total = Counts()
    total.add((await clients.load(rng, _CLIENTS, 0.0, least=_WARM_UP_TIMES)).counts)
    seen = await clients.load(rng, _CLIENTS, share * _LOAD_SECONDS)
    total.add(seen.counts)
    total.add(_judge_load(start, seen, first=first))
    total.add(await _quiet(server))
    before = server.held()
    resets = max(1, int(share * _RESETS))
    kinds = await reset_connections(
        rng, server.url, [_long_body(rng, clients.works) for _ in range(resets)], _RESETS_AT_ONCE
    )
    total.add(Counts(resets, resets, figures={f"connections reset {kind}": n for kind, n in kinds.items()}))
    total.add(await _quiet(server))
    total.add(await _judge_resets(before, server))
    after = await clients.load(rng, 4, 0.0)  # every text once more
    total.add(after.counts)
    return total


def _long_body(rng: random.Random, works: Sequence[Work]) -> dict[str, object]:
    """Return a request for a stream that is not over soon."""
    prompt = rng.choice([work.body["prompt"] for work in works if "prompt" in work.body])
    return {"prompt": prompt, "max_tokens": 600, "stream": True, "temperature": 1, "seed": 1}


def _judge_load(start: Held, seen: Seen, *, first: bool) -> Counts:
    """Compare what the server held after warm-up with what it holds at the end."""
    resident = [held.resident for held in seen.held]
    third = max(1, len(resident) // 3)
    growth = median(resident[-third:]) / median(resident[:third]) - 1
    waits = 1e3 * np.percentile(seen.first_byte, (50, 95))
    counts = Counts(
        figures={
            "max resident MB at the start": start.resident / 1e6,
            "max resident MB after warm-up": median(resident[:third]) / 1e6,
            "max resident MB at the end": median(resident[-third:]) / 1e6,
            f"max growth of resident memory under load, {'first lap' if first else 'later'}, %": 100 * growth,
            "max ms to the first byte, median": float(waits[0]),
            "max ms to the first byte, 95 %": float(waits[1]),
        }
    )
    if growth > GROWTH and not first:
        counts.add(failed("other", "serve: resident memory grows under load", f"{seen.held}"))
    return counts


async def _quiet(server: ServerProcess) -> Counts:
    """Wait until no sequence is in use and nobody waits."""

    def is_quiet() -> bool:
        gauges = server.gauges()
        return gauges[_IN_USE] == 0 == gauges[_QUEUED]

    began = time.monotonic()
    if not await until(is_quiet, _QUIET_SECONDS):
        return failed("other", "serve: sequences are in use although nobody is connected", f"{server.gauges()}")
    return Counts(figures={"max seconds until nothing was in use": time.monotonic() - began})


async def _judge_resets(before: Held, server: ServerProcess) -> Counts:
    """Compare what the server holds after connections were reset with what it held before."""
    counts = Counts()
    for name in ("descriptors", "threads"):
        held = getattr(before, name)
        if not await until(lambda name=name, held=held: getattr(server.held(), name) <= held, _QUIET_SECONDS):
            found = f"{before}\n{server.held()}\n{server.words()}"
            counts.add(failed("other", f"serve: more {name} after connections were reset", found))
    growth = server.held().resident / before.resident - 1
    counts.figures["max growth of resident memory over resets, %"] = 100 * growth
    if growth > GROWTH:
        counts.add(failed("other", "serve: resident memory grows when connections are reset", f"{growth}"))
    return counts


async def _drain(rng: random.Random, clients: Clients) -> Counts:
    """End the server while answers are under way: those come to their end, and so does the process."""
    server = clients.server
    works = [work for work in clients.works if work.body["max_tokens"] > 60]
    answers = asyncio.create_task(clients.ask_at_once(rng.choices(works, k=_DRAINED)))
    await until(lambda: server.gauges()[_IN_USE] > 0, _QUIET_SECONDS)
    server.process.terminate()
    began = time.monotonic()
    total = (await answers).counts
    status = await asyncio.to_thread(server.wait)
    total.figures["max seconds from SIGTERM to the end"] = time.monotonic() - began
    total.figures["answers that SIGTERM let come to their end"] = float(total.ok)
    if status != _STATUS:
        total.add(failed("other", f"serve: exit status {status} after SIGTERM", server.words()))
    if "Traceback" in server.words():
        total.add(failed("traceback", "serve: a traceback in the log", server.words()))
    return total
