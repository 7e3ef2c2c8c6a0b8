"""Lists the parts of the campaign."""

from __future__ import annotations

from campaign.part import Part
from campaign.parts.archives import Archives
from campaign.parts.bundles import Bundles
from campaign.parts.checkpoints import Checkpoints
from campaign.parts.commands import Commands
from campaign.parts.correctness import Correctness
from campaign.parts.faults import Faults
from campaign.parts.kills import Kills
from campaign.parts.requests import Requests
from campaign.parts.serve import Serve
from campaign.parts.soak import Soak
from campaign.parts.threads import Threads

#: In the order of the report.
PARTS: tuple[Part, ...] = (
    Bundles(),
    Checkpoints(),
    Archives(),
    Requests(),
    Commands(),
    Kills(),
    Faults(),
    Threads(),
    Soak(),
    Serve(),
    Correctness(),
)


def parts_named(names: str) -> list[Part]:
    """Return the parts whose names a comma-separated list has; an empty list has all.

    Raises:
        ValueError: there is no part of one of these names.
    """
    known = {part.name: part for part in PARTS}
    wanted = [name.strip() for name in names.split(",") if name.strip()] or list(known)
    unknown = [name for name in wanted if name not in known]
    if unknown:
        raise ValueError(f"parts: found {', '.join(unknown)}, expected some of {', '.join(known)}")
    return [known[name] for name in wanted]
