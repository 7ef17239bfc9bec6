"""What a daemon tells a shim on the standard input of ``start``, in either of its two forms.

Up to containerd 2.2 it is the runtime's options, or nothing; from 2.3 on it is ``BootstrapParams``,
among whose extensions the options are. As both messages have the same numbers and types of fields,
the one is easily taken for the other: parameters are only those that name the very container that
the command line names. Source: containerd's ``pkg/shim/compat.go`` (2.4).
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from taskd.wire import MalformedMessage, fields, signed

__all__ = ["StartRequest"]

# Fields of `BootstrapParams`, of `google.protobuf.Any`, and the one of an `Extension`.
_ID, _NAMESPACE, _LOG_LEVEL, _TTRPC_ADDRESS, _EXTENSIONS, _SOCKET_DIR = 1, 2, 3, 5, 8, 9
_TYPE_URL, _VALUE = 1, 2
_EXTENSION = 1
_DEBUG = -4
"""``LogLevel``; what says more is below."""


class StartRequest(NamedTuple):
    options: tuple[tuple[str, bytes], ...] = ()
    """The runtime's options, of whatever type: its name, and the options serialised."""
    takes_message: bool = False
    """Whether the daemon reads a ``BootstrapResult`` in answer."""
    debug: bool = False
    ttrpc_address: str = ""
    """Where the daemon takes events, if it says so."""
    socket_folder: Path | None = None
    """Where the daemon wants the shim's socket, if it says so."""

    @classmethod
    def parse(cls, given: bytes, id: str, namespace: str) -> StartRequest:  # noqa: A002
        """Understand what was read for the container of that id and namespace.

        What is neither form counts as nothing, as it does for containerd 1.7.
        """
        try:
            found = _fields(given)
            if (_text(found, _ID), _text(found, _NAMESPACE)) != (id, namespace):
                return cls(_options(given))
            extensions = (_fields(_bytes(each)) for each in found.get(_EXTENSIONS, ()))
            values = (_bytes(each) for one in extensions for each in one.get(_EXTENSION, ())[-1:])
            level = found.get(_LOG_LEVEL, [0])[-1]
            folder = _text(found, _SOCKET_DIR)
            return cls(
                tuple(option for value in values for option in _options(value)),
                takes_message=True,
                debug=isinstance(level, int) and signed(level, 32) <= _DEBUG,
                ttrpc_address=_text(found, _TTRPC_ADDRESS),
                socket_folder=Path(folder) if folder else None,
            )
        except MalformedMessage:
            return cls()

    def of_type(self, name: str) -> bytes | None:
        """The options of the message type `name`, serialised."""
        found = (value for url, value in self.options if url.rpartition("/")[2] == name)
        return next(found, None)


def _options(message: bytes) -> tuple[tuple[str, bytes], ...]:
    found = _fields(message)
    url = _text(found, _TYPE_URL)
    return ((url, _bytes(found.get(_VALUE, [b""])[-1])),) if url else ()


def _fields(message: bytes) -> dict[int, list[int | bytes]]:
    """Values by number. It is read by hand: the modules of messages take long to import."""
    found: dict[int, list[int | bytes]] = {}
    for key, value, _, _ in fields(message):
        found.setdefault(key >> 3, []).append(value)
    return found


def _text(found: dict[int, list[int | bytes]], number: int) -> str:
    return os.fsdecode(_bytes(found.get(number, [b""])[-1]))


def _bytes(value: int | bytes) -> bytes:
    if isinstance(value, int):
        raise MalformedMessage("a number where there should be bytes")
    return value
