"""``fastblt fleet capacity``: how many replicas a number of users needs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fastblt.commands.checks import check_file_target
from fastblt.commands.errors import usage_errors
from fastblt.commands.options import JsonOption
from fastblt.commands.output import add_row, left, make_table, note, print_table, right, stderr, stdout
from fastblt.runtime.fleet.capacity.bench_report import read_report
from fastblt.runtime.fleet.capacity.figures import UserModel
from fastblt.runtime.fleet.capacity.plan import Plan, Promise, plan
from fastblt.runtime.measure.report import write_json

_USERS = UserModel()


def capacity(
    report: Annotated[
        Path,
        typer.Argument(help="Report of one replica: `fastblt bench --url URL --json REPORT`."),
    ],
    users: Annotated[int, typer.Option(min=1, max=10**8, help="Users in all.")] = _USERS.users,
    first_byte: Annotated[
        float,
        typer.Option(min=0.001, max=3600, help="Seconds to the first byte that 95 % of requests may take."),
    ] = Promise.first_byte,
    speed: Annotated[
        float, typer.Option(min=0, max=1e9, help="Bytes per second of an answer that 95 % of requests have to get.")
    ] = Promise.bytes_per_second,
    think: Annotated[
        float, typer.Option(min=0.001, max=1e6, help="Mean seconds from an answer to the next message.")
    ] = _USERS.think_seconds,
    message: Annotated[float, typer.Option(min=0, max=1e6, help="Bytes of a message.")] = _USERS.message_bytes,
    response: Annotated[float, typer.Option(min=1, max=1e6, help="Mean bytes of an answer.")] = _USERS.response_bytes,
    spread: Annotated[
        float, typer.Option(min=0, max=10, help="Standard deviation of the length of answers over its mean.")
    ] = _USERS.response_spread,
    turns: Annotated[float, typer.Option(min=1, max=1e6, help="Mean messages of a conversation.")] = _USERS.turns,
    sequences: Annotated[int, typer.Option(min=1, max=4096, help="Sequences that a replica keeps in memory.")] = 8,
    price: Annotated[float, typer.Option(min=0, max=1e6, help="What an hour of a replica costs.")] = 1.0,
    method: Annotated[str | None, typer.Option(help="Rows of the report to take  [default: its first method]")] = None,
    seed: Annotated[int, typer.Option(min=0, max=2**31, help="Seed of the simulation.")] = 0,
    json: JsonOption = None,
) -> None:
    """Compute how many replicas a number of users needs, and what that costs.

    Simulates users and replicas event by event, from what was measured of one replica.
    """
    check_file_target(json)
    replica = read_report(report, sequences, price, method)
    with usage_errors():
        model = UserModel(users, think, message, response, spread, turns)
    with stderr().status("simulating"):
        found = plan(replica, model, Promise(first_byte, speed), seed)
    if json is not None:
        write_json(json, found.to_dict())
    _print(found)


def _print(found: Plan) -> None:
    outcome = found.outcome
    table = make_table(left(""), right(""))
    for name, value in (
        ("replicas", f"{found.replicas:,}"),
        ("users of a replica", f"{found.users_per_replica:,}"),
        ("price an hour", f"{found.price_per_hour:,.2f}"),
        ("price of a million bytes", f"{found.price_per_million_bytes:,.4f}"),
        ("bytes/s in all", f"{outcome.bytes_per_second:,.0f}"),
        ("busy", f"{100 * outcome.utilization:.0f} %"),
        ("first byte, median", f"{outcome.first_byte_p50:.3f} s"),
        ("first byte, 95 %", f"{outcome.first_byte_p95:.3f} s"),
        ("first byte, 99 %", f"{outcome.first_byte_p99:.3f} s"),
        ("wait for a place, 95 %", f"{outcome.wait_p95:.3f} s"),
        ("bytes/s of an answer, median", f"{outcome.user_bytes_per_second_p50:,.0f}"),
        ("bytes/s of an answer, slowest 5 %", f"{outcome.user_bytes_per_second_p5:,.0f}"),
        ("conversations not read again", f"{100 * outcome.reused_share:.0f} %"),
    ):
        add_row(table, name, value)
    console = stdout()
    print_table(console, table)
    users = found.users
    note(
        console,
        f"{outcome.requests:,} requests of {users.users:,} users in {outcome.seconds:,.0f} s, simulated in "
        f"{found.seconds:.0f} s (seed {found.seed}); a replica: {found.replica.source}.",
    )
