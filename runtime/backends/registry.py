"""Knows every backend by name, and generates what is said about backends: errors, help texts, tables and defaults.

The package's own backends are listed in `BUILT_IN`, in the order in which they are shown. Another package adds one
with an entry point of the group ``fastblt.backends`` that refers to a `BackendEntry` and has its name::

    [project.entry-points."fastblt.backends"]
    abacus = "my_package.abacus:ENTRY"

or, within a process, with `register_backend`. Only the backend that is loaded is imported: ONNX Runtime needs no
PyTorch, and a list of backends needs neither.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastblt.runtime.backends import onnxruntime
from fastblt.runtime.backends.eager import entry as eager
from fastblt.runtime.backends.entry import BackendEntry, BackendError, LoadRequest, ProviderError
from fastblt.runtime.backends.gpu import entry as gpu
from fastblt.runtime.plugins import Plugins

if TYPE_CHECKING:
    from fastblt.runtime.backends.protocol import Backend

#: Group of the entry points of other packages.
ENTRY_POINT_GROUP = "fastblt.backends"
BUILT_IN = (onnxruntime.ENTRY, eager.EAGER, eager.COMPILED, gpu.TENSORRT, gpu.TENSORRT_RTX)
#: What runs a bundle where the user names no backend.
DEFAULT_BACKEND = onnxruntime.ENTRY.name

#: What the values of ``--provider`` mean. "tensorrt" is one of them and also, quite apart from that, a backend.
PROVIDER_SUMMARIES = {
    "auto": "the GPU for engines, else the CPU until an audit has passed on a GPU",
    "cpu": "the CPU",
    "cuda": "an NVIDIA GPU",
    "tensorrt": "ONNX Runtime's execution provider for TensorRT 10, not the backend of that name",
}

_plugins = Plugins("backend", ENTRY_POINT_GROUP, BackendEntry, BackendError, BUILT_IN)


def register_backend(entry: BackendEntry) -> None:
    """Make a backend known by name for the rest of the process.

    Raises:
        ValueError: the name is taken, empty, or holds ``:``, ``,``, ``/`` or a space.
    """
    _plugins.register(entry)


def backends() -> tuple[BackendEntry, ...]:
    """Return every backend that is known: built in, registered, then those of other packages."""
    return _plugins.all()


def unavailable_backends() -> dict[str, str]:
    """Return the reason for each entry point that cannot be used, by its name."""
    return _plugins.unavailable()


def backend_names() -> tuple[str, ...]:
    """Return the names of all backends."""
    return tuple(entry.name for entry in backends())


def backend_entry(name: str) -> BackendEntry:
    """Return what is known of a backend.

    Raises:
        BackendError: the name is unknown (the message lists what exists), or its entry point cannot be used.
    """
    try:
        entry = _plugins.get(name)
    except BackendError as error:
        raise BackendError(f"backend {name!r}: {error}") from error
    if entry is None:
        unavailable = "".join(f"; unavailable: {why}" for why in unavailable_backends().values())
        raise BackendError(f"backend: found {name!r}, expected one of {', '.join(backend_names())}{unavailable}")
    return entry


def load_backend(name: str, request: LoadRequest) -> Backend:
    """Load a bundle into a backend.

    Raises:
        BackendError: the backend is unknown.
        ProviderError: the backend does not take the request's provider, or the provider does not work here.
        ValueError: the bundle, or what the backend needs on this machine, cannot be used.
    """
    return _checked(name, request).load(request)


def load_reference(name: str, request: LoadRequest) -> Backend:
    """Load a bundle into a backend that decides what is right; arguments and errors are those of `load_backend`.

    It is as exact as the backend can be (`BackendEntry.load_reference`), where `load_backend` is as fast as it can be.
    """
    entry = _checked(name, request)
    return (entry.load_reference or entry.load)(request)


def _checked(name: str, request: LoadRequest) -> BackendEntry:
    """Return a backend's entry; raise where it is unknown, or does not take the request's provider."""
    entry = backend_entry(name)
    if request.provider not in entry.providers:
        *others, last = entry.providers
        expected = f"{', '.join(others)} or {last}" if others else last
        raise ProviderError(f"provider: found {request.provider!r}, expected {expected} with backend {name}")
    return entry


def default_capacity(name: str, needed: int) -> int:
    """Return ``max_bytes`` for a text of ``needed`` bytes, where the user asks for no capacity.

    Raises:
        BackendError: the backend is unknown.
    """
    return backend_entry(name).default_capacity(needed)


def backends_help() -> str:
    """Return one line for the help text of an option that takes a backend."""
    known = [f"{entry.name} ({entry.summary})" for entry in backends()]
    return "; ".join([*known, *(f"{name} (unavailable: {why})" for name, why in unavailable_backends().items())])


def providers_help() -> str:
    """Return one line for the help text of an option that takes a provider."""
    return "; ".join(f"{name} ({summary})" for name, summary in PROVIDER_SUMMARIES.items())


def backends_table() -> str:
    """Return a Markdown table of all backends."""
    rows = ["| backend | what runs the model | runs on | `--provider` |", "| --- | --- | --- | --- |"]
    for entry in backends():
        where = " or ".join({"cpu": "CPU", "cuda": "GPU"}.get(device, device) for device in entry.devices)
        providers = ", ".join(f"`{provider}`" for provider in entry.providers)
        rows.append(f"| `{entry.name}` | {entry.summary} | {where} | {providers} |")
    return "\n".join(rows) + "\n"
