"""A message on the wire: five bytes that say its size and whether it is compressed, and itself.

Source: gRPC's "PROTOCOL-HTTP2"; limits and words are grpc-go's (``rpc_util.go``).
"""

from __future__ import annotations

import struct
import zlib
from typing import Final

from grpclib.const import Status
from grpclib.exceptions import GRPCError

from taskd.grpc.codecs import MAX_MESSAGE_SIZE

__all__ = ["PREFIX_SIZE", "expand", "frame", "parse_prefix"]

PREFIX_SIZE: Final = 5

_PREFIX = struct.Struct(">?I")
_GZIP: Final = 16 + zlib.MAX_WBITS


def frame(message: bytes) -> bytes:
    return _PREFIX.pack(False, len(message)) + message


def parse_prefix(prefix: bytes) -> tuple[bool, int]:
    """Whether a message is compressed, and its size.

    Raises GRPCError for one that is too large, before there is anything of it.
    """
    compressed, size = _PREFIX.unpack(prefix)
    if size > MAX_MESSAGE_SIZE:
        raise GRPCError(
            Status.RESOURCE_EXHAUSTED,
            f"grpc: received message larger than max ({size} vs. {MAX_MESSAGE_SIZE})",
        )
    return compressed, size


def expand(data: bytes, encoding: str) -> bytes:
    """A compressed message as it was. Raises GRPCError."""
    if encoding in ("", "identity"):
        raise GRPCError(
            Status.INTERNAL, "grpc: compressed flag set with identity or empty encoding"
        )
    if encoding != "gzip":
        raise GRPCError(
            Status.UNIMPLEMENTED,
            f'grpc: Decompressor is not installed for grpc-encoding "{encoding}"',
        )
    expander = zlib.decompressobj(_GZIP)
    try:
        message = expander.decompress(data, MAX_MESSAGE_SIZE + 1)
    except zlib.error as exc:
        raise GRPCError(
            Status.INTERNAL, f"grpc: failed to decompress the received message: {exc}"
        ) from exc
    if len(message) > MAX_MESSAGE_SIZE:
        raise GRPCError(
            Status.RESOURCE_EXHAUSTED,
            f"grpc: received message after decompression larger than max "
            f"({len(message)} vs. {MAX_MESSAGE_SIZE})",
        )
    if not expander.eof:
        raise GRPCError(
            Status.INTERNAL, "grpc: failed to decompress the received message: unexpected EOF"
        )
    return message
