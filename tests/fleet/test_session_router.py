"""Where a session is at home, and how few of them move when there are more replicas."""

from __future__ import annotations

from collections import Counter


def test_sessions_are_spread_and_few_move() -> None:
    from ray.serve._private.common import DeploymentID, ReplicaID

    from fastblt.runtime.fleet.session_router import home_of

    replicas = [ReplicaID(f"r{number}", DeploymentID("replica", "fastblt")) for number in range(5)]
    sessions = [f"user {number}" for number in range(2000)]
    before = {session: home_of(session, replicas[:4]) for session in sessions}
    assert before == {session: home_of(session, reversed(replicas[:4])) for session in sessions}
    assert all(400 < count < 600 for count in Counter(before.values()).values())
    after = {session: home_of(session, replicas) for session in sessions}
    moved = [session for session in sessions if after[session] != before[session]]
    assert 300 < len(moved) < 500
    assert {after[session] for session in moved} == {replicas[4]}
