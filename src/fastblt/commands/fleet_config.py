"""``fastblt fleet config``: writes the file that Ray Serve runs a fleet from."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from fastblt.commands.checks import check_backend, check_bundle
from fastblt.commands.errors import usage_errors
from fastblt.commands.options import (
    BackendOption,
    BundleArgument,
    MethodOption,
    ProviderOption,
    RowFloorOption,
    ThreadsOption,
)
from fastblt.commands.output import note, stderr
from fastblt.models.limits import SEQUENCES, TEXT_BYTES
from fastblt.runtime.serving.settings import ServingSettings

_MOST = 2**20


def config(
    bundle: BundleArgument,
    min_replicas: Annotated[int, typer.Option(min=1, max=10_000, help="Replicas that always run.")] = 1,
    max_replicas: Annotated[
        int | None, typer.Option(min=1, max=10_000, help="Most replicas  [default: as many as always run]")
    ] = None,
    gpus: Annotated[
        float, typer.Option(min=0, max=16, help="GPUs of a replica; with 0.25, four replicas share one.")
    ] = 0.0,
    cpus: Annotated[float, typer.Option(min=0, max=1024, help="Cores of a replica, which Ray reserves.")] = 1.0,
    sequences: Annotated[int, typer.Option(min=1, max=SEQUENCES, help="Texts that grow at once in a replica.")] = 8,
    slots: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=SEQUENCES,
            help="Most texts of a thread whose rounds share a read of the weights; 1: none do  [default: all of them]",
        ),
    ] = None,
    max_ongoing: Annotated[
        int | None, typer.Option(min=1, max=_MOST, help="Most requests sent to a replica  [default: 2 x --sequences]")
    ] = None,
    max_queued: Annotated[
        int, typer.Option(min=1, max=_MOST, help="Most requests that wait at a proxy; more are refused (429).")
    ] = 256,
    target_ongoing: Annotated[
        float | None,
        typer.Option(
            min=0.1,
            max=_MOST,
            help="Requests of a replica, waiting ones included, beyond which another is started  "
            "[default: --sequences]",
        ),
    ] = None,
    surge: Annotated[
        int, typer.Option(min=0, max=100, help="Replicas that an update starts before it stops others, in percent.")
    ] = 0,
    host: Annotated[str, typer.Option(help="Address that every proxy listens on; 0.0.0.0: all of them.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port that every proxy listens on.")] = 8000,
    max_bytes: Annotated[
        int | None, typer.Option(min=2, max=TEXT_BYTES, help="Longest text, prompt included  [default: 4096]")
    ] = None,
    method: MethodOption = None,
    model_name: Annotated[str | None, typer.Option(help="What clients call the model  [default: its own name]")] = None,
    api_keys: Annotated[
        Path | None, typer.Option(help="File with the keys of clients, in the same place on every machine.")
    ] = None,
    chat_template: Annotated[
        Path | None, typer.Option(help="Jinja template of chats, in the same place on every machine.")
    ] = None,
    drain: Annotated[float, typer.Option(min=0.001, max=86400, help="Seconds for texts to end in.")] = (
        ServingSettings.drain
    ),
    backend: BackendOption = "onnxruntime",
    provider: ProviderOption = "auto",
    threads: ThreadsOption = None,
    row_floor: RowFloorOption = 1,
) -> None:
    """Write a file for Ray Serve to standard output: `serve run serve.yaml`, or `serve deploy` to a cluster.

    The bundle's files are compared with its manifest first; its folder has to be in the same place on every machine.
    """
    import yaml

    from fastblt.runtime.bundle.bundle import Bundle
    from fastblt.runtime.fleet.config import FleetConfig
    from fastblt.runtime.fleet.options import BundleChoice, FleetOptions
    from fastblt.runtime.methods import parse_method
    from fastblt.runtime.serving.api_keys import exposure
    from fastblt.runtime.serving.chat_template import load_template

    check_backend(backend)
    check_bundle(bundle)
    given = {"max_bytes": max_bytes, "method": method, "model_name": model_name, "threads": threads, "slots": slots}
    files = {"api_keys": api_keys, "chat_template": chat_template}
    with usage_errors():
        options = FleetOptions(
            sequences=sequences,
            backend=backend,
            provider=provider,
            row_floor=row_floor,
            drain=drain,
            **{name: value for name, value in given.items() if value is not None},  # type: ignore[arg-type]
            **{name: str(path.resolve()) for name, path in files.items() if path is not None},  # type: ignore[arg-type]
        )
        # What cannot be used is found here, not by every replica.
        settings = options.settings(bundle)
        load_template(settings.chat_template)
        most = min_replicas if max_replicas is None else max_replicas
        fleet = FleetConfig(
            min_replicas, most, gpus, cpus, target_ongoing, max_ongoing, max_queued, surge=surge, host=host, port=port
        )
    opened = Bundle.open(bundle)
    if method is not None:
        parse_method(method).check(opened.config)
    data = fleet.to_dict(BundleChoice.of(bundle), options)
    sys.stdout.write(
        f"# Written by fastblt fleet config; run it with: serve run FILE\n{yaml.safe_dump(data, sort_keys=False)}"
    )
    if host not in ("127.0.0.1", "localhost", "::1"):
        keys = "" if api_keys else ", and without --api-keys anybody may ask"
        note(stderr(), f"warning: {host}: other machines reach the fleet, requests are not encrypted{keys}")
    if api_keys is not None and (warning := exposure(api_keys)):
        note(stderr(), f"warning: {warning}")
