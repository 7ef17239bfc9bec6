"""Values that several floors share and that belong to none of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

__all__ = ["Mount", "TypedValue"]


class TypedValue(NamedTuple):
    """Serialised data and the name of its type: the domain's counterpart of ``protobuf.Any``.

    taskd carries these between clients and shims without looking inside.
    """

    type_url: str
    value: bytes = b""


@dataclass(frozen=True, slots=True)
class Mount:
    """One mount of a root filesystem, as mount(8) would have it.

    `target` is where in it the mount belongs; empty: it is the root.
    """

    type: str
    source: str
    target: str = ""
    options: tuple[str, ...] = ()
