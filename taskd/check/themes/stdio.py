"""Standard streams: FIFOs whose client comes and goes, files, loggers, terminals.

Source: containerd's ``pkg/process/io.go``.
"""

from __future__ import annotations

import asyncio
import shlex

import anyio

from taskd.check import differences
from taskd.check.case import Case
from taskd.check.programs import CAT, ECHO, LEAVE, SIZE, TERMINAL, ZEROS
from taskd.check.registry import Theme, running
from taskd.check.shim import until
from taskd.proto.containerd.v1.types import Status

theme = Theme("stdio")

_MIB = 1 << 20


@theme.check("all output is there after the end, and its end after Delete")
async def _(case: Case) -> None:
    out, err = case.output("out"), case.output("err")
    task = await case.running(ECHO("a", "b"), stdout=str(out.path), stderr=str(err.path))
    await task.wait()
    await task.delete()
    for stream, expected in ((out, b"a\n"), (err, b"b\n")):
        case.true(await stream.end(10), f"reading {stream.path.name} after Delete", "an end", "no")
        case.equal(f"what came on {stream.path.name}", expected, stream.data)


@theme.check("1 MiB of output comes whole")
async def _(case: Case) -> None:
    out = case.output()
    task = await case.running(ZEROS(_MIB), stdout=str(out.path))
    case.equal("Wait", 0, await task.wait())
    await task.delete()
    case.true(await out.end(10), "reading after Delete", "an end", "none")
    case.equal("bytes of output", _MIB, len(out.data))


@theme.check("standard input arrives, and ends with CloseIO", about="CloseIO")
async def _(case: Case) -> None:
    out, source = case.output(), case.input()
    task = await case.running(CAT(5), stdin=str(source.path), stdout=str(out.path))
    source.write(b"hello\n")
    case.true(await out.until(b"hello\n", 10), "writing to stdin", "it back", str(out.data))
    await source.aclose()
    await anyio.sleep(0.3)
    state = await task.state()
    case.equal("State when the client has gone", Status.RUNNING, state.status)
    await task.call("CloseIO", stdin=True)
    case.equal("Wait after CloseIO", 5, await task.wait())


@theme.check("the client may go, and come back: nothing it missed is lost")
async def _(case: Case) -> None:
    out, source = case.output(), case.input()
    task = await case.running(CAT, stdin=str(source.path), stdout=str(out.path))
    source.write(b"one\n")
    case.true(await out.until(b"one\n", 10), "its output", "one", str(out.data))
    await out.aclose()
    source.write(b"two\n")
    await anyio.sleep(0.3)
    again = case.output()
    source.write(b"three\n")
    came = await again.until(b"two\nthree\n", 10)
    case.true(came, "its output for a client that came back", "two, three", str(again.data))
    await task.end()


@theme.check("a client that comes late gets all")
async def _(case: Case) -> None:
    out, source = case.output(), case.input()
    await out.aclose()
    source.write(b"early\n")
    # Containerd's shims wait for it in Create.
    running = asyncio.ensure_future(case.running(CAT, stdin=str(source.path), stdout=str(out.path)))
    await anyio.sleep(0.5)
    late = case.output()
    task = await running
    case.true(await late.until(b"early\n", 10), "its output", "early", str(late.data))
    await task.end()


@theme.check("without streams it reads an end, and writes to nowhere")
async def _(case: Case) -> None:
    for id, command, status in (("one", CAT(9), 9), ("two", ECHO("a", "b", 8), 8)):  # noqa: A001
        task = await case.running(command, id=id)
        case.equal(f"Wait for {command}", status, await task.wait())


@theme.check("standard input that is no FIFO: /dev/null, and a file", about="Exec", scene=running)
async def _(case: Case) -> None:
    task, file = case.container, case.folder / "io" / "input"
    file.write_bytes(bytes(_MIB))
    for name, path, size in (("two", "/dev/null", 0), ("three", str(file), _MIB)):
        out = case.output(name)
        await task.exec(name, CAT, stdin=path, stdout=str(out.path))
        await task.start(name)
        case.equal("Wait", 0, await task.wait(name))
        await task.delete(name)
        case.true(await out.end(10), "reading after Delete", "an end", "none")
        case.equal(f"bytes that came from {path}", size, len(out.data))


@theme.check("output to a file (file://), which is appended to")
async def _(case: Case) -> None:
    file = case.folder / "io" / "log"
    file.write_text("before\n")
    uri = f"file://{file}"
    task = await case.running(ECHO("a", "b", 3), stdout=uri, stderr=uri)
    case.equal("Wait", 3, await task.wait())
    await task.delete()
    lines = sorted(file.read_text().split())
    if lines in (["a", "before"], ["b", "before"]) and "error copying std" in case.whole_log():
        case.known(differences.ONE_FILE)
    else:
        case.equal("the file's lines", ["a", "b", "before"], lines)


_LOGGER = """#!/bin/sh
# It is told to end as soon as the container has; what it is given it reads to the end.
trap "" TERM
exec 5>&-
cat <&3 >{0}/logged-out &
cat <&4 >{0}/logged-err &
wait
echo "$CONTAINER_ID $CONTAINER_NAMESPACE $*" >{0}/logged-about
"""


@theme.check("output to a program (binary://), which is told whose it is")
async def _(case: Case) -> None:
    folder = case.folder / "io"
    logger = folder / "logger"
    logger.write_text(_LOGGER.format(shlex.quote(str(folder))))
    logger.chmod(0o755)
    uri = f"binary://{logger}?key=value"
    task = await case.running(ECHO("a", "b", 3), stdout=uri, stderr=uri)
    case.equal("Wait", 3, await task.wait())
    await task.delete()
    about = folder / "logged-about"
    case.true(await until(about.exists), "Delete", "the logger's end", "none")
    told = about.read_text().strip()
    case.equal("what the logger is told", f"{task.id} {case.namespace} key value", told)
    logged = (folder / "logged-out").read_bytes(), (folder / "logged-err").read_bytes()
    case.equal("what the logger got", (b"a\n", b"b\n"), logged)


@theme.check("a scheme that is none is refused")
async def _(case: Case) -> None:
    task = await case.task()
    error = await task.fails("Create", bundle=str(task.bundle.path), stdout="nothing://there")
    case.true(str(error), "Create", "words", "none")


@theme.check("a terminal: input, output, one stream for both")
async def _(case: Case) -> None:
    out, source = case.output(), case.input()
    task = await case.running(TERMINAL, terminal=True, stdin=str(source.path), stdout=str(out.path))
    case.true(await out.until(b"terminal\r\n", 10), "its output", "terminal", str(out.data))
    case.true((await task.state()).terminal, "State", "terminal=True", "False")
    source.write(b"line\n")
    case.true(await out.until(b"got line\r\n", 10), "its output", "got line", str(out.data))
    case.equal("Wait", 4, await task.wait())
    await task.delete()
    case.true(await out.end(10), "reading after Delete", "an end", "none")


@theme.check("ResizePty is seen by the process in the terminal", about="ResizePty")
async def _(case: Case) -> None:
    out, source = case.output(), case.input()
    task = await case.running(SIZE, terminal=True, stdin=str(source.path), stdout=str(out.path))
    for width, height in ((100, 30), (7, 5)):
        await task.call("ResizePty", width=width, height=height)
        source.write(b"\n")
        expected = f"size {height} {width}".encode()
        case.true(await out.until(expected, 10), "stty size", str(expected), str(out.data[-200:]))
    await task.end()


@theme.check("an exec with a terminal, and its size", about="Exec", scene=running)
async def _(case: Case) -> None:
    task, out, source = case.container, case.output(), case.input()
    await task.exec("two", SIZE, terminal=True, stdin=str(source.path), stdout=str(out.path))
    await task.start("two")
    await task.call("ResizePty", exec_id="two", width=80, height=24)
    source.write(b"\n")
    case.true(await out.until(b"size 24 80", 10), "stty size", "24 80", str(out.data))
    await task.kill(exec_id="two")
    await task.wait("two")
    await task.delete("two")
    case.true(await out.end(10), "reading after Delete", "an end", "none")


@theme.check(
    "with a terminal the output ends with the process, before Delete", about="Exec", scene=running
)
async def _(case: Case) -> None:
    task, out, source = case.container, case.output(), case.input()
    # Clients name a standard error that they never make.
    await task.exec(
        "two",
        LEAVE("hello"),
        terminal=True,
        stdin=str(source.path),
        stdout=str(out.path),
        stderr=f"{out.path}-none",
    )
    await task.start("two")
    case.equal("Wait", 0, await task.wait("two"))
    case.true(await out.end(10), "reading after Wait", "an end", "none")
    case.equal("its output", b"hello\r\n", out.data)
    await task.delete("two")


@theme.check("an exec's input and output", about="Exec", scene=running)
async def _(case: Case) -> None:
    task, out, source = case.container, case.output(), case.input()
    await task.exec("two", CAT(6), stdin=str(source.path), stdout=str(out.path))
    await task.start("two")
    source.write(b"hello\n")
    case.true(await out.until(b"hello\n", 10), "writing to stdin", "it back", str(out.data))
    await source.aclose()
    await task.call("CloseIO", exec_id="two", stdin=True)
    case.equal("Wait", 6, await task.wait("two"))
    await task.delete("two")
    case.true(await out.end(10), "reading after Delete", "an end", "none")


@theme.check(
    "what an ended exec has left in the background does not hold up Delete",
    about="Exec",
    scene=running,
)
async def _(case: Case) -> None:
    task, out = case.container, case.output()
    await task.exec("two", LEAVE("started"), stdout=str(out.path))
    await task.start("two")
    case.equal("Wait", 0, await task.wait("two"))
    case.true(await out.until(b"started\n", 10), "its output", "started", str(out.data))
    with anyio.move_on_after(12) as scope:
        await task.delete("two")
    case.true(not scope.cancelled_caught, "Delete", "an answer within 12 s", "none")
