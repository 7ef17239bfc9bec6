"""containerd's rule for the names of containers, execs, leases and namespaces.

Source: containerd's ``identifiers/validate.go``. What passes is safe as one component of a path
and as one argument of a command line.
"""

from __future__ import annotations

import json
import re
from functools import lru_cache

from taskd.errors import InvalidArgument

__all__ = ["MAX_LENGTH", "validate"]

MAX_LENGTH = 76

_PATTERN = "^[A-Za-z0-9]+(?:[._-](?:[A-Za-z0-9]+))*$"
_IDENTIFIER = re.compile(r"[A-Za-z0-9]+(?:[._-][A-Za-z0-9]+)*", re.ASCII)


@lru_cache(maxsize=1024)
def validate(identifier: str) -> None:
    """Raise `InvalidArgument`, in containerd's words, unless `identifier` is a valid one."""
    quoted = json.dumps(identifier, ensure_ascii=False)
    if not identifier:
        raise InvalidArgument("identifier must not be empty")
    if len(identifier.encode()) > MAX_LENGTH:
        raise InvalidArgument(
            f"identifier {quoted} greater than maximum length ({MAX_LENGTH} characters)"
        )
    if not _IDENTIFIER.fullmatch(identifier):
        raise InvalidArgument(f"identifier {quoted} must match {_PATTERN}")
