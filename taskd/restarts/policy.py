"""What labels say of restarts. Source: containerd's ``core/runtime/restart/restart.go``."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

__all__ = ["COUNT", "LOG_URI", "POLICIES", "STATUS", "Policy", "count", "policy", "restarts"]

STATUS = "containerd.io/restart.status"
"""What the task of the container is to be: ``running`` or ``stopped``."""
COUNT = "containerd.io/restart.count"
"""How often it has been restarted; the monitor's to set."""
LOG_URI = "containerd.io/restart.loguri"
"""Where a restarted one writes."""

_POLICY = "containerd.io/restart.policy"
_STOPPED = "containerd.io/restart.explicitly-stopped"
"""Set by clients that have stopped the task, and removed by those that start it again."""

POLICIES = ("no", "always", "on-failure", "unless-stopped")

_TRUE = {"1", "t", "T", "TRUE", "true", "True"}


class Policy(NamedTuple):
    name: str
    retries: int = 0
    """For ``on-failure``; without end if it is 0."""


def policy(labels: Mapping[str, str]) -> Policy:
    """What it is; ``always`` if none is said. Raises ValueError for what is none."""
    text = labels.get(_POLICY, "")
    name, *more = text.split(":")
    if name == "on-failure":
        if more and not re.fullmatch(r"[+-]?\d+", more[0]):
            raise ValueError(f"invalid max retry count: {more[0]}")
        return Policy(name, int(more[0]) if more else 0)
    if name not in ("", *POLICIES):
        raise ValueError(f'restart policy "{text}" not supported')
    if more:
        raise ValueError(f'restart policy "{name}" not support max retry count')
    return Policy(name or "always")


def count(labels: Mapping[str, str]) -> int:
    """How often it has been restarted. Raises ValueError for what is no number."""
    return int(labels.get(COUNT) or 0)


def restarts(labels: Mapping[str, str], exit_status: int) -> bool:
    """Whether a task that has ended so is to be restarted. Raises ValueError for bad labels.

    Of a task that is not there the exit status is 0, as in containerd.
    """
    found = policy(labels)
    match found.name:
        case "always":
            return True
        case "on-failure":
            tried = count(labels)
            return exit_status != 0 and (found.retries == 0 or tried < found.retries)
        case "unless-stopped":
            return labels.get(_STOPPED, "") not in _TRUE
    return False
