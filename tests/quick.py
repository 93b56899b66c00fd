"""Retries that do not wait, for tests."""

from __future__ import annotations

from geosam_stac.events import Sink, ignore
from geosam_stac.retry import Retries, RetryPolicy


def quick(tries: int = 5, *, sink: Sink = ignore, timeout_s: float = 20.0) -> Retries:
    """So many tries, one right after the other."""
    policy = RetryPolicy(tries=tries, base_s=0.0, deadline_s=60.0, timeout_s=timeout_s)
    return Retries(policy, sink=sink)
