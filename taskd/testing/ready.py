"""When a container is ready: conditions for ``taskd_container(…, ready=…)``."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

import anyio

from taskd.client import copying
from taskd.testing.contained import Contained, Ready

__all__ = ["event", "exec", "file", "http", "log", "port"]

TRY_SECONDS = 2.0
_LISTEN = "0A"


def log(pattern: str) -> Ready:
    """It has written something that the regular expression `pattern` is found in."""
    compiled = re.compile(pattern, re.MULTILINE)

    async def ready(container: Contained) -> bool:
        return compiled.search(container.logs()) is not None

    ready.hears = True  # type: ignore[attr-defined]
    return _named(ready, f"a line like {pattern!r}")


def port(number: int, host: str = "127.0.0.1") -> Ready:
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

    return _named(ready, f"port {number}")


def http(
    number: int,
    path: str = "/",
    *,
    status: Collection[int] = range(200, 400),
    host: str = "127.0.0.1",
) -> Ready:
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

    return _named(ready, f"http port {number}, {path}")


def exec(args: Sequence[str]) -> Ready:  # noqa: A001
    """The command, executed in it, ends with 0."""

    async def ready(container: Contained) -> bool:
        async with container.container.exec(args, output=False) as process:
            return (await process.wait()).code == 0

    return _named(ready, f"exec {' '.join(args)}")


def file(path: str) -> Ready:
    """There is something at `path` in it."""

    async def ready(container: Contained) -> bool:
        return copying.exists(Path(f"/proc/{container.container.pid}/root"), path)

    return _named(ready, f"file {path}")


def event(topic: str) -> Ready:
    """It has been told: ``/tasks/oom``, for one."""

    async def ready(container: Contained) -> bool:
        return any(each.topic == topic for each in container.events.of(container.container.id))

    return _named(ready, f"event {topic}")


def _named(ready: Ready, name: str) -> Ready:
    named: Callable[..., object] = ready
    named.__name__ = name
    return ready


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
