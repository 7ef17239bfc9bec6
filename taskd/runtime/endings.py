"""The ways in which a tenant's stay in a shim's process ends, as decisions.

All go through `taskd.runtime.shims.Shims.take_down`.
"""

from __future__ import annotations

import enum
from typing import NamedTuple

__all__ = ["DIED", "FINISHED", "NOT_STARTED", "UNKNOWN", "Delete", "Ending"]


class Delete(enum.Enum):
    """Whether the shim's ``delete`` is run for a tenant that leaves."""

    NEVER = enum.auto()
    ALWAYS = enum.auto()
    UNLESS_AGREED = enum.auto()
    """If the process was to end, and had to be killed."""
    AS_USUAL = enum.auto()
    """As after a task that the shim itself has deleted: if its generation wants it, at once."""


class Ending(NamedTuple):
    """What the ways in which a tenant's stay ends differ in."""

    asks: bool
    """The process, if it has no other tenants, is asked to end; else it is killed."""
    trusts: bool
    """It is not killed if it agrees."""
    delete: Delete


NOT_STARTED = Ending(asks=False, trusts=False, delete=Delete.NEVER)
"""Its ``start`` failed, or was cut short: there is nothing yet to clean up after."""
FINISHED = Ending(asks=True, trusts=True, delete=Delete.AS_USUAL)
"""Its task was deleted, as the shim has answered."""
UNKNOWN = Ending(asks=True, trusts=True, delete=Delete.ALWAYS)
"""The process answers, and has no such task: an earlier daemon was making it, or had deleted it."""
DIED = Ending(asks=False, trusts=False, delete=Delete.ALWAYS)
"""The process cannot be asked any more."""
