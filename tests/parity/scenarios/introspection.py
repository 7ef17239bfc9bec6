"""What a daemon tells of its parts and of runtimes."""

from __future__ import annotations

from typing import Any

import betterproto2
from grpclib.exceptions import GRPCError
from parity.recorder import RUNC, Recorder
from parity.scenarios import scenario

from taskd.proto.containerd.services.introspection.v1 import IntrospectionStub, PluginInfoRequest
from taskd.proto.containerd.types import RuntimeInfo, RuntimeRequest
from taskd.proto.containerd.v1.types import Process
from taskd.proto.google import protobuf
from taskd.wellknown import from_any, pack, to_any, unpack

TASK = ("io.containerd.runtime.v2", "task")
NEWEST = ("2",)


def runtime(path: str, **fields: Any) -> protobuf.Any | None:
    return to_any(pack(RuntimeRequest(runtime_path=path, **fields)))


def packed(message: betterproto2.Message) -> protobuf.Any | None:
    return to_any(pack(message))


async def ask(r: Recorder, kind: str, name: str, options: protobuf.Any | None = None) -> Any:
    """Notes down what is the same in all daemons that have such a part."""
    request = PluginInfoRequest(type=kind, id=name, options=options)
    asked = f"PluginInfo {kind} {name} {r.shown(options)}"
    try:
        answer = await r.stub(IntrospectionStub).plugin_info(request)
    except GRPCError as error:
        r.note(f"{asked}\n    {error.status.name}: {error.message}")
        return None
    plugin, extra = answer.plugin, from_any(answer.extra)
    assert plugin is not None
    r.note(f"{asked}\n    {plugin.type} {plugin.id} {plugin.platforms} {extra and extra.type_url}")
    return unpack(extra) if extra else None


@scenario(generations=NEWEST)
async def a_part(r: Recorder) -> None:
    for kind, name in (
        ("io.containerd.grpc.v1", "tasks"),
        ("io.containerd.grpc.v1", "nosuch"),
        ("io.containerd.nosuch", "tasks"),
        ("", ""),
    ):
        await ask(r, kind, name)


@scenario(generations=NEWEST)
async def more_of_a_part_that_tells_no_more(r: Recorder) -> None:
    for options in (runtime(RUNC), packed(protobuf.Empty()), protobuf.Any(type_url="foo")):
        await ask(r, "io.containerd.grpc.v1", "tasks", options)


@scenario(generations=NEWEST)
async def a_runtime(r: Recorder) -> None:
    info = await ask(r, *TASK, runtime(RUNC))
    assert isinstance(info, RuntimeInfo)
    assert info.version is not None
    assert info.features is not None
    r.note(f"{info.name} {info.version.version} {info.features}")
    assert len(info.features.value) > 1000


@scenario(generations=NEWEST)
async def no_such_runtime(r: Recorder) -> None:
    for path in ("", "io.nosuch.v1", "/no/such", "a/b", "nosuch", ".", "io.containerd.runc."):
        await ask(r, *TASK, runtime(path))


@scenario(generations=NEWEST)
async def what_is_no_shim(r: Recorder) -> None:
    for path in ("/bin/true", "/bin/false", "/bin/pwd", "/etc/passwd", "/etc"):
        await ask(r, *TASK, runtime(path))


@scenario(generations=NEWEST)
async def options_of_a_runtime(r: Recorder) -> None:
    for options in (
        protobuf.Any(type_url="foo"),
        protobuf.Any(),
        packed(protobuf.Empty()),
        protobuf.Any(type_url="containerd.runc.v1.Options"),
        protobuf.Any(type_url="containerd.runc.v1.Options", value=b"\x0a\x09/bin/true"),
    ):
        await ask(r, *TASK, runtime(RUNC, options=options))


@scenario(generations=NEWEST)
async def other_options(r: Recorder) -> None:
    for options in (
        protobuf.Any(type_url="foo"),
        protobuf.Any(),
        packed(protobuf.Empty()),
        packed(Process(id="one")),
    ):
        await ask(r, *TASK, options)


@scenario(alone=True, generations=("1.7",))
async def deprecations(r: Recorder) -> None:
    async def told() -> None:
        found = await r.stub(IntrospectionStub).server(protobuf.Empty())
        # In the order of a map, which in Go is another one each time.
        warnings = sorted(found.deprecations, key=lambda each: each.id)
        r.note(str([(each.id, r.shown(each.last_occurrence)) for each in warnings]))

    await told()
    for number, name in enumerate(
        (RUNC, "io.containerd.runtime.v1.linux", "io.containerd.runc.v1", "io.nosuch.v1")
    ):
        await r.created(f"one{number}", "true", runtime=name)
        await told()
