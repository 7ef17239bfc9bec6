"""``containerd.services.version.v1.Version``."""

from __future__ import annotations

import taskd
from taskd.proto.containerd.services.version.v1 import VersionBase, VersionResponse
from taskd.proto.google.protobuf import Empty

__all__ = ["Version"]


class Version(VersionBase):
    async def version(self, message: Empty) -> VersionResponse:
        return VersionResponse(version=taskd.__version__, revision=taskd.__revision__)
