"""Who may read, write and enter what a daemon has, and who has to."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Self

from harness.client import RUNC, Client
from harness.containers import spec
from harness.daemons import Taskd, client
from harness.leaks import leaving_nothing
from harness.real import BOTH_SHIMS, need

from taskd.proto.containerd.services.containers.v1 import (
    Container,
    ContainerRuntime,
    CreateContainerRequest,
)
from taskd.proto.containerd.services.content.v1 import (
    ContentStub,
    WriteAction,
    WriteContentRequest,
)
from taskd.proto.containerd.services.tasks.v1 import CreateTaskRequest, StartRequest, WaitRequest
from taskd.proto.containerd.types import Mount

MAPPED = 100_000


class Loose(Taskd):
    """Started with a umask that forbids nothing."""

    def start(self) -> Self:
        before = os.umask(0)
        try:
            return super().start()
        finally:
            os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


@BOTH_SHIMS
async def test_the_root_folder_is_for_its_user_alone(
    folder: Path, runc_shim: None, namespace: str, rootfs: Path
) -> None:
    need("runc", "containerd-shim-runc-v2")
    # As an earlier taskd has left it.
    (folder / "taskd/root").mkdir(parents=True)
    (folder / "taskd/root").chmod(0o711)
    with Loose(folder / "taskd") as taskd, leaving_nothing(taskd, namespace):
        async with client(taskd.address, namespace) as channel:
            ask = Client(channel, rootfs)
            await ask.start("one", "/bin/sleep", "1000")
            write = [
                WriteContentRequest(action=WriteAction.COMMIT, ref="a", data=b"blob", total=4),
                WriteContentRequest(action=WriteAction.WRITE, ref="b", data=b"unfinished"),
            ]
            for each in write:
                async for _ in ContentStub(channel).write([each]):
                    pass
            assert mode(taskd.root) == 0o700
            found = [path for path in taskd.root.rglob("*") if not path.is_symlink()]
            # Folders of tasks are as containerd's: within a folder that nobody enters.
            tasks = taskd.root / "io.containerd.runtime.v2.task"
            loose = [path for path in found if mode(path) & 0o077 and tasks not in path.parents]
            assert loose == [tasks]
            assert {"metadata.db", "events.db", "data", "lock"} <= {path.name for path in found}
            assert await ask.end("one") == 137
        assert mode(taskd.address) == mode(Path(f"{taskd.address}.ttrpc")) == 0o660
        assert mode(taskd.state) == 0o711
        assert mode(taskd.state / "lock") == 0o600


@BOTH_SHIMS
async def test_a_user_namespace_reaches_its_root_filesystem(
    folder: Path, runc_shim: None, namespace: str, rootfs: Path
) -> None:
    """Below the state folder, which is made with a umask that would forbid it."""
    need("runc", "containerd-shim-runc-v2")
    folder.chmod(0o711)
    (folder / "taskd").mkdir()
    (folder / "taskd").chmod(0o711)
    with Taskd(folder / "taskd") as taskd, leaving_nothing(taskd, namespace):
        async with client(taskd.address, namespace) as channel:
            ask = Client(channel, rootfs)
            wanted = spec("rootfs", ["/bin/sh", "-c", "cat /proc/self/uid_map && ls / && exit 7"])
            document = json.loads(wanted.value)
            mapping = [{"containerID": 0, "hostID": MAPPED, "size": 1000}]
            document["linux"] |= {"uidMappings": mapping, "gidMappings": mapping}
            document["linux"]["namespaces"].append({"type": "user"})
            wanted.value = json.dumps(document).encode()
            container = Container(id="one", runtime=ContainerRuntime(name=RUNC), spec=wanted)
            await ask.containers.create(CreateContainerRequest(container=container))
            mount = Mount(type="bind", source=str(rootfs), options=["rbind", "ro"])
            await ask.tasks.create(CreateTaskRequest(container_id="one", rootfs=[mount]))
            bundle = taskd.state / "io.containerd.runtime.v2.task" / namespace / "one"
            assert (mode(bundle), bundle.stat().st_gid) == (0o710, MAPPED)
            await ask.tasks.start(StartRequest(container_id="one"))
            ended = await ask.tasks.wait(WaitRequest(container_id="one"))
            assert ended.exit_status == 7
            assert await ask.remove("one") == 7
