"""Targets, each of which tries bad input as long as its `Session` says."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

from fuzz.disks import archives, databases
from fuzz.grpc_bytes import grpc_bytes
from fuzz.session import Session
from fuzz.texts import configuration, filter_expressions
from fuzz.wires import ttrpc_client, ttrpc_server

__all__ = ["TARGETS"]

TARGETS: Mapping[str, Callable[[Session], Awaitable[None]]] = {
    "filters": filter_expressions,
    "configuration": configuration,
    "ttrpc-server": ttrpc_server,
    "ttrpc-client": ttrpc_client,
    "archives": archives,
    "databases": databases,
    "grpc": grpc_bytes,
}
