"""What a request's headers say, and what an answer's do.

Refusals are grpc-go's, with its words (``http2_server.go``, ``server.go``): Go clients look at them
to tell a daemon that cannot do a thing from one that failed to.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final, cast
from urllib.parse import unquote_to_bytes

from grpclib.const import Handler, Status
from grpclib.exceptions import GRPCError
from grpclib.metadata import decode_bin_value, decode_metadata, encode_grpc_message
from multidict import MultiDict

from taskd.grpc.connection import Headers

__all__ = ["Refused", "Request", "beginning", "shortened", "trailers"]

_CONTENT: Final = (b"content-type", b"application/grpc+proto")
_BEGINNING: Final = ((b":status", b"200"), _CONTENT)
_OK: Final[tuple[tuple[bytes, bytes], ...]] = ((b"grpc-status", b"0"),)

# What is longer is cut off: clients bound what they take of metadata, some of them at 16 KiB, and
# libnghttp2 and h2 what they send and take at all.
_MAX_TEXT: Final = 32 << 10

_UNITS: Final = {"H": 3600.0, "M": 60.0, "S": 1.0, "m": 1e-3, "u": 1e-6, "n": 1e-9}
_CONTENT_TYPE: Final = re.compile(r"application/grpc($|[+;])")
_TIMEOUT: Final = re.compile("([0-9]{1,8})([HMSmun])")


class Refused(Exception):
    """A request that makes no call, and what its sender hears of it."""

    def __init__(self, status: Status, message: str, http_status: bytes = b"200") -> None:
        super().__init__(message)
        self.error = GRPCError(status, message)
        self.http_status = http_status


class Request:
    """A call that a client makes."""

    __slots__ = ("_headers", "_metadata", "encoding", "fields", "path", "timeout")

    def __init__(self, headers: Headers) -> None:
        self._headers = headers
        self._metadata: MultiDict[Any] | None = None
        self.fields = dict(headers)
        self.path = self.fields.get(":path", "")
        self.encoding = self.fields.get("grpc-encoding", "")
        self.timeout: float | None = None
        """Seconds that the client waits, from when it has sent this; known once `handler` is."""

    @property
    def metadata(self) -> Any:
        """What the client sent along, as grpclib has it."""
        if self._metadata is None:
            self._metadata = cast("MultiDict[Any]", decode_metadata(self._headers))
        return self._metadata

    def handler(self, methods: Mapping[str, Handler]) -> Handler:
        """Of the method that is called. Raises `Refused`."""
        fields = self.fields
        if (method := fields.get(":method")) != "POST":
            raise Refused(
                Status.INTERNAL,
                f"http2Server.operateHeaders parsed a :method field: {method} which should be POST",
                b"405",
            )
        content_type = fields.get("content-type", "")
        if not _CONTENT_TYPE.match(content_type):
            raise Refused(
                Status.UNKNOWN, f'invalid gRPC request content-type "{content_type}"', b"415"
            )
        if (timeout := fields.get("grpc-timeout")) is not None:
            self.timeout = _seconds(timeout)
        for name, value in fields.items():
            if name.endswith("-bin"):
                _check_binary(name, value)
        if found := methods.get(self.path):
            return found
        service, slash, method = self.path.removeprefix("/").rpartition("/")
        if not slash:
            words = f'malformed method name: "{self.path}"'
        elif any(path.startswith(f"/{service}/") for path in methods):
            words = f"unknown method {method} for service {service}"
        else:
            words = f"unknown service {service}"
        raise Refused(Status.UNIMPLEMENTED, words)


def beginning(http_status: bytes = b"200") -> tuple[tuple[bytes, bytes], ...]:
    """What an answer begins with."""
    return _BEGINNING if http_status == b"200" else ((b":status", http_status), _CONTENT)


def trailers(
    status: Status, message: str | None, limit: int | None
) -> tuple[tuple[bytes, bytes], ...]:
    """What an answer ends with; `limit` is what the client takes of headers in bytes."""
    if status is Status.OK and message is None:
        return _OK
    fields = [(b"grpc-status", str(status.value).encode())]
    if message is not None:
        # Half of it, since there are other fields, and some clients refuse at random what comes
        # near.
        text = shortened(message, min(_MAX_TEXT, (limit or _MAX_TEXT * 2) // 2))
        fields.append((b"grpc-message", _encoded(text)))
    return tuple(fields)


def _encoded(text: str) -> bytes:
    """Spaces at the ends, too, which gRPC does not ask for: HTTP/2 takes none there."""
    return re.sub("^ | $", "%20", encode_grpc_message(text)).encode()


def shortened(message: str, most: int) -> str:
    """As much of the text as has room in `most` bytes of a header."""
    if len(message) * 3 <= most or len(encode_grpc_message(message)) <= most:
        return message
    end = f"… (cut off, of {len(message)} characters)"
    room = max(0, most - len(encode_grpc_message(end)))
    # Neither an escape nor a character is cut in two.
    kept = re.sub("%[0-9A-F]?$", "", encode_grpc_message(message[:room])[:room])
    return unquote_to_bytes(kept).decode(errors="ignore") + end


def _seconds(timeout: str) -> float:
    if (parts := _TIMEOUT.fullmatch(timeout)) is None:
        raise Refused(Status.INTERNAL, f'malformed grpc-timeout: "{timeout}"')
    return int(parts[1]) * _UNITS[parts[2]]


def _check_binary(name: str, value: str) -> None:
    try:
        decode_bin_value(value.encode("ascii"))
    except ValueError:
        raise Refused(
            Status.INTERNAL, f'malformed binary metadata "{value}" in header "{name}"'
        ) from None
