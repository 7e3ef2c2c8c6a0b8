"""Measures a server from start to end: whether it answers at all, then every number of clients, then the report."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fastblt.runtime.machine import device_info
from fastblt.runtime.measure.rotation import rotated
from fastblt.runtime.measure.server_bench.answer import (
    CUT_OFF,
    NO_CONNECTION,
    NOT_UNDERSTOOD,
    REPORTED,
    TIMEOUT,
    Answer,
    NotUnderstoodError,
    message_of,
    read_object,
)
from fastblt.runtime.measure.server_bench.client import Connector, Question
from fastblt.runtime.measure.server_bench.load import Target, put_load
from fastblt.runtime.measure.server_bench.request import ServerBenchError, ServerBenchRequest
from fastblt.runtime.measure.server_bench.rows import ServerRow, row_of
from fastblt.runtime.progress import OnProgress, no_progress

if TYPE_CHECKING:
    import httpx


@dataclass(frozen=True)
class ServerBenchReport:
    """Holds what was measured of a server."""

    request: ServerBenchRequest
    models: dict[str, str]
    """Name of each server's model, by the URL that requests went to."""
    prompts: int
    prompt_bytes: int
    """Of all prompts, once."""
    device: dict[str, Any]
    """From `device_info`: of the machine that asked, where the server may run as well."""
    rows: list[ServerRow]
    """Server by server; of each, in the order of clients and methods."""

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain JSON types; the key is not in it."""
        request = dataclasses.asdict(self.request)
        del request["api_key"]
        return {
            "device": self.device,
            "servers": [{"endpoint": endpoint, "model": model} for endpoint, model in self.models.items()],
            "request": request,
            "prompts": self.prompts,
            "prompt_bytes": self.prompt_bytes,
            "rows": [dataclasses.asdict(row) for row in self.rows],
        }


def run_server_bench(
    request: ServerBenchRequest, prompts: Sequence[str], on_progress: OnProgress = no_progress
) -> ServerBenchReport:
    """Measure a running server, or several, after one unmeasured request of each method.

    With each number of clients, servers are measured one after the other, and the order is rotated from row to row, so
    that the drift of a noisy machine meets all of them alike.

    Args:
        request: what to measure.
        prompts: at least one; taken in turn.
        on_progress: called after each answer.

    Raises:
        ModuleNotFoundError: httpx is not installed.
        ServerBenchError: the server cannot be reached, refuses, or is none of OpenAI's kind.
        ValueError: there are no prompts.
    """
    if not prompts:
        raise ValueError("prompts: found none, expected at least one")
    import httpx

    try:
        models, rows = asyncio.run(_measure(request, prompts, on_progress))
    except (httpx.InvalidURL, UnicodeError) as error:  # of names that no server can have
        raise ServerBenchError(f"{request.url}: found {error}, expected the address of a server") from None
    size = sum(len(prompt.encode()) for prompt in prompts)
    return ServerBenchReport(request, models, len(prompts), size, device_info(), rows)


async def _measure(
    request: ServerBenchRequest, prompts: Sequence[str], on_progress: OnProgress
) -> tuple[dict[str, str], list[ServerRow]]:
    """Return the models' names and the figures."""
    targets = [await _prepare(each, prompts[0]) for each in request.servers()]
    plan = [(clients, method) for clients in request.clients for method in request.methods or (None,)]
    total, whole = len(plan) * len(targets), request.requests or max(1, int(request.duration or 1))
    rows: dict[str, list[ServerRow]] = {target.request.endpoint: [] for target in targets}
    done = 0
    for turn, (clients, method) in enumerate(plan):
        for target in rotated(targets, turn):
            began = time.perf_counter()

            def report(answered: int, done: int = done, began: float = began, what: str = f"{clients} clients") -> None:
                part = answered if request.requests else int(time.perf_counter() - began)
                on_progress(done * whole + min(part, whole), total * whole, what)

            load = await put_load(target, clients, method, prompts, report)
            rows[target.request.endpoint].append(row_of(load))
            done += 1
    models = {target.request.endpoint: target.model for target in targets}
    return models, [row for found in rows.values() for row in found]


async def _prepare(request: ServerBenchRequest, prompt: str) -> Target:
    """Return a server that has answered a request of each method.

    Raises:
        ServerBenchError: it has not.
    """
    connector = Connector(request)
    async with connector.connect() as client:
        model = request.model if request.model is not None else await _first_model(client, request)
        return await _try(client, Target(connector, model, with_usage=True), prompt)


async def _first_model(client: httpx.AsyncClient, request: ServerBenchRequest) -> str:
    """Return the name of the first model that the server lists.

    Raises:
        ServerBenchError: there is no server, or no such list.
    """
    import httpx

    url = f"{request.base}/models"
    try:
        response = await client.get(url)
    except httpx.TimeoutException:
        raise ServerBenchError(_line(url, Answer(0).fail(TIMEOUT))) from None
    except httpx.HTTPError as error:
        kind = NO_CONNECTION if isinstance(error, httpx.ConnectError) else CUT_OFF
        raise ServerBenchError(_line(url, Answer(0).fail(kind, str(error)))) from None
    try:
        body = read_object(response.content)
    except NotUnderstoodError as error:
        if response.status_code == httpx.codes.OK:
            raise ServerBenchError(_line(url, Answer(0).fail(NOT_UNDERSTOOD, str(error)))) from None
        body = {}
    if response.status_code != httpx.codes.OK:
        answer = Answer(0).fail(f"HTTP {response.status_code}", message_of(body))
        raise ServerBenchError(_line(url, answer, "expected a list of models; --model NAME needs none"))
    models = body.get("data")
    first = models[0] if isinstance(models, list) and models else None
    name = first.get("id") if isinstance(first, dict) else None
    if not isinstance(name, str):
        raise ServerBenchError(f"{url}: found no model in the list, expected one, or --model NAME")
    return name


async def _try(client: httpx.AsyncClient, target: Target, prompt: str) -> Target:
    """Make one request of each method, and return the target with what was learned of it.

    Raises:
        ServerBenchError: one of them fails.
    """
    for method in target.request.methods or (None,):
        answer = await target.ask(client, Question(0, prompt, method))
        if answer.error in ("HTTP 400", "HTTP 422") and target.request.stream and target.with_usage:
            without = dataclasses.replace(target, with_usage=False)  # `stream_options` is newer than many servers
            again = await without.ask(client, Question(0, prompt, method))
            if again.error is None:
                target, answer = without, again
        if answer.error is not None:
            raise ServerBenchError(_line(target.request.endpoint, answer))
    return target


_EXPECTED = {
    NO_CONNECTION: "expected a running server",
    TIMEOUT: "expected an answer (--timeout)",
    CUT_OFF: "expected a whole answer",
    NOT_UNDERSTOOD: "",
    REPORTED: "expected text",
    "HTTP 401": "expected a key that the server takes: --api-key or OPENAI_API_KEY",
    "HTTP 403": "expected a key that the server takes: --api-key or OPENAI_API_KEY",
    "HTTP 404": "expected a server with the interface of OpenAI there: another --url, --model or --chat",
    "HTTP 405": "expected a server with the interface of OpenAI there: another --url or --chat",
}


def _line(url: str, answer: Answer, expected: str = "expected an answer") -> str:
    """Return one line about a first request that failed; ``expected`` is for errors that have no line of their own."""
    kind = answer.error or ""
    if kind == NOT_UNDERSTOOD:
        return f"{url}: {answer.detail}"
    reason = f" ({answer.detail})" if answer.detail else ""
    return f"{url}: found {kind}{reason}, {_EXPECTED.get(kind, expected)}"
