"""Keeps named entries of one kind: built in, registered in this process, or found in the metadata of other packages.

Entry points are read only when an unknown name or a list of all entries is asked for. One that cannot be loaded is
reported where it is asked for, and listed as unavailable elsewhere; it never disturbs the others.
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib import metadata
from typing import Generic, Protocol, TypeVar

#: Characters that separate names from other things in options.
_SEPARATORS = ":,/ "


class Named(Protocol):
    """Has the name that users write."""

    @property
    def name(self) -> str:
        """Return the name."""
        ...


T = TypeVar("T", bound=Named)


class Plugins(Generic[T]):
    """Holds the entries of one kind, by name and in the order in which they became known.

    Args:
        kind: what an entry describes, for error messages: ``backend``.
        group: entry-point group of other packages: ``fastblt.backends``.
        entry_type: class of the entries.
        error: raised for entries that cannot be used.
        built_in: entries of this package.
    """

    def __init__(
        self, kind: str, group: str, entry_type: type[T], error: type[ValueError], built_in: Iterable[T]
    ) -> None:
        self._kind, self._group, self._type, self._error = kind, group, entry_type, error
        self._entries = {entry.name: entry for entry in built_in}

    def register(self, entry: T) -> None:
        """Make an entry known for the rest of the process.

        Raises:
            ValueError: its name is taken, empty, or holds ``:``, ``,``, ``/`` or a space.
        """
        if not entry.name or any(separator in entry.name for separator in _SEPARATORS):
            found = f"{self._kind} entry: found name {entry.name!r}"
            raise ValueError(f"{found}, expected one without ':', ',', '/' and spaces")
        if entry.name in self._entries:
            found = f"{self._kind} entry: found {entry.name!r}, which is registered already"
            raise ValueError(f"{found}, expected a new name")
        self._entries[entry.name] = entry

    def get(self, name: str) -> T | None:
        """Return the entry with a name; None where there is none.

        Raises:
            ValueError: the entry point of this name cannot be used; the class is the ``error`` of the constructor.
        """
        known = self._entries.get(name)
        if known is None:
            known = next((self._load(point) for point in self._entry_points() if point.name == name), None)
        return known

    def all(self) -> tuple[T, ...]:
        """Return every entry that can be used: built in, registered, then those of other packages."""
        for point in self._entry_points():
            if point.name not in self._entries:
                try:
                    self._load(point)
                except self._error:
                    continue
        return tuple(self._entries.values())

    def unavailable(self) -> dict[str, str]:
        """Return why an entry point cannot be used, by the name of each that cannot."""
        reasons: dict[str, str] = {}
        for point in self._entry_points():
            try:
                self._load(point)
            except self._error as error:
                reasons[point.name] = str(error)
        return reasons

    def _entry_points(self) -> tuple[metadata.EntryPoint, ...]:
        return tuple(metadata.entry_points(group=self._group))

    def _load(self, point: metadata.EntryPoint) -> T:
        """Load and register the entry that an entry point refers to.

        Raises:
            ValueError: it cannot be loaded, is of another class, or has a name that differs or is taken.
        """
        package = point.dist.name if point.dist else "an unknown package"
        source = f"entry point {point.name} = {point.value!r} of {package}"
        try:
            found = point.load()
        except Exception as error:  # whatever a foreign module does when it is imported
            raise self._error(f"{source} cannot be loaded ({type(error).__name__}: {error})") from error
        if not isinstance(found, self._type):
            kind = self._type.__name__
            article = "an" if kind[0] in "AEIOU" else "a"
            raise self._error(f"{source}: found {type(found).__name__}, expected {article} {kind}")
        if found.name != point.name:
            raise self._error(f"{source}: found a {self._kind} named {found.name!r}, expected {point.name!r}")
        if self._entries.get(found.name) is not found:
            try:
                self.register(found)
            except ValueError as error:
                raise self._error(f"{source}: {error}") from error
        return found
