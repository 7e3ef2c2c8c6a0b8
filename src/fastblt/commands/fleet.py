"""``fastblt fleet``: the server on several processes and machines; each command below it is in a file of its own."""

from __future__ import annotations

from fastblt.commands.fleet_capacity import capacity
from fastblt.commands.fleet_config import config

#: Commands below this one.
COMMANDS = {"config": config, "capacity": capacity}
