"""``containerd.services.introspection.v1.Introspection``: what this daemon is made of."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from betterproto2 import Message

from taskd import filters, platforms
from taskd.deprecations import Deprecations
from taskd.errors import NotFound, Unimplemented, Unknown
from taskd.proto.containerd.services.introspection import v1
from taskd.proto.containerd.services.introspection.v1 import (
    IntrospectionBase,
    Plugin,
    PluginInfoRequest,
    PluginInfoResponse,
    PluginsRequest,
    PluginsResponse,
    ServerResponse,
)
from taskd.proto.containerd.types import Platform, RuntimeRequest
from taskd.proto.google.protobuf import Any, Empty
from taskd.restarts.policy import POLICIES
from taskd.runtime import info
from taskd.runtime.binary import resolve
from taskd.types import TypedValue
from taskd.wellknown import from_any, pack, timestamp, to_any, unpack

__all__ = ["PLUGINS", "Introspection", "Part"]

_RUNTIME = ("io.containerd.runtime.v2", "task")


@dataclass(frozen=True, slots=True)
class Part:
    """A part of the daemon, named as the plugin of containerd whose place it takes."""

    type: str
    id: str
    needs: tuple[str, ...] = ()
    has_platform: bool = False
    exports: Mapping[str, str] = field(default_factory=dict)
    capabilities: tuple[str, ...] = ()


PLUGINS = (
    Part("io.containerd.content.v1", "content"),
    Part("io.containerd.differ.v1", "walking", ("io.containerd.metadata.v1",), has_platform=True),
    Part("io.containerd.event.v1", "exchange"),
    Part("io.containerd.gc.v1", "scheduler", ("io.containerd.metadata.v1",)),
    Part("io.containerd.metadata.v1", "sqlite", ("io.containerd.event.v1",)),
    Part(
        "io.containerd.runtime.v2",
        "task",
        ("io.containerd.event.v1", "io.containerd.metadata.v1"),
        has_platform=True,
    ),
    Part("io.containerd.sandbox.store.v1", "local", ("io.containerd.metadata.v1",)),
    Part(
        "io.containerd.sandbox.controller.v1",
        "shim",
        ("io.containerd.runtime.v2", "io.containerd.event.v1"),
    ),
    Part("io.containerd.streaming.v1", "manager", ("io.containerd.metadata.v1",)),
    Part(
        "io.containerd.transfer.v1",
        "local",
        (
            "io.containerd.lease.v1",
            "io.containerd.metadata.v1",
            "io.containerd.differ.v1",
            "io.containerd.snapshotter.v1",
        ),
    ),
    Part("io.containerd.grpc.v1", "containers", ("io.containerd.metadata.v1",)),
    Part(
        "io.containerd.grpc.v1",
        "content",
        ("io.containerd.content.v1", "io.containerd.metadata.v1"),
    ),
    Part("io.containerd.grpc.v1", "diff", ("io.containerd.differ.v1",)),
    Part("io.containerd.grpc.v1", "events", ("io.containerd.event.v1",)),
    Part("io.containerd.grpc.v1", "healthcheck"),
    Part("io.containerd.grpc.v1", "images", ("io.containerd.metadata.v1",)),
    Part("io.containerd.grpc.v1", "introspection"),
    Part("io.containerd.grpc.v1", "leases", ("io.containerd.metadata.v1",)),
    Part("io.containerd.grpc.v1", "mounts", ("io.containerd.mount-manager.v1",)),
    Part("io.containerd.grpc.v1", "namespaces", ("io.containerd.metadata.v1",)),
    Part("io.containerd.grpc.v1", "sandboxes", ("io.containerd.sandbox.store.v1",)),
    Part(
        "io.containerd.grpc.v1",
        "sandbox-controllers",
        ("io.containerd.sandbox.controller.v1", "io.containerd.event.v1"),
    ),
    Part("io.containerd.grpc.v1", "snapshots", ("io.containerd.snapshotter.v1",)),
    Part("io.containerd.grpc.v1", "streaming", ("io.containerd.streaming.v1",)),
    Part("io.containerd.grpc.v1", "tasks", ("io.containerd.runtime.v2",)),
    Part(
        "io.containerd.grpc.v1",
        "transfer",
        ("io.containerd.transfer.v1", "io.containerd.streaming.v1"),
    ),
    Part("io.containerd.grpc.v1", "version"),
    Part("io.containerd.mount-manager.v1", "bolt", ("io.containerd.metadata.v1",)),
    Part(
        "io.containerd.monitor.container.v1",
        "restart",
        ("io.containerd.event.v1",),
        capabilities=POLICIES,
    ),
    Part("io.containerd.warning.v1", "deprecations"),
    Part("io.containerd.ttrpc.v1", "events", ("io.containerd.event.v1",)),
)


class Introspection(IntrospectionBase):
    def __init__(
        self,
        identity: Path,
        parts: Iterable[Part] = (),
        deprecations: Deprecations | None = None,
    ) -> None:
        """`identity` is the file that has this daemon's UUID; `parts` are those of this machine."""
        self._identity = identity
        self._deprecations = deprecations or Deprecations()
        self._parts = (*PLUGINS, *parts)
        self._pid_namespace = Path("/proc/self/ns/pid").stat().st_ino

    async def plugins(self, message: PluginsRequest) -> PluginsResponse:
        wanted = await filters.prepare(message.filters)
        return PluginsResponse(
            plugins=[_plugin(part) for part in self._parts if wanted.match(_lookup(part))]
        )

    async def server(self, message: Empty) -> ServerResponse:
        import aiofiles  # few ask this, and start-up is waited for

        async with aiofiles.open(self._identity) as file:
            uuid = (await file.read()).strip()
        return ServerResponse(
            uuid=uuid,
            pid=os.getpid(),
            pidns=self._pid_namespace,
            deprecations=[
                v1.DeprecationWarning(
                    id=each.id, message=each.message, last_occurrence=timestamp(each.last)
                )
                for each in self._deprecations.all()
            ],
        )

    async def plugin_info(self, message: PluginInfoRequest) -> PluginInfoResponse:
        """A part, and with `options` more of it: of the runtime what a shim's ``-info`` tells."""
        asked = None if message.options is None else _unpacked(message.options)
        name = message.type, message.id
        part = next((each for each in self._parts if (each.type, each.id) == name), None)
        if part is None:
            raise NotFound(f"plugin {message.type}.{message.id} not found")
        response = PluginInfoResponse(plugin=_plugin(part))
        if asked is None:
            return response
        if name != _RUNTIME:
            raise Unimplemented("plugin does not provided extra information")
        if not isinstance(asked, RuntimeRequest):
            raise Unimplemented(f"unknown request type {type(asked).__name__}")
        told = await info.of_runtime(resolve, asked.runtime_path, from_any(asked.options))
        response.extra = to_any(pack(told))
        return response


def _unpacked(options: Any) -> Message:
    """Raises `Unknown` for a type that is none of ours."""
    found = unpack(TypedValue(options.type_url, options.value))
    if found is None:
        words = f"type with url {options.type_url}: not found"
        raise Unknown(f"failed to unmarshal plugin info Options: {words}")
    return found


def _plugin(part: Part) -> Plugin:
    system, architecture = platforms.here()
    here = Platform(os=system, architecture=architecture)
    return Plugin(
        type=part.type,
        id=part.id,
        requires=list(part.needs),
        platforms=[here] if part.has_platform else [],
        exports=dict(part.exports),
        capabilities=list(part.capabilities),
    )


def _lookup(part: Part) -> filters.Lookup:
    def field(path: Sequence[str]) -> tuple[str, bool]:
        match path:
            case ["type"]:
                return part.type, True
            case ["id"]:
                return part.id, True
        return "", False

    return field
