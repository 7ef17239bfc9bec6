"""Which process the task of a sandbox's container is made in.

Source: containerd's ``services/tasks/local.go``, ``Create``.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

from taskd.errors import AlreadyExists, TaskdError
from taskd.metadata import Container
from taskd.proto.containerd.runc import v1 as runc
from taskd.runtime.binary import Bootstrap
from taskd.runtime.shim import Shim
from taskd.types import TypedValue
from taskd.wellknown import unpack

__all__ = ["Endpoint", "Sandboxes", "process"]

_RUNC = ["io", "containerd", "runc"]


class Endpoint(NamedTuple):
    """Where a client wants the task to be made: what serves that version of the task API there."""

    address: str = ""
    """Of the form ``ttrpc+unix:///PATH``; empty: where the sandbox is."""
    version: int = 0


class Sandboxes(Protocol):
    """`taskd.sandboxes.Controller`, as tasks know it."""

    def has(self, namespace: str, sandbox_id: str) -> bool:
        """Whether it has been created."""

    def process(
        self, namespace: str, sandbox_id: str, address: str, version: int
    ) -> Shim | Bootstrap | None: ...


def process(
    sandboxes: Sandboxes,
    namespace: str,
    container: Container,
    given: Endpoint,
    options: TypedValue | None,
) -> Shim | Bootstrap | None:
    """None if it is to have one of its own.

    Raises `AlreadyExists` if its id is a sandbox's, and what `Controller.process` does.
    """
    if sandboxes.has(namespace, container.id):
        # Their events could not be told apart.
        raise AlreadyExists(f"task {container.id}")
    if not container.sandbox_id:
        return None
    try:
        where = _wanted(container.runtime_name, given, options)
        return sandboxes.process(namespace, container.sandbox_id, *where)
    except TaskdError as exc:
        raise exc.within("failed to start shim") from exc


def _wanted(runtime: str, given: Endpoint, options: TypedValue | None) -> Endpoint:
    """The request's, or else that of runc's options, where containerd up to 2.2 has it."""
    if options is None or runtime.split(".")[:3] != _RUNC:
        return given
    found = unpack(options)
    if not isinstance(found, runc.Options):
        return given
    return Endpoint(
        given.address or found.task_api_address, given.version or found.task_api_version
    )
