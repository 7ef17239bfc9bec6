"""Messages with descriptors, between a shim and the daemon that keeps them for it.

JSON objects over a seqpacket socket. A shim begins with ``namespace``, ``pid`` and ``version``.
Then it sends, for one process (``container``, ``process``: an exec's id, or empty) of its own, the
names of slots to fill (``put``, with as many descriptors) and of slots to empty (``drop``); with
``anew`` there is nothing in others. It asks for what was kept of containers (``recover``), and is
sent it in the same form, and ``done``. Asked to ``leave``, it ends where another one can go on, or
says why it ``stays``.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["ADDRESS", "MAX_DESCRIPTORS", "MAX_MESSAGE", "Slots", "receive", "send"]

ADDRESS = "TASKD_DESCRIPTOR_STORE"
"""Variable of a shim's environment with the daemon's socket; without one nothing is kept."""
MAX_MESSAGE = 1 << 16
MAX_DESCRIPTORS = 64
"""In one message: more than one process can have."""

Slots = dict[str, int]
"""Descriptors of one process by what they are for."""


def send(
    connection: socket.socket, message: Mapping[str, Any], descriptors: Sequence[int] = ()
) -> None:
    """Raises OSError: BlockingIOError if there is no room just now."""
    socket.send_fds(connection, [json.dumps(message).encode()], descriptors)


def receive(connection: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """A message, and its descriptors, which are the caller's; an empty one at the end.

    Raises OSError (BlockingIOError if there is none just now), and ValueError for what is none.
    """
    data, descriptors, flags, _ = socket.recv_fds(
        connection, MAX_MESSAGE, MAX_DESCRIPTORS, socket.MSG_CMSG_CLOEXEC
    )
    try:
        if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
            raise ValueError("the message is too long")
        message = json.loads(data) if data else {}
        if not isinstance(message, dict):
            raise ValueError("the message is no object")
    except BaseException:
        for descriptor in descriptors:
            os.close(descriptor)
        raise
    return message, descriptors
