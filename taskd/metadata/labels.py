"""Labels, which namespaces, containers and leases carry, and filters over them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence

from taskd import filters
from taskd.errors import DataLoss, InvalidArgument, Unknown
from taskd.printable import quoted

__all__ = ["dump", "load", "lookup", "prepare_filters", "updated", "validate"]

_MAX_SIZE = 4096


def validate(labels: Mapping[str, str]) -> None:
    """Raise `InvalidArgument` for a label whose key and value have over 4096 bytes together.

    Source: containerd's ``labels/validate.go``.
    """
    for key, value in labels.items():
        encoded = key.encode()
        if len(encoded) + len(value.encode()) > _MAX_SIZE:
            shown = encoded[:10].decode(errors="replace")
            raise InvalidArgument(
                f"label key and value greater than maximum size ({_MAX_SIZE} bytes), key: {shown}"
            )


def dump(labels: Mapping[str, str]) -> str:
    """Labels as they are stored: an empty value deletes its label (``boltutil/helpers.go``).

    Raises `Unknown` for a label without a key, as containerd does.
    """
    stored = {key: value for key, value in labels.items() if value}
    if "" in stored:
        raise Unknown(f'failed to set label ""="{stored[""]}": key required')
    return json.dumps(stored)


def load(stored: str) -> dict[str, str]:
    """Labels as `dump` wrote them. Raises `DataLoss` for anything else, as on a bad disk."""
    try:
        labels: dict[str, str] = json.loads(stored)
        if all(isinstance(value, str) for value in labels.values()):
            return labels
    except (AttributeError, TypeError, ValueError):
        pass
    raise DataLoss(f"the metadata database is damaged: labels {stored!r}", verbatim=True)


def updated(
    current: Mapping[str, str], given: Mapping[str, str], fieldpaths: Sequence[str], owner: str
) -> dict[str, str]:
    """`current` with what `fieldpaths` name, ``labels`` or ``labels.<key>``, as it is in `given`.

    No path is all labels. Raises `InvalidArgument` for another field of their `owner`, which is
    named so.
    """
    labels = dict(current)
    for path in fieldpaths or ("labels",):
        if path == "labels":
            labels = dict(given)
        elif path.startswith("labels."):
            key = path.removeprefix("labels.")
            labels[key] = given.get(key, "")
        else:
            raise InvalidArgument(f"cannot update {quoted(path)} field on {owner}")
    return labels


def lookup(labels: Mapping[str, str], fieldpath: Sequence[str]) -> tuple[str, bool]:
    """The label whose key is `fieldpath`, joined by dots, for a filter."""
    value = labels.get(".".join(fieldpath))
    return ("", False) if value is None else (value, True)


async def prepare_filters(expressions: Iterable[str]) -> filters.Filter:
    """As `filters.prepare`; containerd's stores name the kind of its error a second time."""
    try:
        return await filters.prepare(expressions)
    except InvalidArgument as error:
        raise InvalidArgument(f"{error.message}: {error.kind}", verbatim=True) from None
