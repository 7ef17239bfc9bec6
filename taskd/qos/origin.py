"""Who may have named a class."""

from __future__ import annotations

from enum import StrEnum

__all__ = ["Origin"]


class Origin(StrEnum):
    """Whose annotation names a class; the values are goresctrl's words."""

    POD = "Pod annotations"
    CONTAINER = "Container annotation"
