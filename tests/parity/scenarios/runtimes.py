"""Runtimes: each kind of shim that there is, by each way to name it."""

from __future__ import annotations

import shutil

from harness.containers import process
from parity.recorder import PATIENCE_SECONDS, RUNC, Recorder
from parity.scenarios import Play, scenario
from parity.scenarios.states import RESOURCES

from taskd.proto.containerd.linux.runc import RuncOptions
from taskd.proto.containerd.runc.v1 import Options
from taskd.proto.containerd.services.containers.v1 import Container, ContainerRuntime
from taskd.wellknown import pack, to_any

V1 = "io.containerd.runc.v1"
LINUX = "io.containerd.runtime.v1.linux"


def shim(r: Recorder, name: str = "containerd-shim-runc-v2") -> str:
    """The shim that the daemon finds."""
    found = shutil.which(name, path=r.daemon.path)
    assert found
    return found


async def whole_life(r: Recorder) -> None:
    """Of a container that is there."""
    await r.tasks.create(container_id="one")
    await r.tasks.get(container_id="one")
    await r.tasks.start(container_id="one")
    await r.tasks.get(container_id="one")
    await r.tasks.list()
    await r.tasks.list_pids(container_id="one")
    await r.tasks.metrics()
    await r.tasks.pause(container_id="one")
    await r.tasks.get(container_id="one")
    await r.tasks.resume(container_id="one")
    await r.tasks.update(container_id="one", resources=RESOURCES)
    await r.tasks.exec(container_id="one", exec_id="two", spec=process(["/bin/sh", "-c", "exit 5"]))
    await r.tasks.start(container_id="one", exec_id="two")
    await r.tasks.wait(container_id="one", exec_id="two")
    await r.tasks.delete_process(container_id="one", exec_id="two")
    await r.tasks.close_io(container_id="one", stdin=True)
    await r.tasks.wait(container_id="one", patience=PATIENCE_SECONDS)
    await r.end()
    await r.tasks.list()


def _lives_with(runtime: str) -> Play:
    async def play(r: Recorder) -> None:
        await r.container(runtime=runtime)
        await whole_life(r)

    return play


HAVE_V1 = ("1.6", "1.7")
"""The generations that have runtime v1."""

scenario(f"runtimes: {RUNC}")(_lives_with(RUNC))
scenario(f"runtimes: {V1}")(_lives_with(V1))
scenario(f"runtimes: {LINUX}", generations=HAVE_V1)(_lives_with(LINUX))


@scenario()
async def absolute_path(r: Recorder) -> None:
    await r.container(runtime=shim(r))
    await whole_life(r)


@scenario()
async def absolute_path_to_another_name(r: Recorder) -> None:
    """Any name will do for an absolute path."""
    other = r.folder / "my-shim"
    shutil.copy(shim(r), other)
    await r.container(runtime=str(other))
    await r.tasks.create(container_id="one")
    await r.tasks.get(container_id="one")


@scenario()
async def runtime_path(r: Recorder) -> None:
    await r.container(runtime="io.example.none.v7")
    await r.tasks.create(container_id="one", runtime_path=shim(r))
    await r.tasks.start(container_id="one")
    await r.tasks.get(container_id="one")
    await r.end()


@scenario()
async def task_apis_at_once(r: Recorder) -> None:
    """The newest shim speaks version 3 of the task API; this older one, version 2."""
    await r.running("new", runtime=RUNC)
    await r.running("old", runtime=V1)
    await r.tasks.list()
    await r.tasks.metrics()
    await r.end("new")
    await r.end("old")


@scenario(generations=HAVE_V1)
async def several_at_once(r: Recorder) -> None:
    await r.running("two", runtime=RUNC)
    await r.running("path", runtime=shim(r))
    await r.running("first", runtime=V1)
    await r.running("linux", runtime=LINUX)
    await r.tasks.list()
    await r.tasks.metrics()


@scenario(generations=HAVE_V1)
async def options_of_linux(r: Recorder) -> None:
    await r.container(runtime=LINUX)
    await r.tasks.create(container_id="one", options=to_any(pack(Options(binary_name="runc"))))
    runtime = ContainerRuntime(LINUX, to_any(pack(RuncOptions(runtime="runc"))))
    await r.containers.create(container=Container(id="two", runtime=runtime, spec=r.spec("two")))
    await r.tasks.create(container_id="two")
    await r.tasks.get(container_id="two")


@scenario(generations=HAVE_V1)
async def linux_fails_to_create(r: Recorder) -> None:
    await r.created(command=["/no/such"], runtime=LINUX)
    await r.tasks.start(container_id="one")
    await r.tasks.list()


@scenario(generations=HAVE_V1)
async def linux_execs(r: Recorder) -> None:
    await r.running(runtime=LINUX)
    for exec_id in ("", "a/b", "two", "two"):
        await r.tasks.exec(container_id="one", exec_id=exec_id, spec=process(["/bin/sleep", "99"]))
    await r.tasks.get(container_id="one", exec_id="two")
    await r.tasks.start(container_id="one", exec_id="two")
    await r.tasks.delete_process(container_id="one", exec_id="two")
    await r.tasks.kill(container_id="one", exec_id="two", signal=9)
    await r.tasks.wait(container_id="one", exec_id="two")
    await r.tasks.get(container_id="one", exec_id="two")
    await r.tasks.delete_process(container_id="one", exec_id="two")
    await r.tasks.get(container_id="one", exec_id="two")
    await r.tasks.get(container_id="one", exec_id="none")
    await r.tasks.delete(container_id="one")
