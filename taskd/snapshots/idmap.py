"""Mappings of owners in a snapshot's labels. Source: containerd's ``internal/userns/idmap.go``."""

from __future__ import annotations

import re

from taskd.errors import Unknown

__all__ = ["root"]

_NONE = 2**32 - 1  # (uid_t) -1


def root(uids: str, gids: str) -> tuple[int, int]:
    """Who root is outside, with mappings such as ``0:100000:65536,…``; itself without any.

    Raises `Unknown` for what is no mapping, or has no root.
    """
    try:
        mapped = [_parsed(each) for each in (uids, gids)]
    except ValueError as error:
        raise Unknown(f"failed to unmarshal snapshot ID mapped labels: {error}") from None
    try:
        uid, gid = (_outside(0, each) for each in mapped)
    except ValueError as error:
        raise Unknown(f"failed to find root pair: {error}") from None
    return uid, gid


def _parsed(text: str) -> list[tuple[int, int, int]]:
    found = []
    for one in text.split(",") if text else ():
        parts = re.match(r"([+-]?\d+):([+-]?\d+):([+-]?\d+)", one)
        if parts is None:
            raise ValueError(f"input value {one} unparsable: expected integer")
        inside, outside, size = (int(part) for part in parts.groups())
        if not all(0 <= number < _NONE for number in (inside, outside, size)):
            raise ValueError(f'invalid mapping "{one}"')
        found.append((inside, outside, size))
    return found


def _outside(number: int, mappings: list[tuple[int, int, int]]) -> int:
    if not mappings:
        return number
    for inside, outside, size in mappings:
        if inside <= number < inside + size and outside + number - inside < _NONE:
            return outside + number - inside
    raise ValueError(f"container ID {number} cannot be mapped to a host ID")
