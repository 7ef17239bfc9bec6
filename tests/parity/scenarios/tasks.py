"""Tasks: exit statuses, signals, waiting, pausing, limits, processes, metrics, checkpoints."""

from __future__ import annotations

import json
from typing import Any

from harness.containers import process
from parity.recorder import PATIENCE_SECONDS, RUNC, Recorder
from parity.scenarios import scenario
from parity.scenarios.states import RESOURCES

from taskd.proto.containerd.runc.v1 import CheckpointOptions, Options
from taskd.proto.containerd.services.containers.v1 import Container, ContainerRuntime
from taskd.proto.containerd.services.tasks import v1 as tasks
from taskd.proto.containerd.types import Descriptor
from taskd.proto.google import protobuf
from taskd.wellknown import pack, to_any


@scenario()
async def lifecycle(r: Recorder) -> None:
    await r.created(command="sh -c 'exit 42'")
    await r.tasks.get(container_id="one")
    await r.tasks.start(container_id="one")
    await r.tasks.wait(container_id="one")
    await r.tasks.get(container_id="one")
    await r.tasks.delete(container_id="one")
    await r.containers.delete(id="one")


@scenario()
async def statuses(r: Recorder) -> None:
    for number, command in enumerate(
        ("exit 0", "exit 1", "exit 255", "kill -TERM $$", "kill -KILL $$", "kill -ABRT $$")
    ):
        name = f"c{number}"
        await r.running(name, ["/bin/sh", "-c", command])
        await r.tasks.wait(container_id=name)
        await r.tasks.delete(container_id=name)


@scenario()
async def wait_before_start(r: Recorder) -> None:
    await r.created(command="sh -c 'exit 3'")
    waits = [r.tasks.wait(container_id="one") for _ in range(20)]
    async with r.meanwhile(*waits, head_start=0.1):
        await r.tasks.start(container_id="one")


@scenario()
async def wait_after_exit_from_many(r: Recorder) -> None:
    await r.stopped(command="sh -c 'exit 3'")
    await r.all(*(r.tasks.wait(container_id="one") for _ in range(20)))
    await r.tasks.delete(container_id="one")
    await r.tasks.wait(container_id="one")


@scenario()
async def wait_while_it_is_deleted(r: Recorder) -> None:
    await r.running()
    waits = [r.tasks.wait(container_id="one") for _ in range(3)]
    async with r.meanwhile(*waits, head_start=0.1):
        await r.end()


@scenario()
async def wait_for_a_created_task_that_is_deleted(r: Recorder) -> None:
    await r.created()
    async with r.meanwhile(r.tasks.wait(container_id="one"), head_start=0.1):
        await r.tasks.delete(container_id="one")


@scenario()
async def delete_at_once(r: Recorder) -> None:
    """One of them deletes it; the others find nothing, or the shim gone."""
    await r.stopped()
    await r.tasks.delete(container_id="one")
    await r.all(*(r.tasks.delete(container_id="one") for _ in range(3)))


@scenario()
async def signals(r: Recorder) -> None:
    await r.running(command="sh -c 'trap : TERM; while :; do sleep 1; done'")
    for signal in (15, 1, 0, 64, 65, 2**31, 2**32 - 1):
        await r.tasks.kill(container_id="one", signal=signal)
    await r.tasks.wait(container_id="one", patience=PATIENCE_SECONDS)


@scenario()
async def kill_twice(r: Recorder) -> None:
    await r.running()
    await r.tasks.kill(container_id="one", signal=9)
    await r.tasks.wait(container_id="one")
    await r.tasks.kill(container_id="one", signal=9)
    await r.tasks.kill(container_id="one", signal=9, all=True)


@scenario()
async def kill_of_an_unknown_exec(r: Recorder) -> None:
    await r.running()
    await r.tasks.kill(container_id="one", exec_id="none", signal=9)
    await r.tasks.kill(container_id="one", exec_id="none", signal=9, all=True)


@scenario()
async def kill_everything(r: Recorder) -> None:
    await r.running(command="sh -c 'sleep 1000 & wait'")
    spec = process(["/bin/sleep", "1000"])
    await r.tasks.exec(container_id="one", exec_id="two", spec=spec)
    await r.tasks.start(container_id="one", exec_id="two")
    await r.tasks.kill(container_id="one", signal=9, all=True)
    await r.tasks.wait(container_id="one")
    await r.tasks.wait(container_id="one", exec_id="two")


@scenario()
async def pause_and_resume(r: Recorder) -> None:
    await r.running()
    await r.tasks.pause(container_id="one")
    await r.tasks.get(container_id="one")
    await r.tasks.list()
    await r.tasks.list_pids(container_id="one")
    await r.tasks.resume(container_id="one")
    await r.tasks.get(container_id="one")
    await r.end()


@scenario()
async def terminal(r: Recorder) -> None:
    await r.container(command="sleep 1000", terminal=True)
    await r.tasks.create(container_id="one", terminal=True)
    await r.tasks.start(container_id="one")
    for width, height in ((80, 24), (0, 0), (65535, 65535), (2**32 - 1, 2**32 - 1)):
        await r.tasks.resize_pty(container_id="one", width=width, height=height)
    await r.tasks.get(container_id="one")
    await r.end()


@scenario()
async def terminal_in_one_place_only(r: Recorder) -> None:
    await r.container(terminal=True)
    await r.tasks.create(container_id="one", terminal=False)
    await r.container("two", terminal=False)
    await r.tasks.create(container_id="two", terminal=True)
    await r.tasks.list()


@scenario()
async def close_stdin_twice(r: Recorder) -> None:
    await r.running()
    for stdin in (True, True, False):
        await r.tasks.close_io(container_id="one", stdin=stdin)


@scenario()
async def pids(r: Recorder) -> None:
    await r.running(command="sh -c 'sleep 1000 & wait'")
    spec = process(["/bin/sleep", "1000"])
    await r.tasks.exec(container_id="one", exec_id="two", spec=spec)
    await r.tasks.start(container_id="one", exec_id="two")
    await r.tasks.list_pids(container_id="one")


def _resources(document: Any, type_name: str = "LinuxResources") -> protobuf.Any:
    prefix = "types.containerd.io/opencontainers/runtime-spec/1/"
    return protobuf.Any(type_url=prefix + type_name, value=json.dumps(document).encode())


@scenario()
async def update(r: Recorder) -> None:
    await r.running()
    for resources in (
        RESOURCES,
        _resources({"memory": {"limit": 1 << 26}, "cpu": {"shares": 512}}),
        _resources({}),
        _resources({"memory": {"limit": 1}}),
        _resources({"memory": {"limit": "x"}}),
        _resources({"pids": {"limit": -1}}),
        _resources({}, "WindowsResources"),
        protobuf.Any(type_url="no.such.Type", value=b"{}"),
        protobuf.Any(),
        None,
    ):
        await r.tasks.update(container_id="one", resources=resources)
    await r.tasks.update(container_id="one", resources=RESOURCES, annotations={"a": "b"})


@scenario()
async def metrics_by_filter(r: Recorder) -> None:
    await r.running("one")
    await r.running("two")
    for expressions in (
        [],
        ["id==one"],
        ["id!=one"],
        ["id==one", "id==two"],
        [f"namespace=={r.namespace}"],
        ["namespace==none"],
        [f"id==one,namespace=={r.namespace}"],
        [f"runtime=={RUNC}"],
        ["runtime"],
        ["nothing"],
        ["id=="],
        ["id==("],
    ):
        await r.tasks.metrics(filters=expressions)


@scenario()
async def list_of_many_states(r: Recorder) -> None:
    await r.created("created")
    await r.running("running")
    await r.running("paused")
    await r.tasks.pause(container_id="paused")
    await r.stopped("stopped", "sh -c 'exit 9'")
    await r.container("none")
    await r.tasks.list()
    await r.tasks.list(filter="id==running")
    await r.tasks.list(filter="bad==")


CHECKPOINT_ERRORS: dict[str, Any] = {
    "of another type": Options(),
    "to a path that cannot be": CheckpointOptions(image_path="/proc/none/image"),
}


@scenario()
async def checkpoint_options(r: Recorder) -> None:
    await r.created()
    for options in CHECKPOINT_ERRORS.values():
        await r.tasks.checkpoint(container_id="one", options=to_any(pack(options)))
    await r.tasks.checkpoint(
        container_id="one", options=protobuf.Any(type_url="no.such.Type", value=b"x")
    )
    await r.tasks.checkpoint(container_id="none")
    await r.tasks.get(container_id="one")


@scenario()
async def record_changes_under_a_task(r: Recorder) -> None:
    await r.running()
    changed = Container(
        id="one", runtime=ContainerRuntime(name=RUNC), spec=protobuf.Any("other", b"{}")
    )
    await r.containers.update(container=changed)
    await r.tasks.get(container_id="one")
    await r.end()
    await r.tasks.create(container_id="one")


@scenario()
async def record_goes_before_its_task(r: Recorder) -> None:
    """Without the record a task is out of reach until there is one again."""
    await r.running()
    await r.containers.delete(id="one")
    await r.tasks.get(container_id="one")
    await r.tasks.list()
    await r.tasks.metrics()
    await r.tasks.kill(container_id="one", signal=9)
    await r.container()
    await r.tasks.get(container_id="one")
    await r.end()


# A sleep that CRIU restores may be over at once, and some of busybox's end then.
_GOES_ON = ("/bin/sh", "-c", "while :; do sleep 1; done")


@scenario()
async def checkpoint_as_content(r: Recorder) -> None:
    """Digests and sizes differ from one checkpoint to the next, so they are not noted down."""
    await r.running(command=_GOES_ON, host_network=True)
    request = tasks.CheckpointTaskRequest(
        container_id="one", options=to_any(pack(CheckpointOptions(exit=True)))
    )
    await r.leases.create(id="l")  # which keeps it
    stub = r.stub(tasks.TasksStub)
    answer = await stub.checkpoint(request, metadata={"containerd-lease": "l"})
    checkpoint, config = answer.descriptors
    r.note(f"{checkpoint.media_type} {config.media_type}")
    await r.tasks.metrics()  # of what has ended with it
    await r.tasks.wait(container_id="one")
    await r.tasks.delete(container_id="one")
    restore = tasks.CreateTaskRequest(container_id="one", checkpoint=checkpoint)
    await stub.create(restore)
    await r.tasks.get(container_id="one")
    await r.tasks.start(container_id="one")
    await r.tasks.get(container_id="one")
    await r.end()


@scenario()
async def checkpoint_into_a_folder(r: Recorder) -> None:
    image = str(r.folder / "image")
    await r.running(command=_GOES_ON, host_network=True)
    options = to_any(pack(CheckpointOptions(exit=False, image_path=image)))
    await r.tasks.checkpoint(container_id="one", options=options)
    await r.tasks.get(container_id="one")
    await r.end()
    await r.tasks.create(container_id="one", options=to_any(pack(Options(criu_image_path=image))))
    await r.tasks.start(container_id="one")
    await r.tasks.list()
    await r.end()


@scenario()
async def restore_of_what_is_no_checkpoint(r: Recorder) -> None:
    await r.container()
    for checkpoint in (
        Descriptor("application/x", "sha256:" + "1" * 64, 1),
        Descriptor("application/vnd.containerd.container.criu.checkpoint.criu.tar"),
        Descriptor(
            "application/vnd.containerd.container.criu.checkpoint.criu.tar", "sha256:" + "1" * 64, 1
        ),
    ):
        await r.tasks.create(container_id="one", checkpoint=checkpoint)
    await r.tasks.list()
