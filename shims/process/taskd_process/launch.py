"""A process that is made ready, and waits before it becomes the program that it is to run.

So there is a pid when the container is created, as there is with an OCI runtime, and nothing of
the program has run before it is started.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import resource
import signal
import stat
import termios
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar, NoReturn

from taskd.errors import Unknown
from taskd.shim.descriptors import Descriptors

__all__ = ["Launch", "program"]

_PR_SET_NO_NEW_PRIVS = 38
_READY = b"\0"
_SOON_SECONDS = 0.1
"""For one that has been released to become its program."""


def program(spec: Mapping[str, Any]) -> str:
    """Path of the program that a process's specification names. Raises `Unknown`."""
    import shutil

    arguments = spec.get("args") or []
    if not arguments:
        raise Unknown("args must not be empty")
    path = environment(spec).get("PATH", os.defpath)
    cwd = spec.get("cwd") or "/"
    name = str(arguments[0])
    found = os.path.join(cwd, name) if "/" in name else shutil.which(name, path=path)  # noqa: PTH118
    if found is None:
        raise Unknown(f'exec: "{name}": executable file not found in $PATH')
    try:
        mode = Path(found).stat().st_mode
    except OSError as exc:
        reason = (exc.strerror or "").lower()
        raise Unknown(f'exec: "{name}": stat {name}: {reason}') from None
    if not os.access(found, os.X_OK) or stat.S_ISDIR(mode):
        raise Unknown(f'exec: "{name}": permission denied')
    return found


def environment(spec: Mapping[str, Any]) -> dict[str, str]:
    pairs = (str(each).partition("=") for each in spec.get("env") or ())
    return {name: value for name, _, value in pairs}


class Launch:
    """A forked process that waits to be released."""

    KEPT: ClassVar = ("gate", "failure")
    """What another shim would need, by name; without it, the process ends with this one."""

    def __init__(self, pid: int, gate: int, failure: int) -> None:
        self.pid = pid
        self._gate = gate
        self._failure = failure

    @classmethod
    async def prepare(
        cls, spec: Mapping[str, Any], descriptors: tuple[int, int, int], *, terminal: bool
    ) -> Launch:
        """Fork it, with `descriptors` as its standard streams, and wait until it is ready.

        With `terminal` they are one, which becomes that of its session. Raises `Unknown` with the
        reason if it cannot be made ready.
        """
        path = program(spec)
        own = Descriptors()
        try:
            gate_read, gate = map(own.keep, os.pipe())
            failure, failure_write = map(own.keep, os.pipe())
            pid = os.fork()
        except OSError:
            own.close()
            raise
        if pid == 0:
            _become(path, spec, descriptors, terminal, gate_read, failure_write)
        own.drop(gate_read, failure_write)
        launch = cls(pid, gate, failure)
        try:
            words = await launch._said()
            if words != _READY:
                raise Unknown(words.decode(errors="replace"))
        except BaseException:
            launch.close()
            raise
        return launch

    @classmethod
    def recovered(cls, pid: int, take: Callable[[str], int]) -> Launch:
        """One of a shim that has died, of what was `kept`, which is nothing once it is released."""
        return cls(pid, *(take(name) for name in cls.KEPT))

    @property
    def kept(self) -> dict[str, int]:
        """What of that is open."""
        ends = dict(zip(self.KEPT, (self._gate, self._failure), strict=True))
        return {name: each for name, each in ends.items() if each >= 0}

    async def was_released(self) -> bool:
        """Whether a shim that has died has let it go, and it is its program.

        Raises `Unknown` with the reason if it could not be.
        """
        import asyncio

        if self._failure < 0:
            return True
        try:
            async with asyncio.timeout(_SOON_SECONDS):
                words = await self._said()
        except TimeoutError:
            return False
        if words:
            raise Unknown(words.decode(errors="replace"))
        return True

    async def release(self) -> None:
        """Let it become its program. Raises `Unknown` with the reason if it cannot.

        If the caller is cancelled, it is killed.
        """
        if self._gate < 0:
            raise Unknown("the process that waited for it has ended")
        handle = os.pidfd_open(self.pid)
        try:
            os.write(self._gate, b"x")
            words = await self._said()
        except BaseException:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(handle, signal.SIGKILL)
            raise
        finally:
            os.close(handle)
            self.close()
        if words:
            raise Unknown(words.decode(errors="replace"))

    async def _said(self) -> bytes:
        """What it says: that it is ready, what went wrong; nothing when it is the program."""
        import asyncio

        loop = asyncio.get_running_loop()
        done = asyncio.Event()
        loop.add_reader(self._failure, done.set)
        try:
            await done.wait()
        finally:
            loop.remove_reader(self._failure)
        return os.read(self._failure, 4096)

    def close(self) -> None:
        """Give it up: if it still waits, it ends."""
        for descriptor in (self._gate, self._failure):
            if descriptor >= 0:
                os.close(descriptor)
        self._gate = self._failure = -1


def _become(
    path: str,
    spec: Mapping[str, Any],
    descriptors: tuple[int, int, int],
    terminal: bool,
    gate: int,
    failure: int,
) -> NoReturn:
    """Get ready, wait, and be the program. This is in the forked process."""
    from taskd import inherited

    doing = "making a session"
    try:
        os.setsid()
        inherited.restore()
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        doing = "taking the standard streams"
        for number, descriptor in enumerate(descriptors):
            os.dup2(descriptor, number)
        _close_others(gate, failure)
        if terminal:
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)
        doing = "setting limits"
        _limit(spec)
        doing = "entering the working folder"
        os.chdir(spec.get("cwd") or "/")
        doing = "becoming the user"
        _be_user(spec.get("user") or {})
        if spec.get("noNewPrivileges"):
            ctypes.CDLL(None).prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        doing = "waiting for the start"
        os.write(failure, _READY)
        if not os.read(gate, 1):
            os._exit(0)  # it was given up
        os.execve(path, [str(each) for each in spec["args"]], environment(spec))  # noqa: S606
    except OSError as exc:
        what = exc.filename or doing
        os.write(failure, f"{what}: {(exc.strerror or str(exc)).lower()}".encode())
    except Exception as exc:
        os.write(failure, str(exc).encode())
    os._exit(1)


def _close_others(gate: int, failure: int) -> None:
    """Let go of what is the shim's, which may be another container's streams."""
    first, last = sorted((gate, failure))
    os.closerange(3, first)
    os.closerange(first + 1, last)
    os.closerange(last + 1, 2**31 - 1)


def _limit(spec: Mapping[str, Any]) -> None:
    for limit in spec.get("rlimits") or ():
        number = getattr(resource, limit["type"], None)
        if number is None:
            raise ValueError(f"unknown rlimit {limit['type']}")
        resource.setrlimit(number, (_count(limit["soft"]), _count(limit["hard"])))
    if (score := spec.get("oomScoreAdj")) is not None:
        Path("/proc/self/oom_score_adj").write_text(str(score))


def _count(limit: int) -> int:
    return resource.RLIM_INFINITY if limit >= 2**63 - 1 else limit


def _be_user(user: Mapping[str, Any]) -> None:
    uid, gid = int(user.get("uid", os.getuid())), int(user.get("gid", os.getgid()))
    if (umask := user.get("umask")) is not None:
        os.umask(umask)
    if os.geteuid() == 0:
        os.setgroups([int(each) for each in user.get("additionalGids") or ()])
        os.setgid(gid)
        os.setuid(uid)
    elif (uid, gid) not in ((os.getuid(), os.getgid()), (0, 0)):
        raise PermissionError(1, f"to be user {uid}:{gid} takes root")
