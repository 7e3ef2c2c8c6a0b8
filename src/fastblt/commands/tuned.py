"""Looks up what ``fastblt tune`` found, for commands that run a bundle: options come first, then the profile."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, NamedTuple

import typer

from fastblt.commands.output import note, stderr
from fastblt.runtime.measure.tune.profile import Profile, ProfileError, find_profile
from fastblt.runtime.measure.tune.settings import DEFAULT_METHOD

ProfileOption = Annotated[
    bool,
    typer.Option(
        "--profile/--no-profile",
        help="Take what `fastblt tune` found for this bundle and machine in place of options that are not given.",
    ),
]


class Tuned(NamedTuple):
    """Holds what a command runs."""

    bundle: Path
    method: str | None
    """None: the command's default."""
    threads: int | None
    """None: the backend's choice."""


def usable_profile(bundle: Path, backend: str, provider: str) -> Profile | None:
    """Return the profile of a bundle; None where there is none, or one that is ignored with a warning."""
    try:
        return find_profile(bundle, backend, provider)
    except ProfileError as error:
        note(stderr(), f"warning: {error}; ignored, fastblt tune {bundle} writes a new one")
        return None


def tuned(
    bundle: Path, backend: str, provider: str, *, method: str | None, threads: int | None, profile: bool
) -> Tuned:
    """Return what to run; a note says so where its text is not what lossless methods write with the bundle.

    Args:
        bundle: the user's argument.
        backend: option of the command.
        provider: option of the command.
        method: option of the command; None: not given.
        threads: option of the command; None: not given.
        profile: whether the profile may be read.
    """
    found = usable_profile(bundle, backend, provider) if profile else None
    if found is None:
        return Tuned(bundle, method, threads)
    runs = bundle if found.runs is None else Path(found.runs.path)
    if found.allow_lossy:
        text = f"tuned with --allow-lossy: {runs} with {method or found.method}; --no-profile: the bundle as it is"
        note(stderr(), text)
    # A seed does not fix what the default method samples; without a name, commands take another one then.
    own = None if found.method == DEFAULT_METHOD else found.method
    return Tuned(runs, method or own, threads or found.threads)
