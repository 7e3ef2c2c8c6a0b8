"""``fastblt serve``: serves a bundle over HTTP, to many clients at once."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from fastblt.commands.checks import check_backend, check_bundle
from fastblt.commands.errors import UsageError, usage_errors
from fastblt.commands.options import (
    BackendOption,
    BundleArgument,
    ProviderOption,
    RowFloorOption,
    ThreadsOption,
)
from fastblt.commands.output import note, stderr
from fastblt.commands.tuned import ProfileOption, tuned
from fastblt.models.limits import CHOICES, SECONDS, SEQUENCES, TEXT_BYTES, THREADS
from fastblt.runtime.backends.entry import ROOMY
from fastblt.runtime.blt_runtime import BltRuntime
from fastblt.runtime.bundle.bundle import Bundle
from fastblt.runtime.bundle.manifest import is_bundle
from fastblt.runtime.serving.settings import ServingSettings

_MOST_QUEUE = 2**20


def command(
    bundle: BundleArgument,
    host: Annotated[
        str, typer.Option(help="Address to listen on; 0.0.0.0 is every one that this machine has.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0: any that is free.")] = 8000,
    sequences: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=SEQUENCES,
            help="Texts that grow at the same time; others wait  [default: as many as memory has room for, up to 64; "
            "on a GPU: 1]",
        ),
    ] = None,
    max_bytes: Annotated[
        int, typer.Option(min=2, max=TEXT_BYTES, help="Longest text to make room for, prompt included.")
    ] = ROOMY,
    queue: Annotated[
        int, typer.Option(min=0, max=_MOST_QUEUE, help="Most texts that wait; requests for more are refused (429).")
    ] = ServingSettings.queue,
    choices: Annotated[
        int, typer.Option(min=1, max=CHOICES, help="Most texts of one request: its prompts times its n.")
    ] = ServingSettings.choices,
    timeout: Annotated[
        float, typer.Option(min=0.001, max=SECONDS, help="Seconds after which a request is given up, waiting included.")
    ] = ServingSettings.timeout,
    stall: Annotated[
        float, typer.Option(min=0.001, max=SECONDS, help="Seconds after which a client that reads nothing is given up.")
    ] = ServingSettings.stall,
    max_body: Annotated[int, typer.Option(min=1, max=TEXT_BYTES, help="Most bytes of a request's body.")] = (
        ServingSettings.max_body
    ),
    drain: Annotated[
        float, typer.Option(min=0.001, max=SECONDS, help="Seconds for texts to end in after SIGTERM or Ctrl-C.")
    ] = ServingSettings.drain,
    method: Annotated[
        str | None,
        typer.Option(help="Decoding method of requests that name none: {methods}.  [default: auto; with a seed s:8]"),
    ] = None,
    model_name: Annotated[
        str | None, typer.Option(help="What clients call the model  [default: the name in its configuration]")
    ] = None,
    api_keys: Annotated[
        Path | None,
        typer.Option(
            help="File with the keys of clients, one a line  [default: those in the environment, FASTBLT_API_KEYS; "
            "none: everybody may ask]"
        ),
    ] = None,
    chat_template: Annotated[
        Path | None,
        typer.Option(
            help="Jinja template of chats: a file, or the folder of a checkpoint that has one  [default: the bundle's, "
            "if it has one; else lines of 'role: content']"
        ),
    ] = None,
    cors_origin: Annotated[
        list[str] | None,
        typer.Option(help="Origin whose pages may ask, such as https://example.org, or *; any number of times."),
    ] = None,
    reuse_prompts: Annotated[
        bool,
        typer.Option(
            "--reuse-prompts/--no-reuse-prompts",
            help="Read what a prompt has in common with an earlier one only once; clients can tell that there was one.",
        ),
    ] = True,
    log_prompts: Annotated[bool, typer.Option("--log-prompts", help="Write prompts to the log, too.")] = False,
    page: Annotated[bool, typer.Option("--page/--no-page", help="Serve a page to try the model with at /.")] = True,
    workers: Annotated[
        int | None,
        typer.Option(
            min=1, max=THREADS, help="Threads that generate  [default: cores divided by --threads; on a GPU: 1]"
        ),
    ] = None,
    slots: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=SEQUENCES,
            help="Most texts of a thread whose rounds share a read of the weights; 1: none do  [default: all of them]",
        ),
    ] = None,
    backend: BackendOption = "onnxruntime",
    provider: ProviderOption = "auto",
    threads: ThreadsOption = None,
    profile: ProfileOption = True,
    row_floor: RowFloorOption = 1,
) -> None:
    """Serve a bundle over HTTP: OpenAI's interface, and a page.

    The interface is at /v1, the page at /, figures for Prometheus at /metrics. The log goes to standard error, one JSON
    object a line. SIGTERM and Ctrl-C let texts come to their end.
    """
    from fastblt.runtime.serving import api_keys as keys
    from fastblt.runtime.serving.app import create_app
    from fastblt.runtime.serving.chat_template import find_template
    from fastblt.runtime.serving.json_log import start_log
    from fastblt.runtime.serving.listen import bind, exposed, run, url_of

    check_backend(backend)
    check_bundle(bundle, backend=backend)
    bundle, method, threads = tuned(bundle, backend, provider, method=method, threads=threads, profile=profile)
    if is_bundle(bundle):
        Bundle.open(bundle, check=False).check_sizes()  # nobody is told of an address that will not answer
    with usage_errors():
        settings = ServingSettings(
            model_name=model_name,
            method=method,
            workers=workers,
            slots=slots,
            queue=queue,
            choices=choices,
            timeout=timeout,
            stall=stall,
            max_body=max_body,
            drain=drain,
            keys=keys.environment_keys() if api_keys is None else keys.read_keys(api_keys),
            cors_origins=_origins(cors_origin or []),
            chat_template=chat_template or (bundle if find_template(bundle) else None),
            log_prompts=log_prompts,
            page=page,
        )
    load = partial(
        BltRuntime.from_pretrained,
        bundle,
        provider=provider,
        backend=backend,
        max_bytes=max_bytes,
        threads=threads,
        sequences=sequences,
        reuse_prompts=reuse_prompts,
        row_floor=row_floor,
    )
    app = create_app(load, settings)
    listening = bind(host, port)
    for warning in (exposed(host, settings), keys.exposure(api_keys) if api_keys else None):
        if warning:
            note(stderr(), f"warning: {warning}")
    start_log()
    print(f"listening on {url_of(listening)}", flush=True)
    run(app, listening)


def _origins(found: list[str]) -> tuple[str, ...]:
    """Return the origins of ``--cors-origin``.

    Raises:
        UsageError: one is no origin.
    """
    for origin in found:
        scheme, _, rest = origin.partition("://")
        if origin != "*" and (scheme not in ("http", "https") or not rest or "/" in rest):
            raise UsageError(f"--cors-origin: found {origin!r}, expected https://HOST, http://HOST:PORT or *")
    return tuple(found)
