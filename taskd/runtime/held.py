"""A shim's process, held so that it alone can be killed, whoever has its number by then.

A shim is known by the pid that it tells, or as what listens on its socket; never by the folder in
which it works, where a container's logger is as well, and where anybody may be.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

__all__ = ["HeldProcess", "listening"]

_LISTENS = 0x10000
"""``__SO_ACCEPTCON`` among a socket's flags in ``/proc/net/unix``."""


class HeldProcess:
    """A process by its pidfd. Ended by `release`."""

    def __init__(self, pid: int) -> None:
        """Raises OSError: ProcessLookupError if there is none."""
        self.pid = pid
        self._fd = os.pidfd_open(pid)

    async def kill(self, seconds: float) -> None:
        """SIGKILL, and wait for its end for so long at most. Raises OSError."""
        if self._fd < 0:
            return
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._fd, signal.SIGKILL)
        await self.ended(seconds)

    async def ended(self, seconds: float) -> None:
        """Wait for its end, for so long at most."""
        loop = asyncio.get_running_loop()
        ended = asyncio.Event()
        loop.add_reader(self._fd, ended.set)
        try:
            async with asyncio.timeout(seconds):
                await ended.wait()
        except TimeoutError:
            pass  # in the kernel's hands
        finally:
            loop.remove_reader(self._fd)

    def release(self) -> None:
        """May be called again."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def listening(path: Path) -> list[HeldProcess]:
    """The processes that listen on a socket in the file system: one, as a rule.

    Not those that have inherited it from one of them, as a shim's logger may. Blocks on the disk;
    raises OSError.
    """
    sockets = set(_sockets(os.fsencode(path)))
    if not sockets:
        return []
    held = {}
    for folder in Path("/proc").glob("[1-9]*"):
        pid = int(folder.name)
        if pid == os.getpid() or not _has(folder, sockets):
            continue
        with suppress(ProcessLookupError):
            process = HeldProcess(pid)
            if _has(folder, sockets):
                held[pid] = process
            else:
                process.release()
    heirs = [process for pid, process in held.items() if _parent(pid) in held]
    for process in heirs:
        process.release()
    return [process for process in held.values() if process not in heirs]


def _sockets(path: bytes) -> Iterator[bytes]:
    """What links to descriptors of sockets that listen there say."""
    for line in Path("/proc/net/unix").read_bytes().splitlines()[1:]:
        _, _, _, flags, _, _, inode, *name = line.split(maxsplit=7)
        if name == [path] and int(flags, 16) & _LISTENS:
            yield b"socket:[%s]" % inode


def _has(process: Path, sockets: set[bytes]) -> bool:
    with suppress(OSError):
        for descriptor in (process / "fd").iterdir():
            with suppress(OSError):
                if os.fsencode(descriptor.readlink()) in sockets:
                    return True
    return False


def _parent(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_bytes().rpartition(b") ")[2].split()[1])
    except OSError:
        return 0
