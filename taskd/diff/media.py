"""Media types of layers. Source: containerd's ``images/mediatypes.go``, ``DiffCompression``."""

from __future__ import annotations

from typing import Final

from taskd.errors import Unimplemented, Unknown
from taskd.layers.kinds import GZIP, PLAIN, ZSTD

__all__ = ["LAYER", "LAYER_GZIP", "LAYER_ZSTD", "is_compressed", "made"]

LAYER: Final = "application/vnd.oci.image.layer.v1.tar"
LAYER_GZIP: Final = f"{LAYER}+gzip"
LAYER_ZSTD: Final = f"{LAYER}+zstd"

_OCI = {LAYER, "application/vnd.oci.image.layer.nondistributable.v1.tar"}
_DOCKER = {
    f"application/vnd.docker.image.rootfs.{each}"
    for each in ("diff.tar", "diff.tar.gzip", "diff.tar.zstd", "foreign.diff.tar")
} | {"application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"}

_MADE = {LAYER: PLAIN, LAYER_GZIP: GZIP, LAYER_ZSTD: ZSTD}


def is_compressed(media_type: str) -> bool:
    """Whether layers of that type are looked into for how they are compressed, if they are.

    Raises `Unknown` for what is no layer, and for what is encrypted.
    """
    base, plus, rest = media_type.partition("+")
    if base in _DOCKER:
        return not plus  # also a plain one, which may have been called so by mistake
    if base in _OCI and "encrypted" not in rest:
        return max(rest.split("+", 49)) in ("gzip", "zstd")
    raise Unknown(f"failed to get stream processor for {media_type}: no processor for media-type")


def made(media_type: str) -> str:
    """How layers of that type are compressed when they are made. Raises `Unimplemented`."""
    try:
        return _MADE[media_type]
    except KeyError:
        raise Unimplemented(f"unsupported diff media type: {media_type}") from None
