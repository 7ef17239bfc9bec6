"""Create: what it is given, what it refuses, and what it leaves when it fails."""

from __future__ import annotations

import json
from pathlib import Path

from harness.containers import SPEC_TYPE
from parity.recorder import RUNC, Recorder
from parity.scenarios import scenario

from taskd.proto.containerd.linux.runc import CreateOptions as LinuxOptions
from taskd.proto.containerd.runc.v1 import CheckpointOptions, Options
from taskd.proto.containerd.services.containers.v1 import Container, ContainerRuntime
from taskd.proto.containerd.types import Mount
from taskd.proto.google.protobuf import Any
from taskd.wellknown import pack, to_any


@scenario()
async def without_a_name(r: Recorder) -> None:
    await r.tasks.create()
    await r.tasks.create(container_id="a/b")


@scenario()
async def twice(r: Recorder) -> None:
    await r.created()
    await r.tasks.create(container_id="one")
    await r.tasks.get(container_id="one")


@scenario()
async def at_once(r: Recorder) -> None:
    """Of many that create one id, one succeeds."""
    await r.container()
    await r.all(*(r.tasks.create(container_id="one") for _ in range(5)))
    await r.tasks.list()


@scenario()
async def many_at_once(r: Recorder) -> None:
    names = [f"c{number}" for number in range(5)]
    for name in names:
        await r.container(name)
    await r.all(*(r.tasks.create(container_id=name) for name in names))
    await r.all(*(r.tasks.start(container_id=name) for name in names))
    await r.tasks.list()
    await r.all(*(r.end(name) for name in names))


@scenario()
async def again_after_delete(r: Recorder) -> None:
    await r.container(command="true")
    for _ in range(2):
        await r.tasks.create(container_id="one")
        await r.tasks.start(container_id="one")
        await r.tasks.wait(container_id="one")
        await r.tasks.delete(container_id="one")


async def _with_spec(r: Recorder, spec: Any, name: str = "one") -> None:
    runtime = ContainerRuntime(name=RUNC)
    await r.containers.create(container=Container(id=name, runtime=runtime, spec=spec))
    await r.tasks.create(container_id=name)
    await r.tasks.get(container_id=name)


@scenario()
async def empty_spec(r: Recorder) -> None:
    await _with_spec(r, Any(type_url=SPEC_TYPE))


@scenario()
async def spec_without_anything(r: Recorder) -> None:
    await _with_spec(r, Any(type_url=SPEC_TYPE, value=b"{}"))


@scenario()
async def spec_that_is_no_json(r: Recorder) -> None:
    await _with_spec(r, Any(type_url=SPEC_TYPE, value=b"\xff{"))


@scenario()
async def spec_of_another_type(r: Recorder) -> None:
    spec = r.spec("one")
    await _with_spec(r, Any(type_url="example.Spec", value=spec.value))


@scenario()
async def missing_program(r: Recorder) -> None:
    await r.created(command=["/no/such"])
    await r.tasks.get(container_id="one")
    await r.tasks.start(container_id="one")
    await r.tasks.list()


@scenario()
async def program_without_permission(r: Recorder) -> None:
    await r.created(command=["/tmp"])
    await r.tasks.start(container_id="one")


@scenario()
async def missing_cwd(r: Recorder) -> None:
    await r.created(cwd="/no/such")
    await r.tasks.start(container_id="one")
    await r.tasks.get(container_id="one")


@scenario()
async def missing_rootfs(r: Recorder) -> None:
    spec = r.spec("one")
    document = json.loads(spec.value)
    document["root"]["path"] = "/no/such/rootfs"
    await _with_spec(r, Any(type_url=SPEC_TYPE, value=json.dumps(document).encode()))


@scenario()
async def bad_namespace_in_spec(r: Recorder) -> None:
    document = json.loads(r.spec("one").value)
    document["linux"]["namespaces"].append({"type": "none"})
    await _with_spec(r, Any(type_url=SPEC_TYPE, value=json.dumps(document).encode()))


async def _with_runtime(r: Recorder, name: str) -> None:
    await r.created(runtime=name)
    await r.tasks.get(container_id="one")
    await r.tasks.list()


@scenario()
async def unknown_runtime(r: Recorder) -> None:
    await _with_runtime(r, "io.example.none.v7")


@scenario()
async def runtime_of_another_shape(r: Recorder) -> None:
    for name in ("runc", "a.b", "io..v2", "/no/such/shim", "/bin", "io.a b.v1"):
        await r.containers.create(
            container=Container(id="one", runtime=ContainerRuntime(name=name), spec=r.spec("one"))
        )
        await r.tasks.create(container_id="one")
        await r.containers.delete(id="one")


@scenario()
async def relative_path_as_runtime(r: Recorder) -> None:
    for number, runtime in enumerate(("../shim", "a/b", "./a.b")):
        await r.container(f"c{number}", runtime=runtime)
        await r.tasks.create(container_id=f"c{number}")


@scenario()
async def runtime_path_that_is_not_there(r: Recorder) -> None:
    await r.container()
    await r.tasks.create(container_id="one", runtime_path="/no/such/shim")
    await r.tasks.create(container_id="one", runtime_path="io.example.none.v7")
    await r.tasks.create(container_id="one", runtime_path="/bin/false")
    await r.tasks.list()


@scenario()
async def shim_that_says_nothing(r: Recorder) -> None:
    shim = r.folder / "containerd-shim-silent-v2"
    shim.write_text("#!/bin/sh\nexit 0\n")
    shim.chmod(0o755)
    await r.container()
    await r.tasks.create(container_id="one", runtime_path=str(shim))
    await r.tasks.list()


@scenario()
async def shim_that_fails(r: Recorder) -> None:
    shim = r.folder / "containerd-shim-failing-v2"
    shim.write_text("#!/bin/sh\necho what went wrong >&2\nexit 3\n")
    shim.chmod(0o755)
    await r.container()
    await r.tasks.create(container_id="one", runtime_path=str(shim))
    await r.tasks.list()


@scenario()
async def shim_with_a_bad_address(r: Recorder) -> None:
    shim = r.folder / "containerd-shim-lost-v2"
    await r.container()
    for address in ("unix:///no/such.sock", "tcp://127.0.0.1:1", "nonsense", "{", '{"version":9}'):
        shim.write_text(f"#!/bin/sh\ncase $* in *start) echo '{address}' ;; esac\n")
        shim.chmod(0o755)
        await r.tasks.create(container_id="one", runtime_path=str(shim))
    await r.tasks.list()


async def _with_options(r: Recorder, options: Any | None) -> None:
    await r.container()
    await r.tasks.create(container_id="one", options=options)
    await r.tasks.get(container_id="one")


@scenario()
async def options_of_runc(r: Recorder) -> None:
    await _with_options(r, to_any(pack(Options(no_pivot_root=False, binary_name="runc"))))


@scenario()
async def options_with_a_missing_binary(r: Recorder) -> None:
    await _with_options(r, to_any(pack(Options(binary_name="no-such-runc"))))


@scenario()
async def options_with_a_missing_cgroup_for_the_shim(r: Recorder) -> None:
    await _with_options(r, to_any(pack(Options(shim_cgroup="/no/such/cgroup"))))


@scenario()
async def options_of_a_checkpoint(r: Recorder) -> None:
    await _with_options(r, to_any(pack(CheckpointOptions(image_path="/proc/no/such"))))


@scenario()
async def options_of_another_runtime(r: Recorder) -> None:
    await _with_options(r, to_any(pack(LinuxOptions(no_pivot_root=True))))


@scenario()
async def options_of_an_unknown_type(r: Recorder) -> None:
    await _with_options(r, Any(type_url="no.such.Type", value=b"x"))


@scenario()
async def options_that_are_malformed(r: Recorder) -> None:
    await _with_options(r, Any(type_url="containerd.runc.v1.Options", value=b"\xff\xff"))


@scenario()
async def options_that_are_empty(r: Recorder) -> None:
    await _with_options(r, Any())


@scenario()
async def options_of_the_container(r: Recorder) -> None:
    runtime = ContainerRuntime(RUNC, to_any(pack(Options(binary_name="no-such-runc"))))
    await r.containers.create(container=Container(id="one", runtime=runtime, spec=r.spec("one")))
    await r.tasks.create(container_id="one")
    # What the task is given counts instead.
    await r.tasks.create(container_id="one", options=to_any(pack(Options(binary_name="runc"))))
    await r.tasks.get(container_id="one")


@scenario()
async def restore_from_nothing(r: Recorder) -> None:
    await _with_options(r, to_any(pack(Options(criu_image_path="/proc/no/such/image"))))
    await r.tasks.start(container_id="one")
    await r.tasks.list()


async def _on(r: Recorder, *mounts: Mount) -> None:
    """A task whose root filesystem is mounted for it."""
    spec = r.spec("one", ["/bin/ls", "/"])
    document = json.loads(spec.value)
    document["root"] = {"path": "rootfs"}
    spec.value = json.dumps(document).encode()
    runtime = ContainerRuntime(name=RUNC)
    await r.containers.create(container=Container(id="one", runtime=runtime, spec=spec))
    out = r.folder / "out"
    out.touch()
    await r.tasks.create(
        container_id="one", rootfs=list(mounts), stdout=f"file://{out}", stderr=f"file://{out}"
    )
    await r.tasks.start(container_id="one")
    await r.tasks.wait(container_id="one")
    await r.tasks.delete(container_id="one")
    r.note(out.read_text())


@scenario()
async def rootfs_bind(r: Recorder) -> None:
    await _on(r, Mount(type="bind", source=str(r.rootfs), options=["rbind", "ro"]))


@scenario()
async def rootfs_overlay(r: Recorder) -> None:
    other = r.folder / "other"
    other.mkdir()
    await _on(r, Mount("overlay", "overlay", options=[f"lowerdir={r.rootfs}:{other}"]))


@scenario()
async def rootfs_of_several(r: Recorder) -> None:
    await _on(
        r,
        Mount(type="tmpfs", source="tmpfs"),
        Mount(type="bind", source=str(r.rootfs), options=["rbind"]),
    )


@scenario()
async def rootfs_tmpfs(r: Recorder) -> None:
    """It is empty, so that there is no program in it."""
    await _on(r, Mount(type="tmpfs", source="tmpfs", options=["size=1m", "mode=755"]))


@scenario()
async def rootfs_into_a_folder_of_it(r: Recorder) -> None:
    Path(r.folder / "added").mkdir()
    await _on(
        r,
        Mount(type="bind", source=str(r.rootfs), options=["rbind"]),
        Mount(type="bind", source=str(r.folder / "added"), target="/tmp", options=["rbind"]),
    )


@scenario()
async def rootfs_from_nowhere(r: Recorder) -> None:
    await r.container()
    for mount in (
        Mount(type="bind", source="/no/such", options=["rbind"]),
        Mount(type="nosuchfs", source="x"),
        Mount(type="", source=""),
        Mount(type="tmpfs", source="tmpfs", options=["nosuchoption"]),
    ):
        await r.tasks.create(container_id="one", rootfs=[mount])
    await r.tasks.list()


@scenario()
async def stdio_that_is_not_there(r: Recorder) -> None:
    for name, fields in {
        "one": {"stdout": "/proc/no/such/fifo"},
        "two": {"stdin": "/proc/no/such/fifo"},
        "three": {"stdout": "nonsense://x"},
        "four": {"stdout": "file:///proc/no/such/folder/file"},
        "five": {"stdout": "binary:///no/such/logger"},
    }.items():
        await r.container(name)
        await r.tasks.create(container_id=name, **fields, patience=5)  # the second waits
    await r.tasks.list()


@scenario()
async def stdio_to_files(r: Recorder) -> None:
    out, err = r.folder / "out", r.folder / "err"
    out.touch(), err.touch()
    await r.container(command="echo out")
    await r.tasks.create(container_id="one", stdout=f"file://{out}", stderr=f"file://{err}")
    await r.tasks.get(container_id="one")
    await r.tasks.start(container_id="one")
    await r.tasks.wait(container_id="one")
    await r.tasks.delete(container_id="one")
    r.note(f"{out.read_text()!r} {err.read_text()!r}")


@scenario()
async def no_namespace(r: Recorder) -> None:
    async with r.within(None) as none, r.within("a/b") as bad:
        for each in (none, bad):
            await each.tasks.create(container_id="one")
            await each.tasks.start(container_id="one")
            await each.tasks.get(container_id="one")
            await each.tasks.list()
            await each.tasks.metrics()
            await each.tasks.wait(container_id="one")
            await each.tasks.delete(container_id="one")


@scenario()
async def another_namespace(r: Recorder) -> None:
    await r.running()
    async with r.within(f"{r.namespace}-other") as other:
        await other.tasks.get(container_id="one")
        await other.tasks.list()
        await other.tasks.metrics()
        await other.tasks.kill(container_id="one", signal=9)
        await other.tasks.delete(container_id="one")
    await r.tasks.get(container_id="one")
