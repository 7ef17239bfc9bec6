"""How snapshots are kept, as the configuration has it. Loads nothing: every command reads it."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["SnapshotsConfig"]


@dataclass(frozen=True, slots=True)
class SnapshotsConfig:
    """Names and defaults are containerd's (``snapshots/overlay/plugin/plugin.go``)."""

    sync_remove: bool = False
    """The folder of what is removed has gone when Remove returns, and not some time later."""
    mount_options: tuple[str, ...] = ()
    """What each overlay is mounted with besides."""
