"""Knows every method by name, and generates what is said about methods: errors, help texts, tables and defaults.

The package's own methods are listed in `BUILT_IN`, in the order in which they are shown. Another package adds one with
an entry point of the group ``fastblt.methods`` that refers to a `MethodEntry` and has its name::

    [project.entry-points."fastblt.methods"]
    echo = "my_package.echo:ENTRY"

or, within a process, with `register_method`. Entry points are read only when an unknown name or a list of all methods
is asked for. One that cannot be loaded is reported where it is asked for and listed as unavailable in help texts.
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib import metadata
from typing import NamedTuple

from fastblt.models.config import BltConfig
from fastblt.runtime.methods import ar, block_diffusion, diffusion_verification, self_speculation
from fastblt.runtime.methods.adaptive import policy
from fastblt.runtime.methods.entry import MethodEntry
from fastblt.runtime.methods.method import Method, MethodError

#: Group of the entry points of other packages.
ENTRY_POINT_GROUP = "fastblt.methods"

BUILT_IN = (
    ar.ENTRY,
    self_speculation.ENTRY,
    diffusion_verification.ENTRY,
    block_diffusion.ENTRY,
    policy.ENTRY,
)

_entries: dict[str, MethodEntry] = {entry.name: entry for entry in BUILT_IN}


class Selection(NamedTuple):
    """Names of methods that a model can run, and those that it cannot."""

    names: tuple[str, ...]
    left_out: tuple[str, ...]


def register_method(entry: MethodEntry) -> None:
    """Make a method known by name for the rest of the process.

    Raises:
        ValueError: the name is taken, or is no name that a user could write before a colon.
    """
    if not entry.name or any(c in entry.name for c in ":,/ "):
        raise ValueError(f"method entry: found name {entry.name!r}, expected one without ':', ',', '/' and spaces")
    if entry.name in _entries:
        raise ValueError(f"method entry: found {entry.name!r}, which is registered already, expected a new name")
    _entries[entry.name] = entry


def parse_method(method: str | Method) -> Method:
    """Return the method with a name such as ``ar``, ``s:8`` or ``d:8@0.7``; a method object is returned unchanged.

    Raises:
        MethodError: the name is unknown (the message lists what exists), its argument is malformed, the package that
            defines it cannot be loaded, or ``method`` is neither a name nor a method.
    """
    if not isinstance(method, str):
        if not callable(getattr(method, "rounds", None)):
            raise MethodError(f"method: found {type(method).__name__}, expected a name or an object with rounds()")
        return method
    name, _, argument = method.partition(":")
    entry = _entries.get(name) or _load_named(method, name)
    if entry is None:
        raise MethodError(f"method {method!r}: unknown, expected {_choices()}")
    return entry.parse(argument)


def methods() -> tuple[MethodEntry, ...]:
    """Return every method that can be used: built in, registered, then those of other packages."""
    for point in _entry_points():
        if point.name not in _entries:
            try:
                _load(point)
            except MethodError:
                continue
    return tuple(_entries.values())


def unavailable_methods() -> dict[str, str]:
    """Return the reason for each entry point that cannot be used, by its name."""
    reasons: dict[str, str] = {}
    for point in _entry_points():
        try:
            _load(point)
        except MethodError as error:
            reasons[point.name] = str(error)
    return reasons


def methods_help() -> str:
    """Return one line for the help text of an option that takes a method."""
    known = [f"{entry.syntax} ({entry.summary})" for entry in methods()]
    return "; ".join([*known, *(f"{name} (unavailable: {why})" for name, why in unavailable_methods().items())])


def methods_table() -> str:
    """Return a Markdown table of all methods."""
    rows = ["| method | example | what it does | lossless |", "| --- | --- | --- | --- |"]
    for entry in methods():
        examples = ", ".join(f"`{example}`" for example in entry.examples)
        rows.append(f"| `{entry.syntax}` | {examples} | {entry.summary} | {'yes' if entry.lossless else 'no'} |")
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


def _entry_points() -> tuple[metadata.EntryPoint, ...]:
    return tuple(metadata.entry_points(group=ENTRY_POINT_GROUP))


def _load_named(method: str, name: str) -> MethodEntry | None:
    """Return the entry that another package has under a name; None where no package has one."""
    for point in _entry_points():
        if point.name == name:
            try:
                return _load(point)
            except MethodError as error:
                raise MethodError(f"method {method!r}: {error}") from error
    return None


def _load(point: metadata.EntryPoint) -> MethodEntry:
    """Load and register the entry that an entry point refers to.

    Raises:
        MethodError: it cannot be loaded, is no `MethodEntry`, or has a name that differs or is taken.
    """
    source = f"entry point {point.name} = {point.value!r} of {point.dist.name if point.dist else 'an unknown package'}"
    try:
        found = point.load()
    except Exception as error:  # whatever a foreign module does when it is imported
        raise MethodError(f"{source} cannot be loaded ({type(error).__name__}: {error})") from error
    if not isinstance(found, MethodEntry):
        raise MethodError(f"{source}: found {type(found).__name__}, expected a MethodEntry")
    if found.name != point.name:
        raise MethodError(f"{source}: found a method named {found.name!r}, expected {point.name!r}")
    if _entries.get(found.name) is not found:
        try:
            register_method(found)
        except ValueError as error:
            raise MethodError(f"{source}: {error}") from error
    return found
