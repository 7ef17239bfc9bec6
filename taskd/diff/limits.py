"""What a layer may take."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Limits"]


@dataclass(frozen=True, slots=True)
class Limits:
    """The defaults refuse no image that anybody would make."""

    max_size: int = 100 << 30
    """Bytes of a layer, uncompressed, and of all its files."""
    max_entries: int = 10_000_000
    """Files and folders of a layer."""
    sync_fs: bool = False
    """Each layer is on the disk when its call returns, also if that was not asked for."""
