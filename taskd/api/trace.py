"""``taskd.v1.Trace``: what is said between clients, the daemon and its shims."""

from __future__ import annotations

from collections.abc import AsyncIterator

from taskd.api import request
from taskd.observe.recorder import Listener, Recorder
from taskd.proto.taskd.v1 import FollowRequest, FollowResponse, TraceBase

__all__ = ["Trace"]


class Trace(TraceBase):
    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder

    async def follow(self, message: FollowRequest) -> AsyncIterator[FollowResponse]:
        listener = Listener(message.namespace, message.task, message.limit, message.ignored)
        with self._recorder.listening(listener):
            # Tells a client that nothing said from now on escapes it.
            await request.current.get().send_initial_metadata()
            while True:
                yield await listener.hear()
