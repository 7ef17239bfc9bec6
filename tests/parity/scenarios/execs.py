"""Execs: ids, programs, exit statuses, terminals, and what becomes of them with their task."""

from __future__ import annotations

import os
from typing import Any

import anyio.to_thread
from harness.containers import PROCESS_TYPE, process
from parity.recorder import PATIENCE_SECONDS, Recorder
from parity.scenarios import scenario

from taskd.proto.google import protobuf


async def exec_(r: Recorder, exec_id: str, command: str, **fields: Any) -> None:
    await r.tasks.exec(
        container_id="one",
        exec_id=exec_id,
        spec=process(["/bin/sh", "-c", command]),
        **fields,
    )


async def start(r: Recorder, exec_id: str) -> None:
    await r.tasks.start(container_id="one", exec_id=exec_id)


async def end(r: Recorder, exec_id: str) -> None:
    await r.tasks.wait(container_id="one", exec_id=exec_id)
    await r.tasks.delete_process(container_id="one", exec_id=exec_id)


@scenario()
async def lifecycle(r: Recorder) -> None:
    await r.running()
    await exec_(r, "two", "exit 7")
    await start(r, "two")
    await r.tasks.wait(container_id="one", exec_id="two")
    await r.tasks.get(container_id="one", exec_id="two")
    await r.tasks.delete_process(container_id="one", exec_id="two")
    await r.tasks.get(container_id="one", exec_id="two")
    await r.end()


@scenario()
async def statuses(r: Recorder) -> None:
    await r.running()
    for number, command in enumerate(
        ("exit 0", "exit 1", "exit 255", "exit 256", "kill -TERM $$", "kill -KILL $$", "/no/such")
    ):
        await exec_(r, f"e{number}", command)
        await start(r, f"e{number}")
        await end(r, f"e{number}")


@scenario()
async def ids(r: Recorder) -> None:
    await r.running()
    for name in ("", "a/b", "a b", "..", "x" * 77, "-", "one"):
        await exec_(r, name, "true")
    await exec_(r, "two", "true")
    await exec_(r, "two", "true")
    await r.tasks.list()


@scenario()
async def id_again_after_delete(r: Recorder) -> None:
    await r.running()
    for _ in range(2):
        await exec_(r, "two", "true")
        await start(r, "two")
        await end(r, "two")


@scenario()
async def at_once(r: Recorder) -> None:
    await r.running()
    await r.all(*(exec_(r, "two", "true") for _ in range(5)))


@scenario()
async def specs(r: Recorder) -> None:
    await r.running()
    for number, spec in enumerate(
        (
            protobuf.Any(),
            protobuf.Any(type_url=PROCESS_TYPE),
            protobuf.Any(type_url=PROCESS_TYPE, value=b"{}"),
            protobuf.Any(type_url=PROCESS_TYPE, value=b"{"),
            protobuf.Any(type_url="example.Process", value=process(["/bin/true"]).value),
        )
    ):
        await r.tasks.exec(container_id="one", exec_id=f"e{number}", spec=spec)
        await r.tasks.get(container_id="one", exec_id=f"e{number}")


@scenario()
async def missing_program(r: Recorder) -> None:
    await r.running()
    await r.tasks.exec(container_id="one", exec_id="two", spec=process(["/no/such"]))
    await start(r, "two")
    await r.tasks.get(container_id="one", exec_id="two")
    await r.tasks.delete_process(container_id="one", exec_id="two")


@scenario()
async def missing_cwd(r: Recorder) -> None:
    """runc makes that of a container's init, and not that of an exec."""
    await r.running()
    spec = process(["/bin/true"], cwd="/made/by/nobody")
    await r.tasks.exec(container_id="one", exec_id="two", spec=spec)
    await start(r, "two")
    await r.tasks.get(container_id="one", exec_id="two")


@scenario()
async def delete_while_it_runs(r: Recorder) -> None:
    await r.running()
    await exec_(r, "two", "sleep 1000")
    await start(r, "two")
    await r.tasks.delete_process(container_id="one", exec_id="two")
    await r.tasks.get(container_id="one", exec_id="two")


@scenario()
async def delete_process_of_init(r: Recorder) -> None:
    await r.running()
    await r.tasks.delete_process(container_id="one")
    await r.tasks.delete_process(container_id="one", exec_id="one")
    await r.tasks.kill(container_id="one", signal=9)
    await r.tasks.wait(container_id="one")
    await r.tasks.delete_process(container_id="one")
    await r.tasks.delete_process(container_id="one", exec_id="one")
    await r.tasks.get(container_id="one")


@scenario()
async def task_ends_first(r: Recorder) -> None:
    """Init takes what else runs in its pid namespace with it."""
    await r.running()
    await exec_(r, "two", "sleep 1000")
    await start(r, "two")
    await r.tasks.kill(container_id="one", signal=9)
    await r.tasks.wait(container_id="one")
    await r.tasks.wait(container_id="one", exec_id="two")
    await r.tasks.get(container_id="one", exec_id="two")
    await r.tasks.delete_process(container_id="one", exec_id="two")
    await r.tasks.delete(container_id="one")


@scenario()
async def task_is_deleted_with_an_exec(r: Recorder) -> None:
    await r.running()
    await exec_(r, "two", "sleep 1000")
    await r.tasks.kill(container_id="one", signal=9)
    await r.tasks.wait(container_id="one")
    await r.tasks.delete(container_id="one")
    await r.tasks.get(container_id="one", exec_id="two")
    await r.tasks.delete_process(container_id="one", exec_id="two")


@scenario()
async def start_twice(r: Recorder) -> None:
    await r.running()
    await exec_(r, "two", "sleep 1000")
    await start(r, "two")
    await start(r, "two")


@scenario()
async def signals(r: Recorder) -> None:
    await r.running()
    await exec_(r, "two", "sleep 1000")
    await start(r, "two")
    for signal in (0, 99, 2**31, 15):
        await r.tasks.kill(container_id="one", exec_id="two", signal=signal)
    await r.tasks.wait(container_id="one", exec_id="two", patience=PATIENCE_SECONDS)
    await r.tasks.kill(container_id="one", exec_id="two", signal=9)
    await end(r, "two")


@scenario()
async def without_a_spec(r: Recorder) -> None:
    """Of which containerd's shim dies, and the task with it."""
    await r.running()
    await r.tasks.exec(container_id="one", exec_id="two")
    await r.tasks.wait(container_id="one", patience=5)
    await r.tasks.list()


@scenario()
async def many(r: Recorder) -> None:
    await r.running()
    names = [f"e{number}" for number in range(8)]
    for name in names:
        await exec_(r, name, "sleep 1000")
        await start(r, name)
    await r.tasks.list_pids(container_id="one")
    for name in names:
        await r.tasks.kill(container_id="one", exec_id=name, signal=9)
        await end(r, name)


@scenario()
async def stdio_to_files(r: Recorder) -> None:
    await r.running()
    out = r.folder / "out"
    out.touch()
    await exec_(r, "two", "echo hello", stdout=f"file://{out}", stderr=f"file://{out}")
    await start(r, "two")
    await end(r, "two")
    r.note(out.read_text())


@scenario()
async def stdio_that_is_not_there(r: Recorder) -> None:
    await r.running()
    await exec_(r, "two", "true", stdout="/proc/no/such/fifo")
    await start(r, "two")
    await r.tasks.get(container_id="one", exec_id="two")


@scenario()
async def stdin_that_is_no_fifo(r: Recorder) -> None:
    await r.running()
    (r.folder / "file").write_bytes(b"x" * 200_000)
    (r.folder / "empty").touch()
    for number, path in enumerate(("/dev/null", r.folder / "file", r.folder / "empty", r.folder)):
        name, out = f"e{number}", r.folder / f"out{number}"
        out.touch()
        streams = {"stdin": str(path), "stdout": str(out), "stderr": str(out)}
        await exec_(r, name, "wc -c", **streams)
        await start(r, name)
        await end(r, name)
        r.note(out.read_text())


@scenario()
async def terminal_whose_client_waits_for_its_end(r: Recorder) -> None:
    """As containerd's Go client does, which names a stderr that it never makes."""
    await r.running()
    for name, command in {
        "plain": "echo hello",
        "child": "sleep 1000 & echo hello",
        "deaf": "trap '' HUP; sleep 1000 & echo hello",
    }.items():
        stdin, stdout = r.folder / f"{name}-in", r.folder / f"{name}-out"
        for path in (stdin, stdout):
            os.mkfifo(path)
        streams = {"stdin": str(stdin), "stdout": str(stdout), "stderr": f"{r.folder}/{name}-err"}
        spec = process(["/bin/sh", "-c", command], terminal=True)
        await r.tasks.exec(container_id="one", exec_id=name, spec=spec, terminal=True, **streams)
        client = os.open(stdout, os.O_RDONLY | os.O_NONBLOCK)
        with os.fdopen(client, "rb") as output:
            await start(r, name)
            await r.tasks.wait(container_id="one", exec_id=name)
            os.set_blocking(client, True)
            with anyio.fail_after(10):
                r.note(str(await anyio.to_thread.run_sync(output.read, abandon_on_cancel=True)))
        await r.tasks.delete_process(container_id="one", exec_id=name)


@scenario()
async def terminal_without_a_client(r: Recorder) -> None:
    await r.running()
    spec = process(["/bin/sleep", "1000"], terminal=True)
    await r.tasks.exec(container_id="one", exec_id="two", spec=spec, terminal=True)
    await start(r, "two")
    for width, height in ((80, 24), (0, 0), (1, 1), (65535, 65535), (2**32 - 1, 1)):
        await r.tasks.resize_pty(container_id="one", exec_id="two", width=width, height=height)
    await r.tasks.get(container_id="one", exec_id="two")
    await r.tasks.kill(container_id="one", exec_id="two", signal=9)
    await r.tasks.wait(container_id="one", exec_id="two", patience=PATIENCE_SECONDS)
    await r.tasks.resize_pty(container_id="one", exec_id="two", width=1, height=1)


@scenario()
async def close_stdin_twice(r: Recorder) -> None:
    await r.running()
    await exec_(r, "two", "sleep 1000")
    await start(r, "two")
    for _ in range(2):
        await r.tasks.close_io(container_id="one", exec_id="two", stdin=True)
    await r.tasks.close_io(container_id="one", exec_id="two")
    await r.tasks.close_io(container_id="one", exec_id="none", stdin=False)
