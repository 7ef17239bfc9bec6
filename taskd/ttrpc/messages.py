"""The messages within frames: ``ttrpc.Request`` and ``ttrpc.Response``.

Their protobuf is read and written by hand: they are coded on every call, and a peer's garbage
must surface as `ProtocolError` and nothing else. Fields that are unknown, or that have another
wire type than they should, are skipped, as Go's protobuf does.

Source: ttrpc's ``request.proto``.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from taskd import wire
from taskd.ttrpc.frames import ProtocolError
from taskd.wire import BYTES, VARINT, bytes_field, signed, tag, varint

__all__ = ["KeyValue", "Request", "Response"]

# Of a `Request`.
_SERVICE: Final = tag(1, BYTES)
_METHOD: Final = tag(2, BYTES)
_PAYLOAD: Final = tag(3, BYTES)
_TIMEOUT: Final = tag(4, VARINT)
_METADATA: Final = tag(5, BYTES)

# Of a `Response`, and of the `Status` in it.
_STATUS: Final = tag(1, BYTES)
_ANSWER: Final = tag(2, BYTES)
_CODE: Final = tag(1, VARINT)
_MESSAGE: Final = tag(2, BYTES)

# Of a `KeyValue`.
_KEY: Final = tag(1, BYTES)
_VALUE: Final = tag(2, BYTES)


class KeyValue(NamedTuple):
    """One metadata entry; a key with several values has several entries."""

    key: str
    value: str


@dataclass(slots=True)
class Request:
    service: str
    method: str
    payload: bytes = b""
    # Time that is left to the call in ns; 0 or less: no limit.
    timeout_nano: int = 0
    metadata: tuple[KeyValue, ...] = ()

    def encode(self) -> bytes:
        parts = [_route(self.service, self.method)]
        if self.payload:
            parts.append(bytes_field(3, self.payload))
        if self.timeout_nano:
            parts.append(_varint_field(4, self.timeout_nano))
        for key, value in self.metadata:
            parts.append(bytes_field(5, _text_field(1, key) + _text_field(2, value)))
        return b"".join(parts)

    @classmethod
    def decode(cls, data: bytes) -> Request:
        """Raises `ProtocolError` if `data` is no such message."""
        request = cls("", "")
        metadata = []
        for key, value, _, _ in _fields(data):
            if key == _SERVICE:
                request.service = _text(value)
            elif key == _METHOD:
                request.method = _text(value)
            elif key == _PAYLOAD:
                request.payload = value
            elif key == _TIMEOUT:
                request.timeout_nano = signed(value, 64)
            elif key == _METADATA:
                metadata.append(_decode_key_value(value))
        if metadata:
            request.metadata = tuple(metadata)
        return request


@dataclass(slots=True)
class Response:
    """An answer; `code` and `message` are its ``google.rpc.Status``, of which 0 is success."""

    code: int = 0
    message: str = ""
    payload: bytes = b""

    def encode(self) -> bytes:
        encoded = b""
        if self.code or self.message:
            status = _varint_field(1, self.code) if self.code else b""
            if self.message:
                status += _text_field(2, self.message)
            encoded = bytes_field(1, status)
        if self.payload:
            encoded += bytes_field(2, self.payload)
        return encoded

    @classmethod
    def decode(cls, data: bytes) -> Response:
        """Raises `ProtocolError` if `data` is no such message."""
        response = cls()
        for key, value, _, _ in _fields(data):
            if key == _STATUS:
                response._merge_status(value)
            elif key == _ANSWER:
                response.payload = value
        return response

    def _merge_status(self, data: bytes) -> None:
        for key, value, _, _ in _fields(data):
            if key == _CODE:
                self.code = signed(value, 32)
            elif key == _MESSAGE:
                self.message = _text(value)


def _decode_key_value(data: bytes) -> KeyValue:
    entry = {_KEY: "", _VALUE: ""}
    for key, value, _, _ in _fields(data):
        if key in entry:
            entry[key] = _text(value)
    return KeyValue(*entry.values())


@functools.lru_cache(maxsize=128)
def _route(service: str, method: str) -> bytes:
    """The fields that say what is called: of few values, and the same on call after call."""
    return (_text_field(1, service) if service else b"") + (
        _text_field(2, method) if method else b""
    )


def _varint_field(field: int, value: int) -> bytes:
    return varint(tag(field, VARINT)) + varint(value)


def _text_field(field: int, value: str) -> bytes:
    # An error's text may hold a file name that is not UTF-8; it must reach the peer all the same.
    return bytes_field(field, value.encode(errors="backslashreplace"))


def _text(content: bytes) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError:
        raise ProtocolError("malformed message: text that is not UTF-8") from None


def _fields(data: bytes) -> list[tuple[int, Any, int, int]]:
    """All fields, whose tag says whether the value is a number or bytes."""
    try:
        return wire.fields(data)
    except wire.MalformedMessage as exc:
        raise ProtocolError(f"malformed message: {exc.reason}") from None
