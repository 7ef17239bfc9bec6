"""What the configuration says of transfers. Loads nothing: every command reads it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

__all__ = ["TransferConfig"]


@dataclass(frozen=True, slots=True)
class TransferConfig:
    """Names and defaults are containerd's (``plugins/transfer``), but for the last."""

    max_concurrent_downloads: int = 3
    """Layers that are fetched at once, of all images together."""
    max_concurrent_uploaded_layers: int = 3
    config_path: Path | None = None
    """Folder with a folder for each registry, unless the client names one."""
    idle_timeout: float = 60.0
    """Seconds without a byte after which a registry is given up."""
