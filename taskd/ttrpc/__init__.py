"""ttrpc: gRPC's calls and statuses in small frames over a unix socket, without HTTP/2.

`frames`, `messages`, `events` and `connection` are the protocol, without I/O; `client` and
`server` put it on sockets.
"""

from taskd.ttrpc.client import Client, ClientStream, Metadata
from taskd.ttrpc.connection import ConnectionClosed, StreamClosed
from taskd.ttrpc.frames import MAX_PAYLOAD, ProtocolError
from taskd.ttrpc.payload import unmarshal
from taskd.ttrpc.server import CallContext, Handler, Server, ServerStream, Service, Streaming

__all__ = [
    "MAX_PAYLOAD",
    "CallContext",
    "Client",
    "ClientStream",
    "ConnectionClosed",
    "Handler",
    "Metadata",
    "ProtocolError",
    "Server",
    "ServerStream",
    "Service",
    "StreamClosed",
    "Streaming",
    "unmarshal",
]
