"""`taskd.client`: containers, on taskd and on each containerd."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from pathlib import Path

import anyio
import pytest
from harness.daemons import Daemon
from harness.servers import Server

from taskd.client import Client, Limits, connect
from taskd.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound, Unavailable

SLEEP = ["/bin/sleep", "1000"]


def sh(script: str) -> list[str]:
    return ["/bin/sh", "-c", script]


async def test_a_container_from_its_begin_to_its_end(client: Client, rootfs: Path) -> None:
    async with client.run(rootfs, sh("echo out; echo err >&2; exit 3"), id="one") as container:
        assert container.id == "one"
        assert container.pid > 0
        assert await container.stdout.text() == "out\n"
        assert await container.stderr.read() == b"err\n"
        exit_ = await container.wait()
        assert (exit_.code, exit_.signal) == (3, None)
        assert exit_.at > 0


async def test_all_that_was_written_before_the_exit_is_there(client: Client, rootfs: Path) -> None:
    """More than a FIFO holds, and more than the client takes by itself; the last line, too."""
    script = "dd if=/dev/zero bs=4096 count=1000 2>/dev/null; echo last; seq 1 20000 >&2"
    async with client.run(rootfs, sh(script)) as container:
        assert (await container.wait(30)).code == 0
        out, err = await container.stdout.read(), await container.stderr.text()
    assert out == bytes(4096 * 1000) + b"last\n"
    assert err.splitlines() == [str(number) for number in range(1, 20001)]


async def test_what_nobody_takes_makes_the_process_wait(client: Client, rootfs: Path) -> None:
    async with client.run(rootfs, ["/bin/yes", "x" * 1000]) as container:
        await anyio.sleep(0.5)
        first = container.stdout.take()
        assert first.startswith(b"x")
        assert len(first) < 3 << 20


async def test_lines_of_both_outputs(client: Client, rootfs: Path) -> None:
    script = (
        "echo one; sleep 0.1; printf 'tw\\303'; sleep 0.1; printf '\\266\\n'; echo 3 >&2; printf 4"
    )
    async with client.run(rootfs, sh(script)) as container:
        lines = [line async for line in container.lines()]
    assert sorted(lines) == sorted(["one", "twö", "3", "4"])
    assert lines.index("one") < lines.index("twö")


async def test_input(client: Client, rootfs: Path) -> None:
    data = os.urandom(300_000)
    async with client.run(rootfs, ["/bin/cat"], stdin=True) as container:
        done = await container.communicate(data)
        assert done.code == 0
        assert done.stdout == data
    async with client.run(rootfs, sh("read a; echo got $a; read b; echo $b"), stdin=True) as one:
        await one.stdin.write("hello\n")
        lines = one.stdout.lines()
        assert await anext(lines) == "got hello"
        await one.stdin.write(b"more")
        await one.stdin.aclose()
        assert [line async for line in lines] == ["more"]
        with pytest.raises(BrokenPipeError):
            await one.stdin.write(b"x")


async def test_execs(client: Client, rootfs: Path) -> None:
    async with client.run(rootfs, SLEEP, env={"A": "1"}) as container:
        async with container.exec(sh("echo $A $B; pwd; exit 4"), env={"B": "2"}, cwd="/tmp") as one:
            assert await one.stdout.text() == "1 2\n/tmp\n"
            assert (await one.wait()).code == 4
        done = await (await container.exec(["/bin/cat"], stdin=True, id="cat")).communicate("x")
        assert (done.code, done.text) == (0, "x")
        with pytest.raises(AlreadyExists, match="cat"):
            await container.exec(SLEEP, id="cat")
        async with container.exec(SLEEP) as long:
            assert set(await container.pids()) >= {container.pid, long.pid}
        assert set(await container.pids()) == {container.pid}
        with pytest.raises(Exception, match="no/such"):
            await container.exec(["/no/such"])


async def test_a_terminal(client: Client, rootfs: Path) -> None:
    script = "stty size; read x; stty size; echo $TERM >&2"
    async with client.create(rootfs, sh(script), tty=True, stdin=True) as container:
        await container.start()
        await container.resize(80, 25)
        lines = container.lines()
        await anext(lines)
        await container.resize(120, 40)
        await container.stdin.write("\n")
        assert [line async for line in lines][-2:] == ["40 120", "xterm"]
        with pytest.raises(FailedPrecondition, match="terminal"):
            _ = container.stderr
        assert (await container.wait()).code == 0


async def test_stop_kill_and_time(client: Client, rootfs: Path) -> None:
    async with client.run(rootfs, sh("trap 'exit 7' TERM; while :; do sleep 0.05; done")) as one:
        with pytest.raises(TimeoutError):
            await one.wait(0.05)
        with anyio.fail_after(10):
            assert (await one.stop()).code == 7
        with pytest.raises(NotFound, match=one.id):
            await one.kill()
    async with client.run(rootfs, sh("trap '' TERM; while :; do sleep 0.05; done")) as two:
        await anyio.sleep(0.1)
        exit_ = await two.stop(grace=0.2)
        assert (exit_.code, exit_.signal) == (137, signal.SIGKILL)


async def test_pause_update_and_statistics(client: Client, rootfs: Path) -> None:
    limits = Limits(memory="64m", pids=50, cpus=0.5)
    async with client.run(rootfs, SLEEP, limits=limits) as container:
        before = await container.stats()
        assert before.id == container.id
        assert (before.memory_limit, before.pids_limit) == (64 << 20, 50)
        assert 0 < before.pids < 50
        assert before.cpu > 0
        await container.update(Limits(memory="32m", memory_swap="32m"))
        assert (await container.stats()).memory_limit == 32 << 20
        await container.pause()
        assert (await container.state()).status.name == "PAUSED"
        await container.resume()
        assert (await container.state()).status.name == "RUNNING"
        await container.pause()  # one that is frozen goes as well


async def test_what_the_options_say_is_so(client: Client, rootfs: Path, folder: Path) -> None:
    folder.chmod(0o755)
    (folder / "file").write_text("in\n")
    (rootfs / "etc/passwd").write_text("joe:x:1000:1001:::\n")
    (rootfs / "etc/group").write_text("wheel:x:27:joe\n")
    # Of one that is there a tmpfs has the mode, says runc.
    (rootfs / "w").mkdir(exist_ok=True)
    (rootfs / "w").chmod(0o1777)
    script = "id -u; id -g; id -G; pwd; cat /given/file; echo x > /w/f && echo rw; "
    script += "echo y > /bin/f || echo ro; env | grep ^X=; cat /proc/net/dev | wc -l"
    async with client.run(
        rootfs,
        sh(script),
        user="joe",
        cwd="/bin",
        env=["X=1"],
        mounts=[f"{folder}:/given:ro", "tmpfs:/w"],
        read_only=True,
        labels={"a": "b"},
        amend={"annotations": {"c": "d"}},
    ) as container:
        done = await container.communicate()
        assert container.spec["annotations"] == {"c": "d"}
        assert [each.id for each in await client.list("labels.a==b")] == [container.id]
        assert not await client.list("labels.a==c")
    assert done.text.splitlines() == [
        *("1000", "1001", "1001 27", "/bin", "in", "rw", "ro", "X=1", "3")
    ], done.stderr


async def test_a_specification_can_be_another(client: Client, rootfs: Path) -> None:
    def change(document: dict[str, object]) -> dict[str, object]:
        return document | {"hostname": "mine"}

    async with client.run(rootfs, sh("cat /proc/sys/kernel/hostname"), amend=change) as one:
        assert await one.stdout.text() == "mine\n"


async def test_errors_name_what_they_are_about(client: Client, rootfs: Path) -> None:
    with pytest.raises(NotFound, match='container "nobody"'):
        await client.get("nobody")
    with pytest.raises(NotFound, match="/no/such"):
        await client.run("/no/such", SLEEP)
    with pytest.raises(NotFound, match='image "nosuch".*docker.io/library/nosuch:latest'):
        await client.run("nosuch", SLEEP)
    with pytest.raises(InvalidArgument, match="no command"):
        await client.run(rootfs)
    with pytest.raises(InvalidArgument, match="relative"):
        await client.run(rootfs, SLEEP, mounts=["relative:/x"])
    async with client.create(rootfs, SLEEP, id="one") as container:
        with pytest.raises(AlreadyExists, match="one"):
            await client.create(rootfs, SLEEP, id="one")
        with pytest.raises(FailedPrecondition, match="stdin=True"):
            _ = container.stdin
        with pytest.raises(FailedPrecondition, match='output="log"'):
            container.logs()


async def test_what_fails_on_the_way_leaves_nothing(client: Client, rootfs: Path) -> None:
    with pytest.raises(Exception, match="no/such"):
        await client.run(rootfs, ["/no/such"])
    with pytest.raises(Exception, match="no.such.v7"):
        await client.run(rootfs, SLEEP, runtime="no.such.v7")


async def test_cancellation_leaves_nothing(client: Client, rootfs: Path) -> None:
    """At many moments of a container's life, and again while it is cleared up after."""
    for step in range(6):
        async with anyio.create_task_group() as group:

            async def live() -> None:
                async with client.run(rootfs, SLEEP) as container:
                    await container.wait()

            group.start_soon(live)
            await anyio.sleep(0.04 * step)
            group.cancel_scope.cancel()

    async def impatient() -> None:
        async with client.run(rootfs, SLEEP) as container:
            await container.wait()

    task = asyncio.create_task(impatient())
    await anyio.sleep(0.3)
    for _ in range(3):
        task.cancel()
        await anyio.sleep(0.01)
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_one_stays_and_another_client_takes_it_over(
    client: Client, served: Daemon, namespace: str, rootfs: Path
) -> None:
    script = sh("while read x; do echo got $x; done")
    async with connect(served.address, namespace) as first:
        made = await first.run(rootfs, script, id="stays", stdin=True)
        await made.stdin.write("1\n")
        lines = made.lines()
        assert await anext(lines) == "got 1"
    found = await client.get("stays")
    assert found.pid == made.pid
    with pytest.raises(FailedPrecondition, match="attach"):
        _ = found.stdout
    await found.attach()
    await found.stdin.write("2\n")
    assert await anext(found.lines()) == "got 2"
    assert [(one.id, one.task and one.task.status.name) for one in await client.list()] == [
        ("stays", "RUNNING")
    ]
    with pytest.raises(Exception, match="stays"):
        await found.delete()
    await found.delete(force=True)


async def test_ten_at_once(client: Client, rootfs: Path) -> None:
    async def one(number: int) -> None:
        async with client.run(rootfs, sh(f"echo {number}; exit {number}")) as container:
            done = await container.communicate()
            assert (done.code, done.text) == (number, f"{number}\n")

    async with anyio.create_task_group() as group:
        for number in range(10):
            group.start_soon(one, number)


async def test_output_that_goes_elsewhere(client: Client, rootfs: Path, tmp_path: Path) -> None:
    async with client.run(rootfs, sh("echo a; echo b >&2"), output=tmp_path / "out") as one:
        await one.wait()
        with anyio.fail_after(20):  # containerd's shim may not have written it yet
            while sorted((tmp_path / "out").read_text().split()) != ["a", "b"]:
                await anyio.sleep(0.05)
    async with client.run(rootfs, sh("echo a; exit 5"), output="none") as two:
        assert (await two.wait()).code == 5


async def test_output_that_is_kept(
    client: Client, served: Daemon, namespace: str, rootfs: Path
) -> None:
    script = "echo one; echo two >&2; sleep 0.4; printf three; exit 2"
    async with connect(served.address, namespace) as first:
        made = await first.run(rootfs, sh(script), id="kept", output="log")
        file = Path(made.labels["io.taskd.client/log"])
    found = await client.get("kept")
    with anyio.fail_after(20):
        followed = [(entry.stream, entry.text) async for entry in found.logs(follow=True)]
    assert sorted(followed[:2]) == [("stderr", "two\n"), ("stdout", "one\n")]
    assert followed[2:] == [("stdout", "three")]
    assert (await found.wait()).code == 2
    assert [line async for line in found.logs(tail=1).lines()] == ["three"]
    documents = [json.loads(line) for line in file.read_text().splitlines()]
    assert all(document.keys() == {"log", "stream", "time"} for document in documents)
    assert await found.delete_task() == 2
    assert "one\n" in await (await client.get("kept")).logs().text()  # without its task
    await found.delete()
    assert not file.parent.exists()


async def test_no_daemon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Unavailable, match=f"no daemon at {tmp_path}/nobody"):
        async with connect(tmp_path / "nobody"):
            pass
    monkeypatch.setenv("CONTAINERD_ADDRESS", f"unix://{tmp_path}/there")
    assert connect().address == tmp_path / "there"
    monkeypatch.setenv("TASKD_ADDRESS", f"{tmp_path}/here")
    assert connect().address == tmp_path / "here"
    with pytest.raises(InvalidArgument, match="tcp://"):
        connect("tcp://127.0.0.1:1")


async def test_which_daemon_it_is(client: Client, server: Server) -> None:
    assert await client.is_taskd() is server.is_taskd
    assert (await client.version()).version
