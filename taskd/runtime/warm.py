"""Calls of a shim's command line without starting Python: see `taskd.shim.warm`."""

from __future__ import annotations

import asyncio
import base64
import errno
import json
import logging
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from taskd import inherited
from taskd.runtime.spawn import Completed

__all__ = ["Warm"]

log = logging.getLogger(__name__)

_BEGIN_SECONDS = 10.0
_RESTART_SECONDS = 1.0
_FULL_SECONDS = 0.005


class Warm:
    """The helper process that forks shims; if there is none just now, nothing is warm.

    It starts when somebody first asks for a shim in Python.
    """

    def __init__(self) -> None:
        self._asked_for = asyncio.Event()
        self._has_begun = asyncio.Event()
        self._paths: frozenset[str] = frozenset()
        self._control: socket.socket | None = None
        self._sending = asyncio.Lock()

    def knows(self, path: Path) -> bool:
        """Whether the shim at `path` can be called here, just now."""
        return _real(path) in self._paths

    async def takes(self, path: Path) -> bool:
        """Whether the shim at `path` can be called here.

        Whoever is the first to ask for one in Python waits for the helper: a start without it takes
        as long.
        """
        if not self._has_begun.is_set() and _is_python(path):
            self._asked_for.set()
            with suppress(TimeoutError):
                async with asyncio.timeout(_BEGIN_SECONDS):
                    await self._has_begun.wait()
        return self.knows(path)

    async def run(
        self,
        command: Sequence[str],
        *,
        cwd: Path,
        env: Mapping[str, str],
        stdin: bytes = b"",
        merge: bool = False,
    ) -> Completed:
        """As `spawn.run`; but `env` is added to the daemon's.

        If the caller is cancelled, what was begun ends by itself, without an answer. Raises
        ConnectionError if the helper, or what it forked, ends without an answer.
        """
        ours, theirs = socket.socketpair()
        with ours:
            with theirs:
                request = {
                    "command": [_real(Path(command[0])), *command[1:]],
                    "cwd": str(cwd),
                    "env": dict(env),
                    "stdin": base64.b64encode(stdin).decode(),
                }
                await self._send(json.dumps(request).encode(), theirs)
            ours.setblocking(False)
            answer = b""
            while data := await asyncio.get_running_loop().sock_recv(ours, 65536):
                answer += data
        if not answer:
            raise ConnectionResetError("the shim ended without an answer")
        reply = json.loads(answer)
        output, errors = base64.b64decode(reply["output"]), reply["errors"].encode()
        return Completed(reply["status"], output + errors if merge else output, errors)

    async def _send(self, request: bytes, theirs: socket.socket) -> None:
        """Raises ConnectionError if there is no helper, or if it cannot be told so much at once."""
        async with self._sending:
            while (control := self._control) is not None:
                try:
                    socket.send_fds(control, [request], [theirs.fileno()])
                except BlockingIOError:  # as many calls wait as the socket holds
                    await asyncio.sleep(_FULL_SECONDS)
                except OSError as exc:
                    if exc.errno != errno.EMSGSIZE:
                        raise
                    raise ConnectionAbortedError("the call is too long") from exc
                else:
                    return
        raise ConnectionRefusedError("no process to fork shims is running")

    async def keep(self) -> None:
        """Keep a helper running, for ever, from when it is first needed."""
        await self._asked_for.wait()
        while True:
            try:
                await self._run_helper()
            except OSError as exc:
                log.warning("the process that forks shims: %s", exc)
            else:
                log.warning("the process that forks shims ended; another one follows")
            await asyncio.sleep(_RESTART_SECONDS)

    async def _run_helper(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with ours:
            with theirs:
                process = inherited.popen(
                    # -P: modules are not looked for where the daemon happens to have been started.
                    [sys.executable, "-P", "-m", "taskd.shim.warm", str(theirs.fileno())],
                    cwd="/",
                    stdin=subprocess.DEVNULL,
                    pass_fds=[theirs.fileno()],
                    # What a terminal's user types at the daemon is not meant for shims.
                    start_new_session=True,
                )
            ours.setblocking(False)
            try:
                await self._attend(ours)
            finally:
                self._paths, self._control = frozenset(), None
                self._has_begun.set()
                ours.close()
                process.kill()
                process.wait()

    async def _attend(self, control: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        if not (paths := await loop.sock_recv(control, 65536)):
            return
        self._paths, self._control = frozenset(json.loads(paths)), control
        self._has_begun.set()
        log.debug("shims that start warm: %s", ", ".join(sorted(self._paths)))
        while await loop.sock_recv(control, 1):
            pass


def _is_python(path: Path) -> bool:
    """Whether a script says that it is run by Python, in one of the ways that pip writes it."""
    try:
        with path.open("rb") as file:
            beginning = file.read(512)
    except OSError:
        return False
    return beginning.startswith(b"#!") and b"python" in beginning


def _real(path: Path) -> str:
    return str(path.resolve())
