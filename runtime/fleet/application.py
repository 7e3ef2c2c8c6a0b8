"""The application for Ray Serve: ``serve run serve.yaml``, where ``fastblt fleet config`` wrote the file.

The import path is ``fastblt.runtime.fleet.application:app``.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ray import serve
from ray.serve import metrics

from fastblt.runtime.fleet.config import DEPLOYMENT
from fastblt.runtime.fleet.options import BundleChoice, FleetOptions
from fastblt.runtime.fleet.ray_metrics import MetricsCopy
from fastblt.runtime.fleet.replica import FleetReplica

log = logging.getLogger("ray.serve")

#: Where Ray finds what chooses the replica of a request.
ROUTER = "fastblt.runtime.fleet.session_router.SessionRouter"
#: Sessions that a replica remembers for each of its sequences: users who think do not lose their replica at once.
SESSIONS_PER_SEQUENCE = 4
#: Seconds between two copies of the figures; and that the known text may take.
COPY_SECONDS = 2.0
CHECK_SECONDS = 10.0


@serve.deployment(name=DEPLOYMENT, request_router_config={"request_router_class": ROUTER})
@serve.ingress()
class Replica:
    """Runs a `FleetReplica` in a process of Ray Serve.

    Args:
        options: of `FleetOptions`.
    """

    def __init__(self, options: dict[str, Any]) -> None:
        _log_to_ray()
        found = FleetOptions.from_dict(options)
        name = serve.get_replica_context().replica_id.unique_id
        self._fleet = FleetReplica(found, name, self._keep_session)
        sessions = SESSIONS_PER_SEQUENCE * found.sequences
        self._session = serve.multiplexed(max_num_models_per_replica=sessions)(_open_session)
        self._metrics = MetricsCopy(metrics)
        self._copying = asyncio.get_running_loop().create_task(self._copy())

    def __serve_build_asgi_app__(self) -> FleetReplica:
        """Return the application."""
        return self._fleet

    async def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Serve the bundle that is named; see `FleetReplica.choose`."""
        await self._fleet.choose(user_config)

    async def check_health(self) -> None:
        """Let the model write a known text.

        Raises:
            Exception: it writes another one, or nothing. Ray then replaces the replica.
        """
        await self._fleet.check(CHECK_SECONDS)

    async def _keep_session(self) -> None:
        """Note that the session of this request is here, so that Ray sends its next request here, too."""
        if session := serve.get_multiplexed_model_id():
            await self._session(session)

    async def _copy(self) -> None:
        while True:
            await asyncio.sleep(COPY_SECONDS)
            try:
                self._copy_once()
            except Exception:
                log.exception("figures were not copied to Ray")

    def _copy_once(self) -> None:
        self._metrics.copy(self._fleet.metrics)
        if self._fleet.current is not None:
            self._metrics.copy(self._fleet.current.host.metrics.registry)
        for registry in self._fleet.earlier():
            self._metrics.copy(registry, gauges=False)


async def _open_session(session: str) -> str:
    return session


def _log_to_ray() -> None:
    """Let the lines of this package appear in the log of the replica."""
    own = logging.getLogger("fastblt")
    own.setLevel(logging.INFO)
    own.parent = log


def app(args: Mapping[str, Any]) -> serve.Application:
    """Return the application for the ``args`` of a file for Ray Serve.

    Args:
        args: options of `FleetOptions`; ``bundle`` as well, where no ``user_config`` names one.

    Raises:
        FleetError: an option does not exist or is of another type.
        BundleError: there is no such bundle.
    """
    options = dict(args)
    bundle = options.pop("bundle", None)
    plain = FleetOptions.from_dict(options).to_dict()
    deployment: Any = Replica  # the decorators make a deployment of the class
    if bundle is not None:
        deployment = deployment.options(user_config=BundleChoice.of(Path(bundle)).to_dict())
    bound: serve.Application = deployment.bind(plain)
    return bound
