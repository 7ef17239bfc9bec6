"""Containers, as somebody has them who is not on the same side of the socket."""

from __future__ import annotations

import copy
import json
import shutil
import signal as signals
import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import anyio.to_thread

from taskd import logger
from taskd.client import logs, streams
from taskd.client.channel import naming
from taskd.client.cleanup import Made, whatever_happens
from taskd.client.process import Exit, Process
from taskd.client.spec import Amendment, Limits, amended, packed, user_in
from taskd.client.stats import Stats
from taskd.errors import FailedPrecondition, NotFound, TaskdError
from taskd.labels import is_to_go, log_of
from taskd.proto.containerd.runc.v1 import CheckpointOptions
from taskd.proto.containerd.services.containers.v1 import (
    Container as Record,
)
from taskd.proto.containerd.services.containers.v1 import (
    DeleteContainerRequest,
    GetContainerRequest,
)
from taskd.proto.containerd.services.tasks.v1 import (
    CheckpointTaskRequest,
    DeleteTaskRequest,
    ExecProcessRequest,
    KillRequest,
    ListPidsRequest,
    MetricsRequest,
    PauseTaskRequest,
    ResumeTaskRequest,
    UpdateTaskRequest,
)
from taskd.proto.containerd.types import Descriptor
from taskd.proto.containerd.v1.types import Process as State
from taskd.proto.containerd.v1.types import Status
from taskd.wellknown import nanoseconds, pack, to_any

if TYPE_CHECKING:
    from taskd.client.client import Client

__all__ = ["Container"]

END_SECONDS = 20.0
"""For a container to be killed and deleted in the end; then that is a TimeoutError."""


class Container(Process):
    """A container, and its own process. See `Client.run` for how one is made."""

    def __init__(self, client: Client, record: Record) -> None:
        super().__init__(client.channel, record.id)
        self.record = record
        """What the daemon keeps of it, when it was made or found."""
        self.task: State | None = None
        """What its task was when it was found, by `Client.list` for one; None without a task."""
        self._client = client
        self._spec: tuple[Record, dict[str, Any]] | None = None
        self.tty = bool(self.spec.get("process", {}).get("terminal"))

    def found(self, task: State | None) -> None:
        """Its task is `task`."""
        self.task = task
        self.pid = task.pid if task else 0

    def forget(self) -> None:
        """There is nobody at the other end of its streams, nor of its execs'."""
        self._io.close(remove=True)
        shutil.rmtree(self._home, ignore_errors=True)

    @property
    def id(self) -> str:
        return self.record.id

    @property
    def image(self) -> str:
        """Name of the image that it is made of; empty for a root filesystem of its own."""
        return self.record.image

    @property
    def source(self) -> str:
        """That name, or the path of its root filesystem."""
        path: str = self.spec.get("root", {}).get("path", "")
        return self.image or path

    @property
    def labels(self) -> Mapping[str, str]:
        return self.record.labels

    @property
    def runtime(self) -> str:
        return self.record.runtime.name if self.record.runtime is not None else ""

    @property
    def spec(self) -> dict[str, Any]:
        """Its specification, which is not for changing."""
        if self._spec is None or self._spec[0] is not self.record:
            given = self.record.spec
            found = json.loads(given.value) if given is not None and given.value else {}
            self._spec = self.record, found
        return self._spec[1]

    def exec(
        self,
        args: Sequence[str],
        *,
        id: str | None = None,  # noqa: A002
        env: Mapping[str, str] | Sequence[str] = (),
        cwd: str | None = None,
        user: str | None = None,
        tty: bool = False,
        stdin: bool = False,
        output: bool = True,
        start: bool = True,
        amend: Amendment | None = None,
    ) -> Made[Process]:
        """Run one more process in it: ``async with`` ends it, ``await`` lets it stay.

        What is not said is as with its own process, whose environment `env` adds to. Without
        `start` it is only made. Raises `AlreadyExists` for an `id` that is taken.
        """

        async def make() -> Process:
            own = self.spec.get("process", {})
            document = copy.deepcopy(own) | {"args": list(args), "terminal": tty}
            added = [f"{k}={v}" for k, v in env.items()] if isinstance(env, Mapping) else env
            names = {each.partition("=")[0] for each in added}
            kept = [each for each in own.get("env", ()) if each.partition("=")[0] not in names]
            document["env"] = [*kept, *added]
            if cwd is not None:
                document["cwd"] = cwd
            if user is not None:
                document["user"] = user_in(user, await self._client.roots(self.record))
            return await self._exec(amended(document, amend), id, tty, stdin, output, start)

        return Made(make)

    async def _exec(
        self,
        document: Mapping[str, Any],
        id: str | None,  # noqa: A002
        tty: bool,
        stdin: bool,
        output: bool,
        start: bool,
    ) -> Process:
        exec_id = id or f"exec-{uuid.uuid4().hex[:12]}"
        process = Process(self._channel, self.id, exec_id, tty=tty)
        io = process.give(stdin=stdin, output=output)
        try:
            with self._naming():
                await self._tasks.exec(
                    ExecProcessRequest(
                        container_id=self.id,
                        exec_id=exec_id,
                        stdin=io.path("stdin"),
                        stdout=io.path("stdout"),
                        stderr=io.path("stderr"),
                        terminal=tty,
                        spec=packed("Process", document),
                    )
                )
        except BaseException:
            io.close(remove=True)
            raise
        self._client.keep(io)
        if start:
            try:
                await process.start()
            except BaseException:
                await whatever_happens(process.leave())
                raise
        return process

    async def wait(self, timeout: float | None = None) -> Exit:
        goes = is_to_go(self.labels, self.id)
        if goes and self._exit is None and not await self._is_there():
            self._exit = await self._told()
        try:
            return await super().wait(timeout)
        except NotFound:
            if not goes or (found := await self._told()) is None:
                raise
            self._exit = found
            return found

    async def _is_there(self) -> bool:
        """Whether the record is still this one's, and not of another container of that name."""
        try:
            found = await self._client.containers.get(GetContainerRequest(id=self.id))
        except NotFound:
            return False
        return found.container is None or found.container.created_at == self.record.created_at

    async def _told(self) -> Exit | None:
        """How one has ended that is removed already: the daemon's events have it."""
        since = nanoseconds(self.record.created_at)
        exits = 'topic=="/tasks/exit"'
        found = None
        async for event in self._client.events(exits, since=since, follow=False):
            mine = event.container_id == self.id == getattr(event.message, "id", "")
            if mine and found is None:  # later ones are of others who had the name
                found = Exit(event.message.exit_status, nanoseconds(event.message.exited_at))  # type: ignore[union-attr]
        return found

    async def attach(self) -> None:
        """Read and write its standard streams here, made by another client, or by this one.

        What two read at once each of them has only a part of.
        """
        found = await self.state()
        paths = (found.stdin, found.stdout, found.stderr)
        self._io.close(remove=False)
        self._io = streams.Streams.attached(paths, self._close_stdin)
        self._client.keep(self._io)
        if not self._io.outputs:
            raise FailedPrecondition(
                f'container "{self.id}": its output goes to {found.stdout or "nobody"}, where '
                "nobody can attach; logs has what is kept",
                verbatim=True,
            )

    def logs(
        self, *, follow: bool = False, tail: int | None = None, since: int | None = None
    ) -> logs.Reader:
        """What it has written, if it was made with ``output="log"``: ``async for`` has the entries.

        `follow` goes on until it has ended; `tail` is how many of the last lines, `since` a time in
        nanoseconds. Raises `FailedPrecondition`, and while it is read `NotFound` if it is removed.
        """
        path = self._log
        if path is None:
            raise FailedPrecondition(
                f'container "{self.id}": its output is not kept: it was made in the foreground, '
                'or without output="log"',
                verbatim=True,
            )
        ended = self._has_ended if follow else None
        # The daemon removes the log first, and then what says that there is one.
        gone = NotFound(f'container "{self.id}"') if is_to_go(self.labels, self.id) else None
        return logs.Reader(path, ended=ended, tail=tail, since=since, gone=gone)

    def remove_log(self) -> None:
        """Remove what it has written, if that was kept."""
        if log := self._log:
            logger.remove(log)

    @property
    def _log(self) -> Path | None:
        return log_of(self.labels, self._client.namespace, self.id)

    async def _has_ended(self) -> bool:
        try:
            return (await self.state()).status == Status.STOPPED
        except NotFound:
            return True

    async def copy_in(self, source: Path | str, target: str) -> None:
        """Copy a file or a folder of ours to the path `target` in it. Raises OSError.

        It runs on this machine; what a plain process of the host's has is the host's file system.
        """
        from taskd.client import copying

        await anyio.to_thread.run_sync(copying.put, Path(source), await self._roots(), target)

    async def copy_out(self, source: str, target: Path | str) -> None:
        """Copy the file or folder `source` in it to `target` here. Raises OSError."""
        from taskd.client import copying

        await anyio.to_thread.run_sync(copying.get, await self._roots(), source, Path(target))

    async def _roots(self) -> Sequence[Path]:
        """Its root filesystem: as its process sees it, or as long as there is none, the layers."""
        if self.pid and (await self.state()).status != Status.STOPPED:
            return [Path(f"/proc/{self.pid}/root")]
        return await self._client.roots(self.record)

    async def pause(self) -> None:
        """Freeze all that runs in it."""
        with self._naming():
            await self._tasks.pause(PauseTaskRequest(container_id=self.id))

    async def resume(self) -> None:
        """Let it go on."""
        with self._naming():
            await self._tasks.resume(ResumeTaskRequest(container_id=self.id))

    async def pids(self) -> list[int]:
        """All processes in it, by the host's numbers."""
        with self._naming():
            found = await self._tasks.list_pids(ListPidsRequest(container_id=self.id))
        return [each.pid for each in found.processes]

    async def stats(self) -> Stats:
        """What it uses. Raises `NotFound` if it does not run, or is not measured."""
        found = await self._tasks.metrics(MetricsRequest(filters=[f'id=="{self.id}"']))
        for metric in found.metrics:
            if metric.id == self.id and (stats := Stats.from_message(metric)):
                return stats
        raise NotFound(f'statistics of container "{self.id}"')

    async def update(
        self, limits: Limits | Mapping[str, Any], annotations: Mapping[str, str] | None = None
    ) -> None:
        """Change what it may use: `Limits`, or ``linux.resources`` of the OCI specification."""
        document = limits.resources() if isinstance(limits, Limits) else limits
        with self._naming():
            await self._tasks.update(
                UpdateTaskRequest(
                    container_id=self.id,
                    resources=packed("LinuxResources", document),
                    annotations=dict(annotations or {}),
                )
            )

    async def checkpoint(
        self,
        folder: Path | str | None = None,
        *,
        exit: bool = False,  # noqa: A002
    ) -> list[Descriptor]:
        """Write down how far it has come: into `folder`, or into the content store.

        With `exit` it ends with that. What `Client.create` takes as `checkpoint` is the folder, or
        the one of the descriptors whose media type says so: it is kept as long as something refers
        to it, such as a lease (`Client.leases`).
        """
        options = CheckpointOptions(exit=exit, image_path=str(folder) if folder else "")
        with self._naming():
            done = await self._tasks.checkpoint(
                CheckpointTaskRequest(container_id=self.id, options=to_any(pack(options)))
            )
        found: list[Descriptor] = done.descriptors
        return found

    async def kill(self, signal: int = signals.SIGKILL, *, everything: bool = False) -> None:
        """Send its own process a signal, or all that runs in it. Raises `NotFound` if it ended."""
        with self._naming():
            await self._tasks.kill(KillRequest(container_id=self.id, signal=signal, all=everything))

    async def refresh(self) -> None:
        """Find out anew what the daemon has of it, and of its task. Raises `NotFound`."""
        with self._naming():
            found = await self._client.containers.get(GetContainerRequest(id=self.id))
        assert found.container is not None
        self.record = found.container
        try:
            self.found(await self.state())
        except NotFound:
            self.found(None)

    async def delete_task(self) -> int | None:
        """Forget its process, which has ended, and keep the container; its exit status, if any."""
        try:
            with self._naming():
                done = await self._tasks.delete(DeleteTaskRequest(container_id=self.id))
        except NotFound:
            return None
        self.forget()
        self._exit = None
        self.pid = 0
        status: int = done.exit_status
        return status

    async def delete(self, *, force: bool = False) -> None:
        """Remove it: its task, its snapshot, its log. With `force` what runs is killed first.

        Raises `FailedPrecondition` if it runs.
        """
        if force:
            await self._end()
        await self.delete_task()
        self.forget()
        if self.record.snapshot_key:
            with suppress(NotFound):
                await self._client.snapshots(self.record.snapshotter).remove(
                    self.record.snapshot_key
                )
        # The daemon may be about to do it, too.
        with suppress(NotFound) if is_to_go(self.labels, self.id) else naming("container", self.id):
            await self._client.containers.delete(DeleteContainerRequest(id=self.id))
        self.remove_log()

    async def leave(self) -> None:
        """End and remove it, whatever it does. Raises TimeoutError if that takes too long."""
        with anyio.fail_after(END_SECONDS), suppress(NotFound):
            await self.delete(force=True)
        self.forget()

    async def _end(self) -> None:
        try:
            task = await self.state()
        except NotFound:
            return
        if task.status == Status.STOPPED:
            return
        if task.status in (Status.PAUSED, Status.PAUSING):
            with suppress(TaskdError):  # cgroup v1: nothing that is frozen ends
                await self.resume()
        try:
            # With its first process all go, as the shim sees to; a signal to all reaches nobody
            # where CRIU has put what it restored into the cgroup of the container that it was.
            await self.kill()
        except NotFound:
            pass  # it has ended meanwhile
        except TaskdError:
            return  # there is nothing yet that a signal could reach, or deletion will say so
        with suppress(TaskdError):
            await self.wait()
