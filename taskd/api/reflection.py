"""grpclib's own services: health, and server reflection with the descriptors of our protos.

They bring Google's protobuf with them, so they are loaded when somebody first calls one, and not
while clients wait for the daemon to start.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from grpclib.const import Cardinality, Handler

import taskd.proto
from taskd.grpc.server import Servable
from taskd.wire import MalformedMessage

if TYPE_CHECKING:
    from google.protobuf.descriptor_pool import DescriptorPool

__all__ = ["Late"]

_METHODS = {
    "/grpc.health.v1.Health/Check": Cardinality.UNARY_UNARY,
    "/grpc.health.v1.Health/Watch": Cardinality.UNARY_STREAM,
    "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo": Cardinality.STREAM_STREAM,
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": Cardinality.STREAM_STREAM,
}


class _Request:
    """What a method's request will be, once its service is loaded."""

    def __init__(self, late: Late, path: str) -> None:
        self._late = late
        self._path = path

    def parse(self, data: bytes) -> Any:
        """Raises `MalformedMessage`."""
        request_type = self._late.handlers[self._path].request_type
        from google.protobuf.message import DecodeError  # the handlers have loaded it

        try:
            return request_type.FromString(data)
        except DecodeError as exc:
            raise MalformedMessage(str(exc)) from exc


class Late:
    """The services, which tell of `services` and of themselves."""

    def __init__(self, services: Iterable[Servable]) -> None:
        self._services = list(services)

    @cached_property
    def handlers(self) -> Mapping[str, Handler]:
        from grpclib.health.service import Health
        from grpclib.reflection.service import ServerReflection

        served = ServerReflection.extend([*self._services, Health()], pool=_pool())
        return {
            path: handler
            for service in served[len(self._services) :]
            for path, handler in service.__mapping__().items()
        }

    async def _serve(self, path: str, stream: Any) -> None:
        await self.handlers[path].func(stream)

    def __mapping__(self) -> Mapping[str, Handler]:
        return {
            path: Handler(
                partial(self._serve, path),
                cardinality,
                _Request(self, path),
                object,
            )
            for path, cardinality in _METHODS.items()
        }


def _pool() -> DescriptorPool:
    from google.protobuf import descriptor_pb2, descriptor_pool

    pool = descriptor_pool.DescriptorPool()
    data = Path(taskd.proto.__file__).with_name("descriptors.binpb").read_bytes()
    for file in descriptor_pb2.FileDescriptorSet.FromString(data).file:
        pool.Add(file)
    return pool
