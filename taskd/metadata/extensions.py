"""Extensions, typed values by name, which containers and sandboxes carry."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping

from taskd.errors import DataLoss
from taskd.types import TypedValue

__all__ = ["dump", "load"]


def dump(extensions: Mapping[str, TypedValue]) -> str:
    return json.dumps(
        {
            name: (extension.type_url, base64.b64encode(extension.value).decode())
            for name, extension in extensions.items()
        }
    )


def load(stored: str) -> dict[str, TypedValue]:
    """Extensions as `dump` wrote them. Raises `DataLoss` for anything else, as on a bad disk."""
    try:
        return {
            name: TypedValue(type_url, base64.b64decode(value))
            for name, (type_url, value) in json.loads(stored).items()
        }
    except (AttributeError, TypeError, ValueError):
        message = f"the metadata database is damaged: extensions {stored!r}"
        raise DataLoss(message, verbatim=True) from None
