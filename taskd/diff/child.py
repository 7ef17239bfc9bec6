"""The process that has one layer to work on, which is `taskd.layers.process`."""

from __future__ import annotations

import fcntl
import os
import signal
import sys
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple

import anyio

from taskd.errors import ResourceExhausted, TaskdError, Unknown
from taskd.runtime import spawn
from taskd.types import Mount

__all__ = ["Output", "Told", "command", "ordered", "output", "run"]

_PIPE: Final = 1 << 20


class Told(NamedTuple):
    """What a process tells of the tar in a layer."""

    digest: str
    """Empty if it could not be unpacked yet."""
    size: int
    """Bytes; 0 of one that was made."""


def ordered(mounts: Iterable[Mount]) -> list[dict[str, Any]]:
    """Mounts as they stand in an order."""
    return [
        {"type": each.type, "source": each.source, "target": each.target, "options": each.options}
        for each in mounts
    ]


def command(task: str, order: Mapping[str, Any]) -> list[str]:
    """The command line for one task; in `order` are plain values, and lists and dicts of them.

    The process does without `site`, for it is told where modules are, and without a parser, for
    what there is to do stands in its program: each would take it milliseconds.
    """
    path = [each for each in sys.path if each]
    told = {"task": task, "parent": os.getpid(), **order}
    program = f"import sys; sys.path = {path}; from taskd.layers.process import main; main({told})"
    return [sys.executable, "-I", "-S", "-X", "utf8", "-c", program]


async def run(
    task: str,
    order: Mapping[str, Any],
    *,
    stdin: int | bytes = b"",
    descriptors: Sequence[int] = (),
) -> Told:
    """Have one task of `taskd.layers` done.

    It keeps `descriptors` under their numbers. If the caller is cancelled it is killed. Raises
    `ResourceExhausted` for what goes beyond a limit, and `Unknown`.
    """
    try:
        done = await spawn.run(
            command(task, order),
            cwd=Path("/"),
            env=_environment(),
            stdin=stdin,
            pass_fds=descriptors,
        )
    except OSError as error:
        raise Unknown(f"the process for a layer cannot be started: {error}") from error
    how, _, words = os.fsdecode(done.stdout).partition("\n")
    if how == "done":
        digest, _, size = words.partition(" ")
        return Told(digest, int(size or 0))
    if how == "exhausted":
        raise ResourceExhausted(words)
    if how == "error":
        raise Unknown(words)
    if done.returncode < 0:
        how = f"was ended by {signal.Signals(-done.returncode).name}"
    else:
        last = done.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        how = f"ended with {done.returncode}: {last}"
    raise Unknown(f"the process that works on the layer {how}")


class Output:
    """What a process writes, as it comes."""

    def __init__(self, pipe: int) -> None:
        self.told = Told("", 0)
        """What it tells of the layer, once all has been read."""
        self._pipe = pipe
        self._failure: TaskdError | None = None

    async def read(self) -> bytes:
        """The next piece; empty at the end. Raises what `run` raises."""
        await anyio.wait_readable(self._pipe)
        piece = os.read(self._pipe, _PIPE)
        if not piece and self._failure is not None:
            raise self._failure
        return piece

    async def _fill(self, task: str, order: Mapping[str, Any], incoming: int) -> None:
        try:
            self.told = await run(task, {**order, "out": incoming}, descriptors=[incoming])
        except TaskdError as error:
            self._failure = error
        finally:
            os.close(incoming)  # now nobody writes any more: that is the end


@asynccontextmanager
async def output(task: str, order: Mapping[str, Any]) -> AsyncIterator[Output]:
    """Have a task done that writes; it is killed if the context is left before."""
    outgoing, incoming = os.pipe2(os.O_CLOEXEC)
    try:
        fcntl.fcntl(outgoing, fcntl.F_SETPIPE_SZ, _PIPE)
        os.set_blocking(outgoing, False)
        found = Output(outgoing)
        failure: TaskdError | None = None
        async with anyio.create_task_group() as group:
            group.start_soon(found._fill, task, order, incoming)
            try:
                yield found
            except TaskdError as error:
                failure = error  # as it is, not in a group
            group.cancel_scope.cancel()
        if failure is not None:
            raise failure
    finally:
        os.close(outgoing)


def _environment() -> dict[str, str]:
    """What mount(8) needs for its helpers."""
    return {"PATH": os.environ.get("PATH", os.defpath)}
