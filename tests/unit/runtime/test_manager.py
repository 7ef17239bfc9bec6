"""How shims are taken down: what is killed, what is cleaned up after, and what is left alone."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import anyio
import pytest
from harness.fake_generation import OPTIONS, Api, Observer, World, bundles, managing

from taskd import ttrpc
from taskd.errors import (
    AlreadyExists,
    DeadlineExceeded,
    ResourceExhausted,
    TaskdError,
    Unknown,
)
from taskd.runtime import remains, shims
from taskd.runtime.binary import Bootstrap
from taskd.runtime.bundle import Bundle
from taskd.runtime.connection import Connection
from taskd.runtime.held import listening
from taskd.runtime.types import CreateOptions, Exit


async def test_a_refused_create_undoes_only_what_it_made(world: World) -> None:
    world.create_error = AlreadyExists("a container of that id exists")
    async with managing(world) as shims:
        for _ in range(2):  # the id is free again
            with pytest.raises(AlreadyExists, match="of that id exists"):
                await shims.create("ns", "one", OPTIONS)
        assert world.deleted == []  # it would be somebody else's
        assert bundles(world) == []
        world.made_first = True
        with pytest.raises(AlreadyExists):
            await shims.create("ns", "one", OPTIONS)
        assert world.deleted == ["one"]
        assert bundles(world) == []


@pytest.mark.parametrize("error", [ttrpc.ConnectionClosed(), DeadlineExceeded()])
async def test_a_create_without_an_answer_is_cleaned_up_after(
    world: World, error: Exception
) -> None:
    world.create_error = error
    async with managing(world) as shims:
        with pytest.raises(TaskdError):
            await shims.create("ns", "one", OPTIONS)
    assert world.deleted == ["one"]
    assert not world.runs("one")
    assert bundles(world) == []


async def test_what_was_made_and_cannot_be_told_is_undone(world: World) -> None:
    observer = Observer()
    observer.refuses = ResourceExhausted("the disk is full")
    async with managing(world, observer) as shims:
        with pytest.raises(ResourceExhausted):
            await shims.create("ns", "one", OPTIONS)
    assert world.deleted == ["one"]
    assert not world.runs("one")


@pytest.mark.parametrize("tells_pid", [True, False])
async def test_a_hung_shim_is_killed_and_nobody_else(world: World, tells_pid: bool) -> None:
    """Whether it has told its pid or not, and wherever it works."""
    world.create_error, world.agrees, world.tells_pid = Unknown("no"), False, tells_pid
    bystanders: list[subprocess.Popen[bytes]] = []
    real = Api.create

    async def create(self: Api, bundle: str, options: CreateOptions) -> int:
        for _ in range(2):
            bystanders.append(subprocess.Popen(["/bin/sleep", "100"], cwd=bundle))
        return await real(self, bundle, options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Api, "create", create)
        async with managing(world) as shims:
            with pytest.raises(Unknown):
                await shims.create("ns", "one", OPTIONS)
    assert not world.runs("one")
    assert [each.poll() for each in bystanders] == [None, None]
    for each in bystanders:
        each.kill()
        each.wait()


async def test_a_shim_whose_start_fails_is_found_by_its_socket(world: World) -> None:
    world.start_error = Unknown("half way")
    async with managing(world) as shims:
        with pytest.raises(Unknown, match="half way"):
            await shims.create("ns", "one", OPTIONS)
    assert not world.runs("one")
    assert world.deleted == []
    assert not world.socket(Bundle("ns", "one", Path())).exists()


async def test_a_process_with_other_tasks_goes_on(world: World) -> None:
    world.name = "group"
    async with managing(world) as shims:
        await shims.create("ns", "one", OPTIONS)
        world.create_error, world.agrees = ttrpc.ConnectionClosed(), False
        with pytest.raises(TaskdError):
            await shims.create("ns", "two", OPTIONS)
        assert world.runs("group")
        world.create_error = None
        await shims.create("ns", "three", OPTIONS)
        # All speak through one connection.
        world.connections["three"].closed.set()
        with anyio.fail_after(10):
            while shims.all():
                await anyio.sleep(0.01)
        assert not world.runs("group")
    assert world.deleted[0] == "two"
    assert sorted(world.deleted[1:]) == ["one", "three"]


@pytest.mark.parametrize("others", [True, False])
async def test_a_shared_process_that_ends_meanwhile_is_started_again(
    world: World, monkeypatch: pytest.MonkeyPatch, others: bool
) -> None:
    """Its last tenant has left between ``start`` and the connection; one's own only fails."""
    begun: list[str] = []
    begin, connect = world.begin, shims.connect

    def begins(bundle: Bundle) -> Bootstrap:
        begun.append(bundle.id)
        return replace(begin(bundle), address="unix:///shared") if others else begin(bundle)

    async def connects(bootstrap: Bootstrap, *, timeout: float) -> Connection:
        if len(begun) == 1:
            raise Unknown("no such file or directory")
        return await connect(bootstrap, timeout=timeout)

    monkeypatch.setattr(world, "begin", begins)
    monkeypatch.setattr(shims, "connect", connects)
    async with managing(world) as tasks:
        if others:
            await tasks.create("ns", "one", OPTIONS)
            assert begun == ["one", "one"]
        else:
            with pytest.raises(Unknown, match="no such file"):
                await tasks.create("ns", "one", OPTIONS)
            assert begun == ["one"]


async def test_who_comes_to_a_process_that_ends_waits_until_it_is_gone(world: World) -> None:
    world.name = "group"
    world.deletion = Exit(7, 0, 1)
    async with managing(world) as tasks:
        first = await tasks.create("ns", "one", OPTIONS)
        await tasks.delete("ns", "one")
        second = await tasks.create("ns", "two", OPTIONS)
        assert first.shim.gone.is_set()
        assert second.shim is not first.shim


async def test_a_task_that_is_gone_does_not_take_its_pods_shim_along(world: World) -> None:
    """A daemon was killed after it had had the shim delete one task, and before it was done."""
    world.name = "group"
    async with managing(world) as shims:
        for name in ("one", "two"):
            await shims.create("ns", name, OPTIONS)
    world.gone.add("one")
    async with managing(world) as shims:
        assert await shims.load(10) == {("ns", "one"), ("ns", "two")}
        assert [shim.id for shim in shims.all()] == ["two"]
        assert world.runs("group")
        assert world.deleted == ["one"]
        assert [each.name for each in bundles(world)] == ["two"]


async def test_a_clean_up_goes_on_after_a_step_that_fails(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As all do for want of descriptors; what is still there then goes when there are some."""
    lacking = OSError(24, "Too many open files")
    world.create_error, world.delete_error, world.tells_pid = Unknown("no"), lacking, False
    world.made_first, world.agrees = True, False
    real, failed = Bundle.delete, []

    def delete(self: Bundle) -> None:
        if len(failed) < 3:
            failed.append(self.id)
            raise lacking
        real(self)

    def fails(_: Path) -> list[object]:
        raise lacking

    monkeypatch.setattr(Bundle, "delete", delete)
    monkeypatch.setattr(remains, "listening", fails)
    async with managing(world) as shims:
        with pytest.raises(Unknown):
            await shims.create("ns", "one", OPTIONS)
        assert world.deleted == ["one", "one"]
        with anyio.fail_after(10):
            while bundles(world):
                await anyio.sleep(0.01)
        assert failed == ["one"] * 3
        world.create_error = None
        world.processes["one.sock"].send_signal(signal.SIGCONT)
        await shims.create("ns", "one", OPTIONS)


def test_who_listens_is_found_and_not_who_inherited_it(folder: Path) -> None:
    path = folder / "s.sock"
    code = (
        "import os, socket, subprocess, sys\n"
        "listener = socket.socket(socket.AF_UNIX)\n"
        "listener.bind(sys.argv[1]); listener.listen()\n"
        "heir = subprocess.Popen(['/bin/sleep', '100'], pass_fds=[listener.fileno()])\n"
        "print(heir.pid, flush=True); heir.wait()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-S", "-c", code, str(path)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        heir = int(process.stdout.readline())
        with socket.socket(socket.AF_UNIX) as client:  # who has connected does not listen
            client.connect(str(path))
            found = listening(path)
        assert [each.pid for each in found] == [process.pid]
        for each in found:
            each.release()
        os.kill(heir, signal.SIGKILL)
    assert listening(path) == []


async def test_a_process_that_does_not_tell_its_pid_is_what_listens(world: World) -> None:
    world.tells_pid = False
    async with managing(world) as tasks:
        task = await tasks.create("ns", "one", OPTIONS)
        with anyio.fail_after(60):
            assert await task.shim.told_pid() == world.processes["one.sock"].pid


async def test_a_socket_that_others_have_inherited_is_in_nobodys_way(world: World) -> None:
    world.heir = world.folder / "heir"
    world.create_error, world.agrees = ttrpc.ConnectionClosed(), False
    async with managing(world) as tasks:
        with pytest.raises(TaskdError):
            await tasks.create("ns", "one", OPTIONS)
    assert not world.runs("one")
    heir = int(world.heir.read_text())
    try:
        assert not world.socket(Bundle("ns", "one", Path())).exists()
    finally:
        os.kill(heir, signal.SIGKILL)
