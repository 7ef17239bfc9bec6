"""How a layer may be compressed."""

from __future__ import annotations

__all__ = ["GZIP", "PLAIN", "ZSTD"]

PLAIN, GZIP, ZSTD = "", "gzip", "zstd"
