"""The process that has one layer to work on."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from taskd.errors import ResourceExhausted, Unknown
from taskd.runtime import spawn
from taskd.types import Mount

__all__ = ["ordered", "run"]

_COMMAND: Final = (sys.executable, "-I", "-X", "utf8", "-m", "taskd.layers")


def ordered(mounts: Iterable[Mount]) -> list[dict[str, Any]]:
    """Mounts as they stand in an order."""
    return [
        {"type": each.type, "source": each.source, "target": each.target, "options": each.options}
        for each in mounts
    ]


async def run(
    task: str,
    order: Mapping[str, Any],
    *,
    stdin: int | bytes = b"",
    descriptors: Sequence[int] = (),
) -> Mapping[str, Any]:
    """Have one task of `taskd.layers` done; returns what it tells of the layer.

    It keeps `descriptors` under their numbers. If the caller is cancelled it is killed. Raises
    `ResourceExhausted` for what goes beyond a limit, and `Unknown`.
    """
    command = [*_COMMAND, json.dumps({"task": task, "parent": os.getpid(), **order})]
    try:
        done = await spawn.run(
            command, cwd=Path("/"), env=_environment(), stdin=stdin, pass_fds=descriptors
        )
    except OSError as error:
        raise Unknown(f"the process for a layer cannot be started: {error}") from error
    try:
        outcome = json.loads(done.stdout)
    except ValueError:
        if done.returncode < 0:
            how = f"was ended by {signal.Signals(-done.returncode).name}"
        else:
            last = done.stderr.decode(errors="replace").strip().rpartition("\n")[2]
            how = f"ended with {done.returncode}: {last}"
        raise Unknown(f"the process that works on the layer {how}") from None
    if "exhausted" in outcome:
        raise ResourceExhausted(outcome["exhausted"])
    if "error" in outcome:
        raise Unknown(outcome["error"])
    found: Mapping[str, Any] = outcome
    return found


def _environment() -> dict[str, str]:
    """What mount(8) needs for its helpers."""
    return {"PATH": os.environ.get("PATH", os.defpath)}
