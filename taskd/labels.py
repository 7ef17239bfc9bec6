"""Labels of containers that are taskd's own, which its client sets."""

from __future__ import annotations

__all__ = ["LOG", "REMOVE"]

LOG = "io.taskd.client/log"
"""The file that what it writes is kept in."""

REMOVE = "io.taskd/remove"
"""With any value: it is removed once its task has ended."""
