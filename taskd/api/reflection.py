"""The descriptors behind server reflection, which itself is grpclib's."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool

import taskd.proto

__all__ = ["Descriptors"]


class Descriptors:
    """A pool of our protos' descriptors, which is filled when somebody first asks."""

    def __getattr__(self, name: str) -> Any:
        return getattr(_pool(), name)


@cache
def _pool() -> descriptor_pool.DescriptorPool:
    pool = descriptor_pool.DescriptorPool()
    data = Path(taskd.proto.__file__).with_name("descriptors.binpb").read_bytes()
    for file in descriptor_pb2.FileDescriptorSet.FromString(data).file:
        pool.Add(file)
    return pool
