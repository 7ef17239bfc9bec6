"""What the bytes of a message become, and the other way round."""

from __future__ import annotations

from typing import Any

import betterproto2
from grpclib.const import Status
from grpclib.encoding.base import CodecBase
from grpclib.exceptions import GRPCError

from taskd import codec
from taskd.codec import MalformedMessage

__all__ = ["MAX_MESSAGE_SIZE", "Messages", "Serialised"]

MAX_MESSAGE_SIZE = 16 << 20
"""Bytes a message may have (containerd: ``defaults.DefaultMaxRecvMsgSize``)."""


class Messages(CodecBase):
    """Serialises betterproto2's messages, and the ones of grpclib's own services."""

    __content_subtype__ = "proto"

    def encode(self, message: Any, message_type: Any) -> bytes:
        if isinstance(message, betterproto2.Message):
            return codec.encode(message)
        encoded: bytes = message.SerializeToString()
        return encoded

    def decode(self, data: bytes, message_type: Any) -> Any:
        """`message_type` is a class of betterproto2's or of Google's, or what has a `parse`.

        Raises GRPCError: RESOURCE_EXHAUSTED, or INTERNAL for what is no such message.
        """
        if len(data) > MAX_MESSAGE_SIZE:
            raise GRPCError(
                Status.RESOURCE_EXHAUSTED,
                f"grpc: received message larger than max ({len(data)} vs. {MAX_MESSAGE_SIZE})",
            )
        try:
            if not isinstance(message_type, type):
                return message_type.parse(data)
            if issubclass(message_type, betterproto2.Message):
                return codec.decode(message_type, data)
            return message_type.FromString(data)  # type: ignore[attr-defined]
        except MalformedMessage as exc:
            raise GRPCError(Status.INTERNAL, f"grpc: error unmarshalling request: {exc}") from exc


class Serialised(CodecBase):
    """For messages that are serialised already."""

    __content_subtype__ = "proto"

    def encode(self, message: bytes, message_type: object) -> bytes:
        return message

    def decode(self, data: bytes, message_type: object) -> bytes:
        return data
