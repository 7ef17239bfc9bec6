"""The messages within frames: ``ttrpc.Request`` and ``ttrpc.Response``.

Their protobuf is read and written by hand: they are coded on every call, and a peer's garbage
must surface as `ProtocolError` and nothing else. Fields that are unknown, or that have another
wire type than they should, are skipped, as Go's protobuf does.

Source: ttrpc's ``request.proto``.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Final, NamedTuple

from taskd.ttrpc.frames import ProtocolError

__all__ = ["KeyValue", "Request", "Response"]

_VARINT: Final = 0
_FIXED64: Final = 1
_BYTES: Final = 2
_START_GROUP: Final = 3
_END_GROUP: Final = 4
_FIXED32: Final = 5

_MAX_FIELD_NUMBER: Final = (1 << 29) - 1
_UINT64: Final = (1 << 64) - 1


class KeyValue(NamedTuple):
    """One metadata entry; a key with several values has several entries."""

    key: str
    value: str


@dataclass(slots=True)
class Request:
    service: str
    method: str
    payload: bytes = b""
    # Time that is left to the call in ns; 0: no limit; negative: it is over.
    timeout_nano: int = 0
    metadata: tuple[KeyValue, ...] = ()

    def encode(self) -> bytes:
        encoded = _route(self.service, self.method)
        if self.payload:
            encoded += _bytes_field(3, self.payload)
        if self.timeout_nano:
            encoded += _varint_field(4, self.timeout_nano)
        for key, value in self.metadata:
            encoded += _bytes_field(5, _text_field(1, key) + _text_field(2, value))
        return encoded

    @classmethod
    def decode(cls, data: bytes) -> Request:
        """Raises `ProtocolError` if `data` is no such message."""
        request = cls("", "")
        metadata = []
        for tag, number, content in _fields(data):
            if tag == 1 << 3 | _BYTES:
                request.service = _text(content)
            elif tag == 2 << 3 | _BYTES:
                request.method = _text(content)
            elif tag == 3 << 3 | _BYTES:
                request.payload = content
            elif tag == 4 << 3 | _VARINT:
                request.timeout_nano = _signed(number, 64)
            elif tag == 5 << 3 | _BYTES:
                metadata.append(_decode_key_value(content))
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
            encoded = _bytes_field(1, status)
        if self.payload:
            encoded += _bytes_field(2, self.payload)
        return encoded

    @classmethod
    def decode(cls, data: bytes) -> Response:
        """Raises `ProtocolError` if `data` is no such message."""
        response = cls()
        for tag, _, content in _fields(data):
            if tag == 1 << 3 | _BYTES:
                response._merge_status(content)
            elif tag == 2 << 3 | _BYTES:
                response.payload = content
        return response

    def _merge_status(self, data: bytes) -> None:
        for tag, number, content in _fields(data):
            if tag == 1 << 3 | _VARINT:
                self.code = _signed(number, 32)
            elif tag == 2 << 3 | _BYTES:
                self.message = _text(content)


def _decode_key_value(data: bytes) -> KeyValue:
    key = value = ""
    for tag, _, content in _fields(data):
        if tag == 1 << 3 | _BYTES:
            key = _text(content)
        elif tag == 2 << 3 | _BYTES:
            value = _text(content)
    return KeyValue(key, value)


@functools.lru_cache(maxsize=128)
def _route(service: str, method: str) -> bytes:
    """The fields that say what is called: of few values, and the same on call after call."""
    return (_text_field(1, service) if service else b"") + (
        _text_field(2, method) if method else b""
    )


def _varint(value: int) -> bytes:
    if value < 0x80:
        return bytes((value,))
    encoded = bytearray()
    while value >= 0x80:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def _varint_field(field: int, value: int) -> bytes:
    return _varint(field << 3 | _VARINT) + _varint(value & _UINT64)


def _bytes_field(field: int, value: bytes) -> bytes:
    return b"".join((_varint(field << 3 | _BYTES), _varint(len(value)), value))


def _text_field(field: int, value: str) -> bytes:
    # An error's text may hold a file name that is not UTF-8; it must reach the peer all the same.
    return _bytes_field(field, value.encode(errors="backslashreplace"))


def _text(content: bytes) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError:
        raise ProtocolError("malformed message: text that is not UTF-8") from None


def _signed(value: int, bits: int) -> int:
    value &= (1 << bits) - 1
    return value - (1 << bits) if value >> (bits - 1) else value


def _fields(data: bytes) -> list[tuple[int, int, bytes]]:
    """All fields that are numbers or bytes: the tag, and the number or else the bytes."""
    fields = []
    position, end = 0, len(data)
    while position < end:
        tag, position = _read_tag(data, position)
        kind = tag & 7
        if kind == _BYTES:
            length, position = _read_varint(data, position)
            start, position = position, position + length
            if position > end:
                raise ProtocolError("malformed message: truncated field")
            fields.append((tag, 0, data[start:position]))
        elif kind == _VARINT:
            number, position = _read_varint(data, position)
            fields.append((tag, number, b""))
        else:
            position = _skip(data, position, tag)
    return fields


def _read_tag(data: bytes, position: int) -> tuple[int, int]:
    tag, position = _read_varint(data, position)
    if not 1 <= tag >> 3 <= _MAX_FIELD_NUMBER:
        raise ProtocolError(f"malformed message: field number {tag >> 3}")
    return tag, position


def _read_varint(data: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    try:
        while True:
            byte = data[position]
            position += 1
            if byte < 0x80:
                break
            value |= (byte & 0x7F) << shift
            shift += 7
            if shift > 63:
                raise ProtocolError("malformed message: number of more than 64 bits")
    except IndexError:
        raise ProtocolError("malformed message: truncated number") from None
    value |= byte << shift
    if value > _UINT64:
        raise ProtocolError("malformed message: number of more than 64 bits")
    return value, position


def _skip(data: bytes, position: int, tag: int) -> int:
    """Where the field with `tag`, whose value starts at `position`, ends."""
    groups = []
    while True:
        kind = tag & 7
        if kind == _VARINT:
            _, position = _read_varint(data, position)
        elif kind == _FIXED64:
            position += 8
        elif kind == _FIXED32:
            position += 4
        elif kind == _BYTES:
            length, position = _read_varint(data, position)
            position += length
        elif kind == _START_GROUP:
            groups.append(tag >> 3)
        elif kind != _END_GROUP or not groups or groups.pop() != tag >> 3:
            raise ProtocolError(f"malformed message: wire type {kind}")
        if position > len(data):
            raise ProtocolError("malformed message: truncated field")
        if not groups:
            return position
        tag, position = _read_tag(data, position)
