"""When a container is ready: conditions for ``taskd_container(…, ready=…)``."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from pathlib import Path

import anyio

from taskd.client import copying
from taskd.testing.contained import Condition, Contained

__all__ = ["event", "exec", "file", "http", "log", "port"]

TRY_SECONDS = 2.0
_LISTEN = "0A"


def log(pattern: str) -> Condition:
    """It has written something that the regular expression `pattern` is found in."""
    compiled = re.compile(pattern, re.MULTILINE)

    async def ready(container: Contained) -> bool:
        return compiled.search(container.logs()) is not None

    return Condition(f"a line like {pattern!r}", ready, of_output=True)


def port(number: int, host: str = "127.0.0.1") -> Condition:
    """Somebody listens on the TCP port; on the host's network it can be connected to."""

    async def ready(container: Contained) -> bool:
        if not _on_host(container):
            return _listening(container.container.pid, number)
        try:
            with anyio.fail_after(TRY_SECONDS):
                async with await anyio.connect_tcp(host, number):
                    return True
        except (OSError, TimeoutError):
            return False

    return Condition(f"port {number}", ready)


def http(
    number: int,
    path: str = "/",
    *,
    status: Collection[int] = range(200, 400),
    host: str = "127.0.0.1",
) -> Condition:
    """A GET of `path` on the port is answered with such a status; on the host's network."""

    async def ready(container: Contained) -> bool:
        request = f"GET {path} HTTP/1.0\r\nHost: {host}:{number}\r\n\r\n".encode()
        try:
            with anyio.fail_after(TRY_SECONDS):
                async with await anyio.connect_tcp(host, number) as stream:
                    await stream.send(request)
                    answer = await stream.receive()
            return int(answer.split(None, 2)[1]) in status
        except (OSError, TimeoutError, anyio.EndOfStream, anyio.BrokenResourceError):
            return False
        except (ValueError, IndexError):
            return False  # it speaks something else

    return Condition(f"http port {number}, {path}", ready)


def exec(args: Sequence[str]) -> Condition:  # noqa: A001
    """The command, executed in it, ends with 0."""

    async def ready(container: Contained) -> bool:
        async with container.container.exec(args, output=False) as process:
            return (await process.wait()).code == 0

    return Condition(f"exec {' '.join(args)}", ready)


def file(path: str) -> Condition:
    """There is something at `path` in it."""

    async def ready(container: Contained) -> bool:
        return copying.exists(Path(f"/proc/{container.container.pid}/root"), path)

    return Condition(f"file {path}", ready)


def event(topic: str) -> Condition:
    """It has been told: ``/tasks/oom``, for one."""

    async def ready(container: Contained) -> bool:
        return any(each.topic == topic for each in container.events.of(container.container.id))

    return Condition(f"event {topic}", ready)


def _on_host(container: Contained) -> bool:
    namespaces = container.container.spec.get("linux", {}).get("namespaces", ())
    return all(each["type"] != "network" for each in namespaces)


def _listening(pid: int, number: int) -> bool:
    for name in ("tcp", "tcp6"):
        try:
            rows = Path(f"/proc/{pid}/net/{name}").read_text().splitlines()[1:]
        except OSError:
            continue
        for row in rows:
            _, local, _, state, *_ = row.split()
            if state == _LISTEN and int(local.rpartition(":")[2], 16) == number:
                return True
    return False
