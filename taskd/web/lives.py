"""The calls of each container's life, heard as long as the page is served."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import anyio

from taskd import errors
from taskd.client import Client
from taskd.client.trace import entry
from taskd.errors import TaskdError, Unimplemented
from taskd.plain import line
from taskd.proto.taskd.v1 import FollowRequest, FollowResponse
from taskd.wellknown import nanoseconds

__all__ = ["Life", "Lives"]

LIVES, CALLS, WORDS = 300, 400, 2000
"""How many are kept, of how many calls each, of how many characters."""
_BYTES = 16 << 10
_RETRY_SECONDS = 0.5
_SHIMS = ("containerd.task.v2.Task", "containerd.task.v3.Task")
_LOOKING = [
    *(f"/{service}/{method}" for service in _SHIMS for method in ("State", "Stats", "Pids")),
    *(f"/containerd.services.tasks.v1.Tasks/{name}" for name in ("Get", "ListPids", "Metrics")),
]
"""What only looks, as this page does all the time, is no part of a life."""


@dataclass
class Life:
    """What has been said about one container."""

    calls: dict[tuple[int, int], dict[str, Any]] = field(default_factory=dict)
    version: int = 0
    changed: anyio.Event = field(default_factory=anyio.Event)

    def since(self, version: int) -> list[dict[str, Any]]:
        """Calls that have begun or ended since it was at `version`."""
        return [each for each in self.calls.values() if each["version"] > version]

    def tell(self, call: dict[str, Any]) -> None:
        self.version += 1
        call["version"] = self.version
        self.changed.set()
        self.changed = anyio.Event()


class Lives:
    def __init__(self, client: Client) -> None:
        self._client = client
        self._lives: dict[str, Life] = {}
        self._connections = 0
        self._numbers = 0
        self.trouble = ""
        """Why nothing is heard; empty as long as something is."""

    def of(self, name: str) -> Life:
        """That of a container, whether anything is known of it or not."""
        life = self._lives.pop(name, None) or Life()
        self._lives[name] = life  # the last one
        while len(self._lives) > LIVES:
            self._lives.pop(next(iter(self._lives)))
        return life

    async def listen(self) -> None:
        """Hear what is said; for ever, or until it is clear that this daemon tells nothing."""
        request = FollowRequest(
            namespace=self._client.namespace, limit=_BYTES, ignored=list(_LOOKING)
        )
        while True:
            try:
                async with self._client.conversation(request) as conversation:
                    self._connections += 1
                    self.trouble = ""
                    async for said in conversation:
                        self._hear(said)
            except Unimplemented:
                self.trouble = (
                    f"The daemon at {self._client.address} does not tell its calls: it is no taskd."
                )
                return
            except TaskdError as exc:
                self.trouble = errors.words(exc)
            await anyio.sleep(_RETRY_SECONDS)

    def _hear(self, said: FollowResponse) -> None:
        if not said.task:
            return
        life = self.of(said.task)
        key = self._connections, said.call
        told = entry(said)
        call = life.calls.get(key)
        if call is None:
            self._numbers += 1
            call = life.calls[key] = {
                "number": self._numbers,
                "way": told["way"],
                "method": said.method.rpartition("/")[2],
                "service": said.method.rpartition("/")[0].lstrip("/"),
                "begin": nanoseconds(said.begin) / 1e6,
                "took": None,
            }
            if len(life.calls) > CALLS:
                life.calls.pop(next(iter(life.calls)))
        if "request" in told:
            call["request"] = _words(told["request"])
        if said.nanoseconds is not None:
            call["took"] = said.nanoseconds / 1e6
            call["answer"] = _words(told.get("answer"))
            call["error"] = said.error[:WORDS]
            call["code"] = told.get("code", "")
        life.tell(call)


def _words(message: Any) -> str:
    words = message if isinstance(message, str) else line(message or {})
    return words if len(words) <= WORDS else f"{words[:WORDS]}…"
