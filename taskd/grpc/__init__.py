"""gRPC: the one wing that knows grpclib's inside, and the HTTP/2 engine below it.

`codecs` says what bytes become, `server` is what listens, `channel` what calls. Others use these,
and of grpclib only what it documents.
"""

__all__ = ["NAMESPACE_HEADER"]

NAMESPACE_HEADER = "containerd-namespace"
"""Name of the metadata that says in which namespace a call is made."""
