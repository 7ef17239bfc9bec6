"""taskd's shim for plain processes with one thing broken, each as no real shim is."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import betterproto2
from taskd_process import HostProcess

from harness.executables import write_executable
from taskd.errors import TaskdError
from taskd.proto.containerd import events
from taskd.proto.containerd.task import v3 as api
from taskd.proto.google.protobuf import Empty
from taskd.shim import Container, Process, command
from taskd.shim.publisher import Publisher
from taskd.shim.service import TaskService
from taskd.shim.starts import Starts
from taskd.ttrpc import transport

__all__ = ["FAULTS", "MINIMAL", "install", "run"]

MINIMAL = "minimal"
"""Nothing broken, but nothing there that need not be."""


def install(folder: Path, fault: str) -> Path:
    """Write an executable of a shim with `fault`, which is one of `FAULTS` or `MINIMAL`."""
    name = f"containerd-shim-{fault.replace(' ', '-')}-v1"
    return write_executable(folder / name, __name__, f"run({fault!r})")


def run(fault: str) -> None:
    kind: type[Container] = HostProcess
    if fault == MINIMAL:
        kind = Minimal
    else:
        FAULTS[fault]()
    command.run(kind, "io.example.broken.v1")


class Minimal(Container):
    """The least that an author may write."""

    async def start(self, init: Process) -> int:
        spec = init.spec
        env = dict(each.split("=", 1) for each in spec["env"])
        return await self.spawn(spec["args"], init, env=env, cwd=spec["cwd"])


def _publishing(change: Callable[[Callable[[Any], None], Any], None]) -> None:
    """Have `change` do what is done with an event."""
    publish = Publisher.publish

    def changed(self: Publisher, event: betterproto2.Message) -> None:
        change(lambda each: publish(self, each), event)

    Publisher.publish = changed  # type: ignore[method-assign]


def exits_twice() -> None:
    def change(publish: Callable[[Any], None], event: Any) -> None:
        publish(event)
        if isinstance(event, events.TaskExit):
            publish(event)

    _publishing(change)


def starts_late() -> None:
    kept: list[Any] = []

    def change(publish: Callable[[Any], None], event: Any) -> None:
        if isinstance(event, events.TaskStart):
            kept.append(event)
            return
        publish(event)
        while kept:
            publish(kept.pop())

    _publishing(change)


def other_namespace() -> None:
    begin = Publisher.__init__

    def changed(self: Publisher, address: str, namespace: str) -> None:
        begin(self, address, "another")

    Publisher.__init__ = changed  # type: ignore[method-assign]


def wrong_status() -> None:
    async def wait(self: TaskService, request: api.WaitRequest) -> api.WaitResponse:
        answer = await real(self, request)
        answer.exit_status += 1
        return answer

    real = TaskService.wait
    TaskService.wait = wait  # type: ignore[method-assign]


def does_not_wait() -> None:
    async def wait(self: TaskService, request: api.WaitRequest) -> api.WaitResponse:
        return api.WaitResponse()

    TaskService.wait = wait  # type: ignore[method-assign]


def starts_twice() -> None:
    async def start(self: Starts, request: api.StartRequest) -> api.StartResponse:
        try:
            return await real(self, request)
        except TaskdError:
            return api.StartResponse(pid=self.tenants.task(request.id).init.pid)

    real = Starts.start
    Starts.start = start  # type: ignore[method-assign]


def leaves_a_process() -> None:
    async def start(self: HostProcess, init: Process) -> int:
        subprocess.Popen(["/bin/sleep", "60"], start_new_session=True)
        return await real(self, init)

    real = HostProcess.start
    HostProcess.start = start  # type: ignore[method-assign]


def leaves_descriptors() -> None:
    async def exec_(self: HostProcess, process: Process) -> int:
        os.pipe()
        return await real(self, process)

    real = HostProcess.exec
    HostProcess.exec = exec_  # type: ignore[method-assign]


def cleans_up_nothing() -> None:
    HostProcess.clean_up = classmethod(lambda *_: None)  # type: ignore[assignment]


def never_ends() -> None:
    async def shutdown(self: TaskService, request: api.ShutdownRequest) -> Empty:
        return Empty()

    TaskService.shutdown = shutdown  # type: ignore[method-assign]


def ends_too_early() -> None:
    async def shutdown(self: TaskService, request: api.ShutdownRequest) -> Empty:
        self.tenants.stopped.set()
        return Empty()

    TaskService.shutdown = shutdown  # type: ignore[method-assign]


def falls_over_garbage() -> None:
    def end(self: transport.Endpoint, event: Any) -> None:
        if event.reason is not None:
            os._exit(1)
        real(self, event)

    real = transport.Endpoint._end
    transport.Endpoint._end = end  # type: ignore[method-assign]


def forgets_terminal_size() -> None:
    async def resize_pty(self: TaskService, request: api.ResizePtyRequest) -> Empty:
        return Empty()

    TaskService.resize_pty = resize_pty  # type: ignore[method-assign]


def deletes_what_runs() -> None:
    refuse = Process.refuse

    def changed(self: Process, doing: str, *states: Any, **rest: Any) -> None:
        if doing != "delete":
            refuse(self, doing, *states, **rest)

    Process.refuse = changed  # type: ignore[method-assign]


FAULTS: dict[str, Callable[[], None]] = {
    each.__name__.replace("_", " "): each
    for each in (
        exits_twice,
        starts_late,
        other_namespace,
        wrong_status,
        does_not_wait,
        starts_twice,
        leaves_a_process,
        leaves_descriptors,
        cleans_up_nothing,
        never_ends,
        ends_too_early,
        falls_over_garbage,
        forgets_terminal_size,
        deletes_what_runs,
    )
}
