"""Starting the child that unpacks, and bringing home what it has to say.

Python's ``tarfile`` can be kept busy for long, in one call that holds the interpreter, by a small
archive. So nothing of it happens in this process: the child is killed when the time is over or the
caller is cancelled, and takes no more memory and room than it is given.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import anyio

from taskd.archives import child
from taskd.errors import InvalidArgument, ResourceExhausted, TaskdError, Unknown
from taskd.runtime import spawn

__all__ = ["Limits", "unpack"]

_COMMAND: Final = (sys.executable, "-I", "-X", "utf8", child.__file__)


@dataclass(frozen=True, slots=True)
class Limits:
    """What unpacking may take. The defaults are for what is known to be small."""

    seconds: float = 60.0
    bytes: int = 1 << 30
    """Of all files together."""
    members: int = 100_000
    """Files and folders, also those that are only named in a path."""
    depth: int = 100
    """Parts of a path."""
    memory: int = 256 << 20
    """Bytes of the child's address space."""


async def unpack(archive: int, folder: Path, limits: Limits) -> None:
    """Unpack the tar that the descriptor `archive` is open at into `folder`, which is made.

    Files and folders are taken, and nothing else; owners, modes and times are not. Raises
    `InvalidArgument` for an archive that is none or has something else in it, `ResourceExhausted`
    for one that goes beyond `limits`, and `Unknown` for what the disk says. Then, and if the caller
    is cancelled, a part of it may have been unpacked; the child has ended in any case.
    """
    order = {"folder": str(folder), "parent": os.getpid(), **asdict(limits)}
    with anyio.move_on_after(limits.seconds):
        done = await spawn.run([*_COMMAND, json.dumps(order)], cwd=Path("/"), env={}, stdin=archive)
        raise_for(done, limits)
        return
    raise ResourceExhausted(f"unpacking took more than {limits.seconds:g} s")


def raise_for(done: spawn.Completed, limits: Limits) -> None:
    """Raise what the child has said, if it was not that all is well."""
    if done.returncode == 0:
        return
    try:
        outcome, message = json.loads(done.stdout)
        error = _ERRORS[outcome]
    except (ValueError, KeyError, TypeError):
        if done.returncode == -signal.SIGKILL:
            how = "was killed"
        else:
            last = done.stderr.decode(errors="replace").strip().rpartition("\n")[2]
            how = f"ended with {done.returncode}: {last}"
        raise Unknown(f"the process that unpacks {how}") from None
    raise error(message)


_ERRORS: dict[str, type[TaskdError]] = {
    child.REFUSED: InvalidArgument,
    child.EXHAUSTED: ResourceExhausted,
    child.FAILED: Unknown,
}
