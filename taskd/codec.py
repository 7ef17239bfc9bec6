"""betterproto2's messages to bytes and back: strict, and several times faster than its own codec.

betterproto2 0.10 takes truncated messages for whole ones and raises whatever bad bytes lead it to;
and whenever it writes a message it computes each field's default anew, within a warnings filter
that it sets up for it, which made up a quarter of the time of ``Tasks.Get``. Here each class is
looked at once and turned into a plan. The messages themselves stay betterproto2's.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache, lru_cache, partial
from typing import Any, NamedTuple, TypeVar

import betterproto2
from betterproto2 import FieldMetadata

from taskd.wire import (
    BYTES,
    FIXED32,
    FIXED64,
    VARINT,
    MalformedMessage,
    fields,
    read_varint,
    signed,
    tag,
    varint,
)

__all__ = ["MalformedMessage", "decode", "encode"]

M = TypeVar("M", bound=betterproto2.Message)

_FIXED = {
    "float": (FIXED32, struct.Struct("<f")),
    "fixed32": (FIXED32, struct.Struct("<I")),
    "sfixed32": (FIXED32, struct.Struct("<i")),
    "double": (FIXED64, struct.Struct("<d")),
    "fixed64": (FIXED64, struct.Struct("<Q")),
    "sfixed64": (FIXED64, struct.Struct("<q")),
}


def encode(message: betterproto2.Message) -> bytes:
    """The bytes of a message. Raises what a value of a wrong type leads to."""
    parts: list[bytes] = []
    values = message.__dict__
    for name, shape, keep, prefix, to_bytes in _plan(type(message)).writes:
        value = values[name]
        # Without presence, proto3's defaults (0, "", b"", false) do not travel. A message has it,
        # and is not asked whether it is empty, which betterproto2 takes long to say.
        if value is None or not (keep or value):
            continue
        if shape is _ONE:
            parts.append(prefix + to_bytes(value))
        elif shape is _PACKED:
            packed = b"".join(map(to_bytes, value))
            parts.append(prefix + varint(len(packed)) + packed)
        else:  # many, or a map's entries
            items = value.items() if shape is _MAP else value
            parts += [prefix + to_bytes(item) for item in items]
    if message._unknown_fields:
        parts.append(message._unknown_fields)
    return b"".join(parts)


def decode(message_type: type[M], data: bytes) -> M:
    """The message in `data`. Raises `MalformedMessage` for anything else.

    It takes time linear in the size of `data`: messages do not contain themselves, so that they
    have few levels, and on each every byte is looked at once.
    """
    return _decode(message_type, (data,))


def _decode(message_type: type[M], pieces: Iterable[bytes]) -> M:
    """A message that comes in several pieces, each sound in itself: their concatenation."""
    plan = _plan(message_type)
    message = message_type.__new__(message_type)
    values = message.__dict__
    values.update(plan.defaults)
    for name, container in plan.containers:
        values[name] = container()
    reads = plan.reads
    unknown: list[bytes] = []
    inner: dict[str, tuple[Callable[[Any], Any], list[Any]]] = {}
    for data in pieces:
        for key, value, start, end in fields(data):
            read = reads.get(key)
            if read is None:
                unknown.append(data[start:end])
                continue
            name, shape, from_wire, others = read
            if shape is _ONE:
                for other in others:
                    values[other] = None
                    inner.pop(other, None)
                values[name] = from_wire(value)
            elif shape is _MESSAGE:
                for other in others:
                    values[other] = None
                    inner.pop(other, None)
                inner.setdefault(name, (from_wire, []))[1].append(value)
            elif shape is _MANY:
                values[name].append(from_wire(value))
            elif shape is _PACKED:
                values[name] += from_wire(value)
            else:
                entry_key, entry_value = from_wire(value)
                values[name][entry_key] = entry_value
    for name, (from_wire, found) in inner.items():
        values[name] = from_wire(found)
    if unknown:
        message._unknown_fields = b"".join(unknown)
    return message


_ONE, _MESSAGE, _MANY, _PACKED, _MAP = object(), object(), object(), object(), object()


class _Write(NamedTuple):
    name: str
    shape: object
    keep: bool
    """The field has presence: its default value travels if it is set."""
    prefix: bytes
    to_bytes: Callable[[Any], bytes]


class _Read(NamedTuple):
    name: str
    shape: object
    from_wire: Callable[[Any], Any]
    """Takes what was on the wire; of a message (alone in its field), the list of its pieces."""
    others: tuple[str, ...]
    """The other fields of its oneof."""


class _Plan(NamedTuple):
    writes: list[_Write]
    reads: Mapping[int, _Read]
    defaults: Mapping[str, Any]
    """What an empty message has in its fields, but for lists and maps."""
    containers: Sequence[tuple[str, Callable[[], Any]]]
    """The fields that are lists and maps, and how to make them."""


@cache
def _plan(message_type: type[betterproto2.Message]) -> _Plan:
    about = _about(message_type)
    writes: list[_Write] = []
    reads: dict[int, _Read] = {}
    for name in about.sorted_field_names:
        meta = about.meta_by_field_name[name]
        if meta.unwrap is not None:
            raise NotImplementedError(f"{message_type.__name__}.{name} is a wrapped type")
        field_type = about.cls_by_field[name]
        group = about.oneof_field_by_group.get(meta.group, ()) if meta.group else ()
        others = tuple(other.name for other in group if other.name != name)
        if meta.map_meta is not None:
            to_bytes, from_wire = _entry(meta, field_type)
            prefix = varint(tag(meta.number, BYTES))
            writes.append(_Write(name, _MAP, False, prefix, to_bytes))
            reads[tag(meta.number, BYTES)] = _Read(name, _MAP, from_wire, ())
            continue
        kind, to_bytes, from_wire = _value(meta.proto_type, field_type)
        if meta.repeated and kind != BYTES:
            prefix = varint(tag(meta.number, BYTES))
            writes.append(_Write(name, _PACKED, False, prefix, to_bytes))
            reads[tag(meta.number, BYTES)] = _Read(name, _PACKED, _unpacker(kind, from_wire), ())
            reads[tag(meta.number, kind)] = _Read(name, _MANY, from_wire, ())
            continue
        shape = _MANY if meta.repeated else _ONE
        keep = bool(meta.optional or meta.group or meta.proto_type == "message")
        prefix = varint(tag(meta.number, kind))
        writes.append(_Write(name, shape, keep, prefix, to_bytes))
        if shape is _ONE and meta.proto_type == "message":
            shape, from_wire = _MESSAGE, partial(_decode, field_type)
        reads[tag(meta.number, kind)] = _Read(name, shape, from_wire, others)
    empty = vars(message_type())
    containers = [
        (name, type(value)) for name, value in empty.items() if type(value) in (list, dict)
    ]
    for name, _ in containers:
        del empty[name]
    return _Plan(writes, reads, empty, containers)


def _about(message_type: Any) -> betterproto2.ProtoClassMetadata:
    about: betterproto2.ProtoClassMetadata = message_type._betterproto
    return about


def _value(
    proto_type: str, python_type: type
) -> tuple[int, Callable[[Any], bytes], Callable[[Any], Any]]:
    """Kind of a value on the wire, and how to write and read it."""
    match proto_type:
        case "string":
            return BYTES, _sized_text, _text
        case "bytes":
            return BYTES, _sized, bytes
        case "message":
            return (
                BYTES,
                lambda value: _sized(encode(value)),
                lambda data: decode(python_type, data),
            )
        case "bool":
            return VARINT, lambda value: b"\1" if value else b"\0", bool
        case "enum":
            # Enums take long to look up one of their members.
            return VARINT, varint, lru_cache(lambda number: python_type(signed(number, 32)))
        case "int32" | "int64":
            bits = int(proto_type[3:])
            return VARINT, varint, lambda number: signed(number, bits)
        case "uint32" | "uint64":
            mask = (1 << int(proto_type[4:])) - 1
            return VARINT, varint, lambda number: number & mask
        case "sint32" | "sint64":
            mask = (1 << int(proto_type[4:])) - 1
            return (
                VARINT,
                lambda value: varint(value << 1 if value >= 0 else ~(value << 1)),
                lambda number: (number & mask) >> 1 ^ -(number & 1),
            )
    kind, packer = _FIXED[proto_type]
    return kind, packer.pack, lambda data: packer.unpack(data)[0]


def _entry(
    meta: FieldMetadata, entry_type: type[betterproto2.Message]
) -> tuple[Callable[[Any], bytes], Callable[[bytes], tuple[Any, Any]]]:
    """How to write and read one pair of a map, which travels as a message of two fields."""

    def to_bytes(pair: tuple[Any, Any]) -> bytes:
        return _sized(encode(make_entry(*pair)))

    def from_wire(data: bytes) -> tuple[Any, Any]:
        entry: Any = decode(entry_type, data)
        return entry.key, entry.value if entry.value is not None else empty()

    make_entry: Callable[..., betterproto2.Message] = entry_type
    empty = _about(entry_type).cls_by_field["value"]
    return to_bytes, from_wire


def _unpacker(kind: int, from_wire: Callable[[Any], Any]) -> Callable[[bytes], list[Any]]:
    """How to read a list of numbers that travels as one field."""
    width = {FIXED32: 4, FIXED64: 8}.get(kind, 0)

    def unpack(data: bytes) -> list[Any]:
        if width:
            if len(data) % width:
                raise MalformedMessage("truncated number")
            return [from_wire(data[at : at + width]) for at in range(0, len(data), width)]
        return [from_wire(number) for number in _numbers(data)]

    return unpack


def _numbers(data: bytes) -> list[int]:
    numbers, position = [], 0
    while position < len(data):
        number, position = read_varint(data, position)
        numbers.append(number)
    return numbers


def _sized(data: bytes) -> bytes:
    return varint(len(data)) + data


def _sized_text(text: str) -> bytes:
    data = text.encode()
    return varint(len(data)) + data


def _text(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise MalformedMessage("text that is not UTF-8") from None
