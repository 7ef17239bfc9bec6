"""What has happened in a test's namespace, as it is told."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice

import anyio

from taskd.client import Client, Event

__all__ = ["EventLog"]


class EventLog:
    """Events of one test, or of a whole session: `since` is the first that counts."""

    def __init__(self, whole: list[Event] | None = None) -> None:
        self._whole: list[Event] = [] if whole is None else whole
        self._since = len(self._whole)

    def from_now_on(self) -> EventLog:
        """A log that begins here."""
        return EventLog(self._whole)

    async def record(
        self, client: Client, *, task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED
    ) -> None:
        """Write down what happens, until it is cancelled."""
        async with client.events() as events:
            task_status.started()
            async for event in events:
                self._whole.append(event)

    def all(self) -> Sequence[Event]:
        """Those until now."""
        return list(islice(self._whole, self._since, None))

    def topics(self, container_id: str | None = None) -> Sequence[str]:
        """What they were about, in their order; of one container, or of all."""
        found = self.all() if container_id is None else self.of(container_id)
        return [event.topic for event in found]

    def of(self, container_id: str) -> Sequence[Event]:
        """Those that are about one container."""
        return [event for event in self.all() if event.container_id == container_id]

    async def wait_for(
        self, topic: str, container_id: str | None = None, timeout: float = 10.0
    ) -> Event:
        """The first of this topic, which may have been already.

        Raises TimeoutError, which says what there has been instead.
        """
        with anyio.move_on_after(timeout):
            while True:
                for event in self.all():
                    if event.topic == topic and container_id in (None, event.container_id):
                        return event
                await anyio.sleep(0.02)
        whose = f" of {container_id}" if container_id else ""
        raise TimeoutError(f"no {topic}{whose} after {timeout:g} s, but {list(self.topics())}")
