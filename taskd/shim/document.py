"""What a client has written as JSON."""

from __future__ import annotations

import json

from taskd.errors import Unknown

TYPE_CHECKING = False  # as of `typing`, which a shim's `delete` does without
if TYPE_CHECKING:
    from typing import Any

__all__ = ["document"]


def document(text: bytes, what: str) -> dict[str, Any]:
    """The object that `text` is. Raises `Unknown`, which names `what`, if it is none."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as exc:
        raise Unknown(f"{what} is not JSON: {exc}") from exc
    if not isinstance(found, dict):
        raise Unknown(f"{what} is not a JSON object: {type(found).__name__}")
    return found
