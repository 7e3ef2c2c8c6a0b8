"""Knows every method by name, and generates what depends on the list of them: errors, help texts, tables and defaults.

The package's own methods are listed in `BUILT_IN`, in the order in which they are shown. Another package adds one with
an entry point of the group ``fastblt.methods`` that refers to a `MethodEntry` and has its name::

    [project.entry-points."fastblt.methods"]
    echo = "my_package.echo:ENTRY"

or, within a process, with `register_method`. Entry points are read only when an unknown name or a list of all methods
is asked for. One that cannot be loaded is reported where it is asked for and listed as unavailable in help texts.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from fastblt.models.config import BltConfig
from fastblt.runtime.methods import ar, block_diffusion, diffusion_verification, prompt_lookup, self_speculation
from fastblt.runtime.methods.adaptive import policy
from fastblt.runtime.methods.entry import MethodEntry
from fastblt.runtime.methods.method import Method, MethodError
from fastblt.runtime.plugins import Plugins

#: Group of the entry points of other packages.
ENTRY_POINT_GROUP = "fastblt.methods"

BUILT_IN = (
    ar.ENTRY,
    self_speculation.ENTRY,
    prompt_lookup.ENTRY,
    diffusion_verification.ENTRY,
    block_diffusion.ENTRY,
    policy.ENTRY,
)

_plugins = Plugins("method", ENTRY_POINT_GROUP, MethodEntry, MethodError, BUILT_IN)


class Selection(NamedTuple):
    """Names of methods that a model can run, and those that it cannot."""

    names: tuple[str, ...]
    left_out: tuple[str, ...]


def register_method(entry: MethodEntry) -> None:
    """Make a method known by name for the rest of the process.

    Raises:
        ValueError: the name is taken, empty, or holds ``:``, ``,``, ``/`` or a space.
    """
    _plugins.register(entry)


def parse_method(method: str | Method) -> Method:
    """Return the method with a name such as ``ar``, ``s:8`` or ``d:8@0.7``; a method object is returned unchanged.

    Raises:
        MethodError: the name is unknown (the message lists what exists), its argument is malformed, the package that
            defines it cannot be loaded, or ``method`` is neither a name nor a method.
    """
    if not isinstance(method, str):
        if isinstance(method, type) or not callable(getattr(method, "rounds", None)):
            found = f"the class {method.__name__}" if isinstance(method, type) else type(method).__name__
            raise MethodError(f"method: found {found}, expected a name or an object with rounds()")
        return method
    name, _, argument = method.partition(":")
    try:
        entry = _plugins.get(name)
    except MethodError as error:
        raise MethodError(f"method {method!r}: {error}") from error
    if entry is None:
        raise MethodError(f"method {method!r}: unknown, expected {_choices()}")
    return entry.parse(argument)


def methods() -> tuple[MethodEntry, ...]:
    """Return every method that can be used: built in, registered, then those of other packages."""
    return _plugins.all()


def unavailable_methods() -> dict[str, str]:
    """Return the reason for each entry point that cannot be used, by its name."""
    return _plugins.unavailable()


def methods_help() -> str:
    """Return one line for the help text of an option that takes a method."""
    known = [f"{entry.syntax} ({entry.summary})" for entry in methods()]
    return "; ".join([*known, *(f"{name} (unavailable: {why})" for name, why in unavailable_methods().items())])


def methods_table() -> str:
    """Return a Markdown table of all methods."""
    rows = ["| method | example | what it does | lossless | needs |", "| --- | --- | --- | --- | --- |"]
    for entry in methods():
        examples = ", ".join(f"`{example}`" for example in entry.examples)
        lossless = "yes" if entry.lossless else "no"
        rows.append(f"| `{entry.syntax}` | {examples} | {entry.summary} | {lossless} | {entry.needs} |")
    return "\n".join(rows) + "\n"


def audit_defaults() -> tuple[str, ...]:
    """Return the names that ``audit`` and ``verify`` run by default, on any model."""
    return tuple(name for entry in methods() for name in entry.audited)


def bench_defaults() -> tuple[str, ...]:
    """Return the names that ``bench`` measures by default, on any model."""
    return tuple(name for entry in methods() for name in entry.benchmarked)


def runnable(names: Iterable[str], config: BltConfig) -> Selection:
    """Divide names of methods into those that a model can run and the others.

    Raises:
        MethodError: a name is unknown or malformed.
    """
    kept: list[str] = []
    left_out: list[str] = []
    for name in names:
        method = parse_method(name)
        try:
            method.check(config)
        except MethodError:
            left_out.append(name)
        else:
            kept.append(name)
    return Selection(tuple(kept), tuple(left_out))


def audit_methods(config: BltConfig) -> Selection:
    """Return the names that ``audit`` and ``verify`` run by default on a model."""
    return runnable(audit_defaults(), config)


def bench_methods(config: BltConfig) -> Selection:
    """Return the names that ``bench`` measures by default on a model."""
    return runnable(bench_defaults(), config)


def tune_methods(config: BltConfig, *, allow_lossy: bool = False) -> tuple[str, ...]:
    """Return the names that ``tune`` compares by default on a model; lossless ones only, unless others are allowed."""
    names = runnable((name for entry in methods() for name in entry.tuned), config).names
    return tuple(name for name in names if allow_lossy or parse_method(name).lossless)


def trace_methods(config: BltConfig) -> tuple[str, ...]:
    """Return the names that calibration records a model's activations with."""
    return runnable((name for entry in methods() for name in entry.traced(config)), config).names


def _choices() -> str:
    """Return the syntax and examples of all methods as an enumeration, then what is unavailable."""
    *others, last = [_shown(entry) for entry in methods()]
    unavailable = "".join(f"; unavailable: {why}" for why in unavailable_methods().values())
    return f"{', '.join(others)} or {last}{unavailable}"


def _shown(entry: MethodEntry) -> str:
    examples = [example for example in entry.examples if example != entry.syntax]
    return f"{entry.syntax} (such as {', '.join(examples)})" if examples else entry.syntax
