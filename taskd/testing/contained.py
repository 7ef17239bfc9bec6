"""A container of a test: the client's, with what a test wants besides."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio

from taskd import procfs
from taskd.client import Client, Container
from taskd.client import spec as default
from taskd.errors import FailedPrecondition, NotFound, TaskdError
from taskd.proto.taskd.v1 import ListShimsRequest, ShimsStub

if TYPE_CHECKING:
    from taskd.testing.event_log import EventLog

__all__ = ["Condition", "Contained", "Ready"]

KEPT = 1 << 20
"""Characters of output that are kept for `Contained.logs` and reports."""
SHOWN_LINES = 40
POLL_SECONDS = 0.05
"""Between two looks at whether it is ready, at most; what it writes is looked at when it comes."""
FIRST_SECONDS = 0.005
"""Before the second look; then each time twice as long."""
SHIM_SECONDS = 10.0
"""For a shim, or another one in its stead, to have told which process it is."""

Ready = Callable[["Contained"], Awaitable[bool]]
"""Whether a container is ready: see `taskd.testing.ready`."""


@dataclass(frozen=True)
class Condition:
    """One with a name, for who has waited in vain."""

    name: str
    holds: Ready
    of_output: bool = False
    """Only what the container writes makes a difference."""

    async def __call__(self, container: Contained) -> bool:
        return await self.holds(container)


class Contained:
    """All that `taskd.client.Container` has, and what is here."""

    def __init__(self, client: Client, container: Container, events: EventLog) -> None:
        self.client = client
        self.container = container
        self.events = events
        self.timed_out: float | None = None
        """Seconds after which it was ended, since it took too long."""
        self._text = ""
        self._news = anyio.Event()
        for output in container.outputs:
            output.lift()
            output.listeners.append(self._heard)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.container, name)

    def __repr__(self) -> str:
        return repr(self.container)

    def logs(self) -> str:
        """What it has written until now, from both outputs; whoever else reads that has it, too."""
        return self._text

    def _heard(self, data: bytes) -> None:
        self._text = (self._text + data.decode(errors="replace"))[-KEPT:]
        self._news.set()

    async def wait_until(self, ready: Ready, timeout: float = 30.0) -> None:
        """Wait until it is ready.

        Raises TimeoutError, and `FailedPrecondition` if it ends before that, with what it has said.
        """
        try:
            with anyio.fail_after(timeout):
                pause = FIRST_SECONDS
                of_output = isinstance(ready, Condition) and ready.of_output
                while True:
                    self._news = anyio.Event()
                    if await ready(self):
                        return
                    with anyio.move_on_after(pause):
                        # What asks or tries something would be asked by each line of a talker.
                        await (self._news.wait() if of_output else anyio.sleep_forever())
                        continue
                    pause = min(2 * pause, POLL_SECONDS)
                    if await self._has_ended() and not await ready(self):
                        code = (await self.container.wait()).code
                        raise FailedPrecondition(
                            f'container "{self.container.id}" ended with {code} before it was '
                            f"ready ({_name(ready)}):\n{self._last()}",
                            verbatim=True,
                        )
        except TimeoutError:
            raise TimeoutError(
                f'container "{self.container.id}" was not ready ({_name(ready)}) after '
                f"{timeout:g} s:\n{self._last()}"
            ) from None

    async def _has_ended(self) -> bool:
        try:
            return (await self.container.state()).status.name == "STOPPED"
        except NotFound:
            return True

    async def kill_shim(self) -> None:
        """Kill the process that owns it, as the kernel does where memory has run out.

        Others may live in that, too. Containers of taskd's own shims go on in another one, where
        the kernel lets them (docs/shims.md); others end. Raises `FailedPrecondition` if it is not
        found.
        """
        pid = await self._shim() if await self.client.is_taskd() else _parent(self.container.pid)
        if not pid or b"shim" not in _command(pid):
            raise FailedPrecondition(f'the shim of container "{self.container.id}"')
        os.kill(pid, signal.SIGKILL)

    async def _shim(self) -> int:
        """Its pid, as the daemon knows it; 0 if it does not."""
        with anyio.move_on_after(SHIM_SECONDS):
            while True:
                found = (await ShimsStub(self.client.channel).list(ListShimsRequest())).shims
                for shim in found:
                    tenants = {(each.namespace, each.id) for each in shim.tenants}
                    pid: int = shim.pid
                    if pid and (self.client.namespace, self.container.id) in tenants:
                        return pid
                await anyio.sleep(POLL_SECONDS)
        return 0

    async def leave(self) -> None:
        """End and remove it, whatever it does."""
        await self.container.leave()

    async def describe(self) -> str:
        """What a report of a failure says of it."""
        lines = []
        if self.timed_out is not None:
            lines.append(f"ended since it took longer than {self.timed_out:g} s")
        with suppress(TaskdError):
            state = await self.container.state()
            ended = f", exit code {state.exit_status}" if state.status.name == "STOPPED" else ""
            lines.append(f"state: {state.status.name.lower()}, pid {state.pid}{ended}")
        lines += [f"last of {len(self._text)} characters of output:", self._last(), "events:"]
        lines += [
            f"  {_time(each.at)} {each.message}" for each in self.events.of(self.container.id)
        ]
        lines += ["specification, but for what all have:", *_specification(self.container.spec)]
        return "\n".join(lines)

    def _last(self) -> str:
        shown = self._text.splitlines()[-SHOWN_LINES:]
        return "\n".join(f"  | {line}" for line in shown) or "  (nothing)"


def _time(nanoseconds: int) -> str:
    return datetime.fromtimestamp(nanoseconds / 1e9).strftime("%H:%M:%S.%f")


def _specification(document: Mapping[str, Any]) -> Iterator[str]:
    """Without what each container has."""
    usual = ("devices", "maskedPaths", "readonlyPaths", "capabilities")
    mounts = [each["destination"] for each in default.container({})["mounts"]]
    for name, part in document.items():
        if name == "mounts":
            part = [each for each in part if each["destination"] not in mounts]
        if isinstance(part, Mapping):
            part = {key: each for key, each in part.items() if key not in usual}
            if isinstance(part.get("resources"), Mapping):
                limits = part["resources"].items()
                part["resources"] = {key: each for key, each in limits if key not in usual}
        yield f"  {name}: {json.dumps(part)}"


def _name(ready: Ready) -> str:
    if isinstance(ready, Condition):
        return ready.name
    return getattr(ready, "__name__", "a condition")


def _parent(pid: int) -> int | None:
    try:
        return procfs.stat(pid).parent
    except OSError:
        return None


def _command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""
