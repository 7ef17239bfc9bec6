"""Digests of content, such as ``sha256:<hex>``. Source: go-digest's ``digest.go``.

What passes is safe as two components of a path: the algorithm, and what comes after the colon.
"""

from __future__ import annotations

import hashlib
import re

from taskd.errors import InvalidArgument

__all__ = ["of", "validate"]

_LENGTHS = {"sha256": 64, "sha384": 96, "sha512": 128}
_FORM = re.compile(r"[a-z0-9]+(?:[.+_-][a-z0-9]+)*:[a-zA-Z0-9=_-]+")
_HEX = re.compile(r"[a-f0-9]+")


def of(content: bytes) -> str:
    """The digest under which content is stored, which is always SHA-256."""
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def validate(digest: str) -> None:
    """Raise `InvalidArgument`, with go-digest's text and no more, for what is no digest."""
    algorithm, _, encoded = digest.partition(":")
    length = _LENGTHS.get(algorithm)
    if not algorithm or not encoded:
        problem = "invalid checksum digest format"
    elif length is None and _FORM.fullmatch(digest):
        problem = "unsupported digest algorithm"
    elif length is not None and len(encoded.encode()) != length:
        problem = "invalid checksum digest length"
    elif length is None or not _HEX.fullmatch(encoded):
        problem = "invalid checksum digest format"
    else:
        return
    raise InvalidArgument(problem, verbatim=True)
