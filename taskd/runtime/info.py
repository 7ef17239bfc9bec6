"""What a shim's executable tells of itself and its runtime: its ``-info``.

Source: containerd's ``core/runtime/v2/task_manager.go`` (2.x), ``getRuntimeInfo``.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import anyio

from taskd.codec import MalformedMessage, decode, encode
from taskd.errors import DeadlineExceeded, TaskdError, Unknown
from taskd.printable import quoted
from taskd.proto.containerd.types import RuntimeInfo
from taskd.proto.google.protobuf import Any
from taskd.runtime import spawn
from taskd.types import TypedValue

__all__ = ["SECONDS", "ask", "exit_text", "of_runtime"]

SECONDS = 60.0
"""For an answer, on which containerd has no bound."""

Run = Callable[[Sequence[str], bytes], Awaitable[spawn.Completed]]
"""Runs a command with that input. Raises `Unknown` if it cannot be run."""


async def of_runtime(
    resolve: Callable[[str], Path], runtime: str, options: TypedValue | None
) -> RuntimeInfo:
    """What the runtime of that name tells, as `ask` has it; `resolve` finds its executable."""
    try:
        path = resolve(runtime)
    except TaskdError as exc:
        raise exc.within("failed to resolve runtime path") from None

    async def run(command: Sequence[str], given: bytes) -> spawn.Completed:
        try:
            return await spawn.run(command, cwd=Path("/"), env=os.environ, stdin=given)
        except OSError as exc:
            reason = (exc.strerror or str(exc)).lower()
            words = f"failed to run [{' '.join(command)}]: fork/exec {path}: {reason}"
            raise Unknown(f'{words} (stderr: "")') from exc

    with anyio.move_on_after(SECONDS):
        return await ask(path, options, run)
    raise DeadlineExceeded(f"[{path} -info] has not answered in {SECONDS:g} s")


async def ask(path: Path, options: TypedValue | None, run: Run) -> RuntimeInfo:
    """What the executable tells of a runtime with these `options`.

    Raises `Unknown`, with its own words if it fails.
    """
    given = encode(Any(options.type_url, options.value)) if options else b""
    done = await run([str(path), "-info"], given)
    if done.returncode:
        words = quoted(done.stderr.decode(errors="replace"))
        failed = f"failed to run [{path} -info]: {exit_text(done.returncode)}"
        raise Unknown(f"{failed} (stderr: {words})")
    try:
        return decode(RuntimeInfo, done.stdout)
    except MalformedMessage as exc:
        words = f"failed to unmarshal stdout from [{path} -info] into *types.RuntimeInfo"
        raise Unknown(f"{words}: {exc.reason}") from exc


def exit_text(returncode: int) -> str:
    """How a command ended, in Go's words."""
    if returncode < 0:
        return f"signal: {(signal.strsignal(-returncode) or str(-returncode)).lower()}"
    return f"exit status {returncode}"
