"""grpclib's own services: health, and server reflection with the descriptors of our protos.

They bring Google's protobuf with them, and so are `Late`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from grpclib.const import Cardinality, Handler

import taskd.proto
from taskd.api.late import Late
from taskd.grpc.server import Servable
from taskd.wire import MalformedMessage

if TYPE_CHECKING:
    from google.protobuf.descriptor_pool import DescriptorPool

__all__ = ["Reflection"]

_METHODS = {
    "/grpc.health.v1.Health/Check": Cardinality.UNARY_UNARY,
    "/grpc.health.v1.Health/Watch": Cardinality.UNARY_STREAM,
    "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo": Cardinality.STREAM_STREAM,
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": Cardinality.STREAM_STREAM,
}


class _Request:
    """What a method's request will be, once its service is loaded."""

    def __init__(self, late: Reflection, path: str) -> None:
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


class Reflection(Late):
    """The services, which tell of `services` and of themselves."""

    def __init__(self, services: Iterable[Servable]) -> None:
        super().__init__(self._load)
        self._services = list(services)

    def _load(self) -> Iterable[Servable]:
        from grpclib.health.service import Health
        from grpclib.reflection.service import ServerReflection

        served = ServerReflection.extend([*self._services, Health()], pool=_pool())
        return served[len(self._services) :]

    def __mapping__(self) -> Mapping[str, Handler]:
        return {
            path: self.handler(path, cardinality, _Request(self, path))
            for path, cardinality in _METHODS.items()
        }


def _pool() -> DescriptorPool:
    from google.protobuf import descriptor_pb2, descriptor_pool

    pool = descriptor_pool.DescriptorPool()
    data = Path(taskd.proto.__file__).with_name("descriptors.binpb").read_bytes()
    for file in descriptor_pb2.FileDescriptorSet.FromString(data).file:
        pool.Add(file)
    return pool
