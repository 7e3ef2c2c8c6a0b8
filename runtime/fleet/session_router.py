"""Sends the requests of a session to the replica that has its texts.

Ray knows a session's replica only some tenths of a second after its first request. Until then its own router would
choose another one for a quick second request, and the session would have two homes for good. So the home of a session
that is not known yet follows from its name, and all proxies agree on it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from ray.serve._private.request_router.pow_2_router import PowerOfTwoChoicesRequestRouter
from ray.serve.request_router import PendingRequest, ReplicaID


def home_of(session: str, replicas: Iterable[ReplicaID]) -> ReplicaID:
    """Return the replica whose name, hashed with the session's, is the greatest: few sessions move when others come."""
    return max(replicas, key=lambda each: hashlib.blake2b(f"{each.unique_id}\0{session}".encode()).digest())


class SessionRouter(PowerOfTwoChoicesRequestRouter):
    """Routes like Ray's own router, but for the first attempt of a request that has a session."""

    def apply_multiplex_routing(self, pending_request: PendingRequest | None = None) -> set[ReplicaID]:
        """Return the replicas that a request may go to: its session's home; if that has no room, those of Ray's."""
        if pending_request is not None and not pending_request.routing_context.tried_first_multiplexed_models:
            session = pending_request.metadata.multiplexed_model_id
            known = self._multiplexed_model_id_to_replica_ids.get(session, set()) & self._replica_id_set
            if candidates := known or self._replica_id_set:
                super().apply_multiplex_routing(pending_request)  # it notes the time, and that there was an attempt
                return {home_of(session, candidates)}
        found: set[ReplicaID] = super().apply_multiplex_routing(pending_request)
        return found
