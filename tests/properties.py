"""Sets up Hypothesis: the same examples at every run, or many new ones with ``HYPOTHESIS_PROFILE=nightly``."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

#: Whether there is time for what only costs more: `make test` tries a smaller case of the same.
THOROUGH = os.environ.get("HYPOTHESIS_PROFILE") == "nightly"
#: How many times the examples that a test asks for the nightly profile tries.
NIGHTLY_FACTOR = 20


def load_profile() -> None:
    """Load the profile named by ``HYPOTHESIS_PROFILE``, by default ``ci``; a crowded machine is no failure in either.

    ``ci`` derives its examples from the test itself, so that a run that fails fails again. ``nightly`` draws new ones
    each time and keeps those that failed in ``.hypothesis``.
    """
    slow_setups = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
    common = settings(deadline=None, suppress_health_check=slow_setups, print_blob=True)
    settings.register_profile("ci", common, derandomize=True, database=None)
    settings.register_profile("nightly", common, max_examples=100 * NIGHTLY_FACTOR)
    settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


def examples(count: int) -> settings:
    """Return the decorator for a property that is tried ``count`` times, and more often by the nightly profile."""
    return settings(max_examples=count * settings().max_examples // 100)
