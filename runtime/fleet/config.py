"""Makes the file that Ray Serve runs a fleet from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fastblt.runtime.fleet.options import BundleChoice, FleetError, FleetOptions

#: What Ray Serve imports; the name of its deployment there.
IMPORT_PATH = "fastblt.runtime.fleet.application:app"
DEPLOYMENT = "replica"
#: Seconds between two checks of a replica, and that one may take.
CHECK_PERIOD, CHECK_TIMEOUT = 10.0, 30.0
#: Seconds of Ray's own beyond those that texts have to end in.
SPARE = 10.0
#: Requests of a replica for each of its sequences: those that wait begin as soon as a place is free.
ONGOING_PER_SEQUENCE = 2


@dataclass(frozen=True)
class FleetConfig:
    """Holds how many replicas there are, what each of them has, and where the fleet listens."""

    min_replicas: int = 1
    max_replicas: int = 1
    gpus: float = 0.0
    """GPUs of a replica; 0.25: four share one."""
    cpus: float = 1.0
    target_ongoing: float | None = None
    """Requests of a replica, waiting ones included, that replicas are added or removed for; None: its sequences."""
    max_ongoing: int | None = None
    """Most requests that a replica is sent at once; None: twice its sequences."""
    max_queued: int = 256
    """Most requests that wait for a replica at each proxy; more are answered with 429."""
    upscale_delay: float = 10.0
    downscale_delay: float = 300.0
    surge: int = 0
    """Replicas that an update starts before it stops others, in percent."""
    host: str = "127.0.0.1"
    port: int = 8000

    def __post_init__(self) -> None:
        """Check what several values have to do with one another.

        Raises:
            FleetError: they do not fit.
        """
        if not 1 <= self.min_replicas <= self.max_replicas:
            raise FleetError(
                f"replicas: found at least {self.min_replicas} and at most {self.max_replicas}, expected 1 or more, "
                "and the first not greater than the second"
            )
        if self.target_ongoing is not None and self.min_replicas == self.max_replicas:
            raise FleetError(
                f"target_ongoing: found {self.target_ongoing:g} for {self.min_replicas} replicas at any time, expected "
                "more replicas at most (max_replicas) than at least (min_replicas)"
            )
        if self.gpus > 1 and self.gpus != int(self.gpus):
            raise FleetError(f"gpus: found {self.gpus}, expected a part of one GPU or a whole number of them")

    def to_dict(self, choice: BundleChoice, options: FleetOptions) -> dict[str, Any]:
        """Return the file as plain values, in the schema of Ray Serve (``ServeDeploySchema``).

        Args:
            choice: the bundle; its folder is the same on every machine.
            options: of every replica.
        """
        application = {
            "name": "fastblt",
            "route_prefix": "/",
            "import_path": IMPORT_PATH,
            "args": options.to_dict(),
            "deployments": [self._deployment(choice, options)],
        }
        return {
            "proxy_location": "EveryNode",
            # An answer may take as long as a replica lets it, and then some.
            "http_options": {"host": self.host, "port": self.port, "request_timeout_s": options.timeout + SPARE},
            "applications": [application],
        }

    def _deployment(self, choice: BundleChoice, options: FleetOptions) -> dict[str, Any]:
        actor = {"num_cpus": self.cpus, **({"num_gpus": self.gpus} if self.gpus else {})}
        return {
            "name": DEPLOYMENT,
            "user_config": choice.to_dict(),
            **self._replicas(options),
            "max_ongoing_requests": self.max_ongoing or ONGOING_PER_SEQUENCE * options.sequences,
            "max_queued_requests": self.max_queued,
            "backpressure_config": {"status_code": 429, "retry_after_s": 1.0},
            "health_check_period_s": CHECK_PERIOD,
            "health_check_timeout_s": CHECK_TIMEOUT,
            "graceful_shutdown_wait_loop_s": 1.0,
            "graceful_shutdown_timeout_s": options.drain + SPARE,
            **({"max_surge_percent": self.surge} if self.surge else {}),
            "ray_actor_options": actor,
        }

    def _replicas(self, options: FleetOptions) -> dict[str, Any]:
        if self.min_replicas == self.max_replicas:
            return {"num_replicas": self.min_replicas}
        return {
            "autoscaling_config": {
                "min_replicas": self.min_replicas,
                "max_replicas": self.max_replicas,
                "target_ongoing_requests": self.target_ongoing or float(options.sequences),
                "upscale_delay_s": self.upscale_delay,
                "downscale_delay_s": self.downscale_delay,
            }
        }
