"""Standard streams: FIFOs, files, loggers; and terminals."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import stat
import subprocess
from pathlib import Path

import pytest
from harness.leaks import descriptors

from taskd.errors import Unknown
from taskd.shim import Container, Process, Stdio
from taskd.shim.console import Console, ConsoleSocket, open_terminal
from taskd.shim.reaper import Reaper
from taskd.shim.stdio import Pipes, Streams


async def opened(reaper: Reaper, *, terminal: bool = False, **paths: str) -> Streams:
    return await Streams.open(Stdio(**paths, terminal=terminal), "one", "testing", reaper)


def fifo(path: Path) -> str:
    os.mkfifo(path)
    return str(path)


def read(descriptor: int) -> bytes:
    """What can be read without waiting; b"" at the end, too."""
    os.set_blocking(descriptor, False)
    try:
        return os.read(descriptor, 65536)
    except BlockingIOError:
        return b"(nothing yet)"


async def until(descriptor: int, text: bytes) -> bytes:
    """Read until `text` has come."""
    found = b""
    async with asyncio.timeout(10):
        while text not in found:
            found += read(descriptor).removesuffix(b"(nothing yet)")
            await asyncio.sleep(0.01)
    return found


async def test_nothing(reaper: Reaper) -> None:
    before = descriptors(os.getpid())
    streams = await opened(reaper)
    for descriptor in streams.descriptors:
        assert os.fstat(descriptor).st_rdev == Path("/dev/null").stat().st_rdev
    streams.handed()
    await streams.aclose()
    assert descriptors(os.getpid()) == before


async def test_the_process_has_the_clients_fifo_itself(reaper: Reaper, tmp_path: Path) -> None:
    paths = {name: fifo(tmp_path / name) for name in ("stdin", "stdout", "stderr")}
    before = descriptors(os.getpid())
    streams = await opened(reaper, **paths)  # waits for no client
    for descriptor, path in zip(streams.descriptors, paths.values(), strict=True):
        assert os.path.samestat(os.fstat(descriptor), Path(path).stat())
        assert os.get_blocking(descriptor)
    await streams.aclose()
    assert descriptors(os.getpid()) == before


async def test_clients_come_and_go(reaper: Reaper, tmp_path: Path) -> None:
    streams = await opened(reaper, stdout=fifo(tmp_path / "out"))
    process = os.dup(streams.descriptors[1])
    streams.handed()
    os.write(process, b"one ")  # nobody reads yet, and nobody dies of it
    client = os.open(tmp_path / "out", os.O_RDONLY | os.O_NONBLOCK)
    assert read(client) == b"one "
    os.close(client)
    os.write(process, b"two ")
    client = os.open(tmp_path / "out", os.O_RDONLY | os.O_NONBLOCK)
    os.write(process, b"three")
    assert read(client) == b"two three"
    os.close(process)
    await streams.aclose()
    assert read(client) == b""
    os.close(client)


async def test_standard_input_has_an_end_when_it_is_told(reaper: Reaper, tmp_path: Path) -> None:
    streams = await opened(reaper, stdin=fifo(tmp_path / "in"))
    process = os.dup(streams.descriptors[0])
    streams.handed()
    client = os.open(tmp_path / "in", os.O_WRONLY)
    os.write(client, b"hello")
    os.close(client)
    assert read(process) == b"hello"
    assert read(process) == b"(nothing yet)"  # another client may come
    streams.close_stdin()
    assert read(process) == b""
    streams.close_stdin()  # again
    os.close(process)
    await streams.aclose()


@pytest.fixture(params=[None, Pipes()], ids=["directly", "through pipes"])
def pipes(request: pytest.FixtureRequest) -> Pipes | None:
    found: Pipes | None = request.param
    return found


TEXT = os.urandom(200_000)


@pytest.mark.parametrize(
    ("source", "found"),
    [("/dev/null", b""), ("{}/empty", b""), ("{}/file", TEXT), ("{}/link", TEXT)],
)
async def test_standard_input_that_is_no_fifo(
    reaper: Reaper, tmp_path: Path, pipes: Pipes | None, source: str, found: bytes
) -> None:
    (tmp_path / "empty").touch()
    (tmp_path / "file").write_bytes(TEXT)
    (tmp_path / "link").symlink_to("file")
    (tmp_path / "out").touch()
    before = descriptors(os.getpid())
    stdio = Stdio(source.format(tmp_path), str(tmp_path / "out"))
    streams = await Streams.open(stdio, "one", "testing", reaper, pipes)
    with reaper.starting():
        process = subprocess.Popen(
            ["cat"], stdin=streams.descriptors[0], stdout=streams.descriptors[1]
        )
        end = reaper.end(process.pid)
    process.returncode = 0  # the reaper's
    streams.handed()
    streams.close_stdin()  # the file has an end of its own
    async with asyncio.timeout(10):
        assert (await end).status == 0
    await streams.settle()
    assert (tmp_path / "out").read_bytes() == found
    await streams.aclose()
    assert descriptors(os.getpid()) == before


async def test_every_number_is_closed_once(
    reaper: Reaper, tmp_path: Path, pipes: Pipes | None
) -> None:
    stdio = Stdio(*(fifo(tmp_path / name) for name in ("stdin", "stdout", "stderr")))
    streams = await Streams.open(stdio, "one", "testing", reaper, pipes)
    streams.handed()
    streams.close_stdin()
    await streams.aclose()
    others = [os.dup(0) for _ in range(12)]  # somebody else's now, under the same numbers
    streams.handed()
    streams.close_stdin()
    await streams.settle()
    await streams.drained(0)
    await streams.aclose()
    for other in others:
        os.close(other)


async def test_a_fifo_that_nobody_reads_named_as_a_file(
    reaper: Reaper, tmp_path: Path, pipes: Pipes | None
) -> None:
    uri = f"file://{fifo(tmp_path / 'out')}"
    async with asyncio.timeout(10):
        streams = await Streams.open(Stdio(stdout=uri), "one", "testing", reaper, pipes)
    streams.handed()
    await streams.aclose()


async def test_a_file(reaper: Reaper, tmp_path: Path) -> None:
    path = tmp_path / "a folder/that is/new/log"
    uri = f"file://{path}".replace(" ", "%20")
    for word in (b"one", b"two"):
        streams = await opened(reaper, stdout=uri, stderr=uri)
        for descriptor in streams.descriptors[1:]:
            os.write(descriptor, word)
        await streams.aclose()
    assert path.read_bytes() == b"oneonetwotwo"
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


async def test_a_file_whose_name_is_not_utf8(reaper: Reaper, tmp_path: Path) -> None:
    await (await opened(reaper, stdout=f"file://{tmp_path}/%fe%20log")).aclose()
    assert [os.fsencode(each.name) for each in tmp_path.iterdir()] == [b"\xfe log"]


async def test_an_existing_file_by_its_path(reaper: Reaper, tmp_path: Path) -> None:
    (tmp_path / "log").write_text("before ")
    streams = await opened(reaper, stdout=str(tmp_path / "log"))
    os.write(streams.descriptors[1], b"after")
    await streams.aclose()
    assert (tmp_path / "log").read_text() == "before after"


@pytest.mark.parametrize(
    ("stream", "place", "words"),
    [
        ("stdin", "{}/no/in", "failed to open stdin fifo {0}/no/in: open {0}/no/in: no such file"),
        ("stdout", "{}/no/out", 'opening file "{0}/no/out" failed: open {0}/no/out: no such file'),
        ("stdout", "binary://{}/no/logger", "fork/exec {0}/no/logger: no such file or directory"),
        ("stdout", "pigeon://{}", "unknown STDIO scheme pigeon"),
        ("stdout", "file:///proc/no/log", "open /proc/no/log: no such file or directory"),
        ("stdout", "file://{}", "open {0}: is a directory"),
        ("stdout", "{}", 'opening file "{0}" failed: open {0}: is a directory'),
        (
            "stderr",
            "{}/socket",
            'opening file "{0}/socket" failed: open {0}/socket: no such device',
        ),
        ("stdin", "{}/socket", "open {0}/socket: no such device or address"),
        ("stdin", "{}/\0", "failed to open stdin fifo {0}/\0: open {0}/\0: invalid argument"),
        ("stdout", "{}/\0", 'opening file "{0}/\0" failed: open {0}/\0: invalid argument'),
        ("stdout", "file://{}/%00", "unable to parse stdout uri: file://{0}/%00: invalid argument"),
        ("stdout", "file://{}/a\tb", "file://{0}/a\tb: invalid control character in URL"),
        ("stdout", "file://[", "unable to parse stdout uri: file://[: "),
        ("stdout", "binary://", "failed to start binary process: exec: no command"),
        ("stdout", "binary:///bin/true?%00", "binary:///bin/true?%00: invalid argument"),
    ],
)
async def test_what_cannot_be_opened_is_named(
    reaper: Reaper, tmp_path: Path, stream: str, place: str, words: str
) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
    before = descriptors(os.getpid())
    with pytest.raises(Unknown) as caught:
        await opened(reaper, **{stream: place.format(tmp_path)})
    assert words.format(tmp_path) in str(caught.value)
    assert descriptors(os.getpid()) == before


LOGGER = """#!/bin/sh
echo "$CONTAINER_ID $CONTAINER_NAMESPACE $*" > {0}/called
exec 1> {0}/out 2> {0}/err
echo ready >&5
exec 5>&-
cat <&4 >&2 &
cat <&3
wait
echo end > {0}/end
"""


def logger(folder: Path, text: str = LOGGER) -> str:
    program = folder / "logger"
    program.write_text(text.format(folder))
    program.chmod(0o755)
    return f"binary://{program}"


async def test_a_logger(reaper: Reaper, tmp_path: Path) -> None:
    before = descriptors(os.getpid())
    uri = f"{logger(tmp_path)}?level=high&plain&of=a%20b"
    streams = await opened(reaper, stdout=uri)
    os.write(streams.descriptors[1], b"out\n")
    os.write(streams.descriptors[2], b"err\n")
    await streams.aclose()  # when it has written all it has got
    assert (tmp_path / "called").read_text() == "one testing level high plain of a b\n"
    assert (tmp_path / "out").read_text() == "out\n"
    assert (tmp_path / "err").read_text() == "err\n"
    assert (tmp_path / "end").read_text() == "end\n"
    assert descriptors(os.getpid()) == before


async def test_a_logger_whose_input_a_daemon_keeps_open(reaper: Reaper, tmp_path: Path) -> None:
    """It keeps what the process has open, and lets go of it when it is told to: before the wait."""
    held: list[int] = []

    def keep() -> None:
        while held:
            os.close(held.pop())
        held.extend(os.dup(each) for each in process.kept().values())

    process = Process("", {}, Stdio(stdout=logger(tmp_path)))
    process.streams = await opened(reaper, stdout=process.stdio.stdout)
    process.regard(lambda: None, keep)
    process.opened()
    assert held
    await process.release(0)
    assert not held
    # It was not ended by a signal, which comes after ten seconds.
    assert (tmp_path / "end").read_text() == "end\n"


async def test_a_logger_that_ends_at_once(reaper: Reaper, tmp_path: Path) -> None:
    streams = await opened(reaper, stdout=logger(tmp_path, "#!/bin/sh\nexit 3\n"))
    await streams.aclose()


async def test_a_logger_that_does_not_end(
    reaper: Reaper, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("taskd.shim.logger._LOGGER_SECONDS", 0.2)
    text = "#!/bin/sh\ntrap '' TERM\necho $$ > {}/pid\nexec 5>&-\nwhile :; do sleep 0.05; done\n"
    streams = await opened(reaper, stdout=logger(tmp_path, text))
    async with asyncio.timeout(10):
        await streams.aclose()
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


async def test_a_logger_that_does_not_become_ready(
    reaper: Reaper, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("taskd.shim.logger._READY_SECONDS", 0.5)
    before = descriptors(os.getpid())
    text = "#!/bin/sh\necho $$ > {}/pid\nexec sleep 1000\n"
    with pytest.raises(Unknown, match="/logger does not become ready"):
        await opened(reaper, stdout=logger(tmp_path, text))
    with pytest.raises(ProcessLookupError):
        async with asyncio.timeout(10):
            while True:
                os.kill(int((tmp_path / "pid").read_text()), 0)
                await asyncio.sleep(0.01)
    assert descriptors(os.getpid()) == before


# --- terminals ------------------------------------------------------------------------------


class Terminal:
    """A terminal between a client's FIFOs and a process, and their ends."""

    def __init__(self, streams: Streams, folder: Path) -> None:
        master, self.process = open_terminal()
        self.console = Console(master, streams)
        self.output = os.open(folder / "out", os.O_RDONLY | os.O_NONBLOCK)


@pytest.fixture
async def streams(reaper: Reaper, tmp_path: Path) -> Streams:
    return await opened(
        reaper, stdin=fifo(tmp_path / "in"), stdout=fifo(tmp_path / "out"), terminal=True
    )


async def test_a_terminal(streams: Streams, tmp_path: Path) -> None:
    terminal = Terminal(streams, tmp_path)
    client = os.open(tmp_path / "in", os.O_WRONLY)
    os.write(terminal.process, b"name? ")
    assert await until(terminal.output, b"? ") == b"name? "
    os.write(client, b"me\n")
    assert await until(terminal.output, b"me\r\n")  # its echo
    assert await until(terminal.process, b"\n") == b"me\n"
    terminal.console.resize(132, 43)
    assert os.get_terminal_size(terminal.process) == (132, 43)
    os.close(client)
    client = os.open(tmp_path / "in", os.O_WRONLY)  # another one
    os.write(client, b"\x04")
    assert await until(terminal.process, b"") == b""
    os.close(client)
    os.write(terminal.process, b"bye")
    os.close(terminal.process)
    await terminal.console.drained(5)
    await terminal.console.aclose()
    assert read(terminal.output) == b"bye"
    assert read(terminal.output) == b""
    os.close(terminal.output)


async def test_a_terminals_output_ends_with_its_process(streams: Streams, tmp_path: Path) -> None:
    terminal = Terminal(streams, tmp_path)
    os.write(terminal.process, b"bye")
    async with asyncio.timeout(10):
        await terminal.console.settle()
        assert read(terminal.output) == b"bye"
        while read(terminal.output):  # although somebody still has it
            await asyncio.sleep(0.01)
    os.write(terminal.process, b"too late")
    await terminal.console.aclose()
    await terminal.console.aclose()
    os.close(terminal.process)
    os.close(terminal.output)


async def test_nobody_looks_at_a_terminals_standard_error(reaper: Reaper, tmp_path: Path) -> None:
    paths = {"stdout": fifo(tmp_path / "out"), "stderr": str(tmp_path / "never made")}
    streams = await opened(reaper, terminal=True, **paths)
    terminal = Terminal(streams, tmp_path)
    os.write(terminal.process, b"one output")
    assert await until(terminal.output, b"output") == b"one output"
    await terminal.console.aclose()
    os.close(terminal.process)
    os.close(terminal.output)


async def test_much_output_is_copied_whole(streams: Streams, tmp_path: Path) -> None:
    terminal = Terminal(streams, tmp_path)
    # More than terminal and FIFO hold: it has to wait until the client reads.
    writer = subprocess.Popen(["seq", "50000"], stdout=terminal.process)
    os.close(terminal.process)
    expected = b"".join(b"%d\r\n" % number for number in range(1, 50001))
    assert await until(terminal.output, b"\n50000\r\n") == expected
    writer.returncode = 0  # reaped by the fixture's reaper
    await terminal.console.aclose()
    os.close(terminal.output)


async def test_the_end_of_its_input_hangs_a_terminal_up(streams: Streams, tmp_path: Path) -> None:
    terminal = Terminal(streams, tmp_path)
    os.write(terminal.process, b"its last")
    terminal.console.close_stdin()
    os.set_blocking(terminal.process, False)
    async with asyncio.timeout(5):
        while True:
            try:
                if not os.read(terminal.process, 1):
                    break
            except BlockingIOError:
                await asyncio.sleep(0.01)
    assert read(terminal.output) == b"its last"
    assert read(terminal.output) == b""
    terminal.console.resize(80, 24)  # too late, which is no error
    await terminal.console.aclose()
    os.close(terminal.process)
    os.close(terminal.output)


async def test_a_terminal_that_a_runtime_sends() -> None:
    master, slave = open_terminal()
    async with ConsoleSocket.listening() as listening:
        with socket.socket(socket.AF_UNIX) as runtime:
            runtime.connect(str(listening.path))
            receiving = asyncio.create_task(listening.receive())
            await asyncio.sleep(0.05)
            socket.send_fds(runtime, [b"/dev/pts/7"], [master])
            received = await receiving
        assert os.path.samestat(os.fstat(received), os.fstat(master))
        assert not os.get_inheritable(received)
    assert not listening.path.exists()
    for descriptor in (master, slave, received):
        os.close(descriptor)


# --- spawn ----------------------------------------------------------------------------------


class Spawns(Container):
    pass


def process(folder: Path, **paths: str | bool) -> tuple[Spawns, Process]:
    (folder / "config.json").write_text("{}")
    container = Spawns("one", "testing", folder, Reaper())
    container.init = Process("", {}, Stdio(**paths))  # type: ignore[arg-type]
    return container, container.init


async def test_spawn(reaper: Reaper, tmp_path: Path) -> None:
    container, init = process(tmp_path)
    init.streams = await opened(reaper, stdout=fifo(tmp_path / "out"))
    command = ["/bin/sh", "-c", "echo $A $PWD; cut -d' ' -f1,6 /proc/self/stat; exit 7"]
    with reaper.starting():
        pid = await container.spawn(command, init, env={"A": "b"}, cwd=tmp_path)
        end = reaper.end(pid)
    client = os.open(tmp_path / "out", os.O_RDONLY | os.O_NONBLOCK)
    assert (await end).status == 7
    first, second, _ = read(client).decode().split("\n")
    assert first == f"b {tmp_path}"
    assert second.split()[1] == str(pid)  # a session of its own
    await init.release()
    os.close(client)


async def test_spawn_with_a_terminal(reaper: Reaper, tmp_path: Path) -> None:
    before = descriptors(os.getpid())
    container, init = process(tmp_path, terminal=True)
    init.streams = await opened(reaper, stdout=fifo(tmp_path / "out"))
    with reaper.starting():
        command = ["/bin/sh", "-c", "tty > /dev/tty; test -t 0 && test -t 1 && test -t 2"]
        end = reaper.end(await container.spawn(command, init))
    client = os.open(tmp_path / "out", os.O_RDONLY | os.O_NONBLOCK)
    assert (await end).status == 0
    await init.release()
    assert read(client).startswith(b"/dev/pts/")
    os.close(client)
    assert descriptors(os.getpid()) == before


@pytest.mark.parametrize("terminal", [False, True])
async def test_spawn_of_what_is_not_there(reaper: Reaper, tmp_path: Path, terminal: bool) -> None:
    container, init = process(tmp_path, terminal=terminal)
    init.streams = await opened(reaper)
    before = descriptors(os.getpid())
    with pytest.raises(Unknown, match="^/no/such: no such file or directory$"):
        await container.spawn(["/no/such"], init)
    assert descriptors(os.getpid()) == before
    await init.release()


async def test_what_a_killed_shim_had_spawned_is_killed(reaper: Reaper, tmp_path: Path) -> None:
    container, init = process(tmp_path)
    init.streams = await opened(reaper)
    with reaper.starting():
        pid = await container.spawn(["/bin/sh", "-c", "sleep 1000 & wait"], init)
        end = reaper.end(pid)
    Spawns.clean_up("one", "testing", tmp_path)
    assert (await end).status == 128 + signal.SIGKILL
    with pytest.raises(ProcessLookupError):
        async with asyncio.timeout(10):
            while True:
                os.killpg(pid, 0)
                await asyncio.sleep(0.01)
    Spawns.clean_up("one", "testing", tmp_path)  # nothing of that number is killed any more
    await init.release()
