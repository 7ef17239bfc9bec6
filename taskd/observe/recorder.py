"""Tells what is said between clients, the daemon and its shims to those who listen."""

from __future__ import annotations

import asyncio
import copy
import itertools
import time
from collections import deque
from collections.abc import Awaitable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import betterproto2
from grpclib.const import Cardinality
from grpclib.exceptions import GRPCError

from taskd import codec, ttrpc
from taskd.errors import Code, TaskdError
from taskd.grpc import NAMESPACE_HEADER
from taskd.observe import Handler
from taskd.proto.containerd.services.events.ttrpc.v1 import ForwardRequest
from taskd.proto.taskd.v1 import FollowResponse, Payload, Way
from taskd.runtime.binary import Bootstrap
from taskd.runtime.bundle import Bundle
from taskd.runtime.connection import Connection
from taskd.runtime.generation import Binary
from taskd.runtime.types import CreateOptions, Exit
from taskd.wellknown import from_any, timestamp, unpack

__all__ = ["Listener", "Recorder"]

_WAITING = 1024
"""Beginnings and ends that a listener may be behind."""
_LIMIT = 64 << 10
_OWN = "/taskd.v1.Trace/"


class Listener:
    """One who listens: to `namespace` and `task`, or to all if they are empty."""

    def __init__(
        self, namespace: str = "", task: str = "", limit: int = 0, ignored: Iterable[str] = ()
    ) -> None:
        self._namespace, self._task = namespace, task
        self.ignored = frozenset(ignored)
        """Methods that are not for it."""
        self._limit = limit or _LIMIT
        self._heard: deque[FollowResponse] = deque()
        self._lost = 0
        self._something = asyncio.Event()

    def tell(self, said: FollowResponse) -> None:
        if self._namespace not in ("", said.namespace) or self._task not in ("", said.task):
            return
        if said.method in self.ignored:
            return
        if len(self._heard) >= _WAITING:
            self._lost += 1
            return
        told = copy.copy(said)
        told.request, told.answer = self._cut(said.request), self._cut(said.answer)
        told.lost, self._lost = self._lost, 0
        self._heard.append(told)
        self._something.set()

    def _cut(self, payload: Payload | None) -> Payload | None:
        if payload is None or len(payload.data) <= self._limit:
            return payload
        data = payload.data[: self._limit]
        return Payload(data=data, size=payload.size, messages=payload.messages)

    async def hear(self) -> FollowResponse:
        """What was said next."""
        while not self._heard:
            self._something.clear()
            await self._something.wait()
        return self._heard.popleft()


class Recorder:
    """Sees all calls; an `Instrument`. While nobody listens, that is one look at an empty set."""

    def __init__(self) -> None:
        self.listeners: set[Listener] = set()
        self._numbers = itertools.count(1)

    @contextmanager
    def listening(self, listener: Listener) -> Iterator[None]:
        self.listeners.add(listener)
        try:
            yield
        finally:
            self.listeners.discard(listener)

    def wants(self, method: str) -> bool:
        """Whether somebody listens to it."""
        return any(method not in listener.ignored for listener in self.listeners)

    def incoming(self, path: str, cardinality: Cardinality, handler: Handler) -> Handler:
        if path.startswith(_OWN):
            return handler

        def heard(stream: Any) -> Awaitable[None]:
            return self._incoming(path, handler, stream) if self.wants(path) else handler(stream)

        return heard

    async def _incoming(self, path: str, handler: Handler, stream: Any) -> None:
        namespace = (stream.metadata or {}).get(NAMESPACE_HEADER, "")
        call = _Call(self, Way.CLIENT, str(namespace), "", path)
        with call:
            await handler(_Overheard(stream, call))

    def outgoing(self, connection: Connection, bundle: Bundle) -> Connection:
        return _Overhearing(connection, self, bundle)

    def served(self, service: ttrpc.Service) -> ttrpc.Service:
        """A service that shims call, overheard."""

        def overheard(name: str, handler: ttrpc.Handler) -> ttrpc.Handler:
            if isinstance(handler, ttrpc.Streaming):
                return handler

            async def heard(context: ttrpc.CallContext, payload: bytes) -> bytes:
                method = f"/{service.name}/{name}"
                if not self.wants(method):
                    return await handler(context, payload)
                namespace, task = _subject(payload)
                with _Call(self, Way.FROM_SHIM, namespace, task, method) as call:
                    call.asked(payload)
                    answer = await handler(context, payload)
                    call.answered(answer)
                    return answer

            return heard

        methods = {name: overheard(name, each) for name, each in service.methods.items()}
        return replace(service, methods=methods)

    def starting(self, binary: Binary) -> Binary:
        """The executable of a shim, whose command lines are told."""
        return _OverheardBinary(binary, self)

    def tell(self, said: FollowResponse) -> None:
        for listener in self.listeners:
            listener.tell(said)


class _Call:
    """One call, from its beginning to its end; use it in ``with``."""

    def __init__(
        self, recorder: Recorder, way: Way, namespace: str, task: str, method: str
    ) -> None:
        self._recorder = recorder
        self._said = FollowResponse(
            call=next(recorder._numbers),
            way=way,
            namespace=namespace,
            task=task,
            method=method,
            begin=timestamp(time.time_ns()),
        )
        self._begin = time.perf_counter_ns()
        self._answer: bytes | None = None
        self._asked = self._answers = 0

    def asked(self, message: bytes, task: str = "") -> None:
        """The request, or a stream's next one; the first is told."""
        self._asked += 1
        if self._asked == 1:
            self._said.task = self._said.task or task
            self._said.request = Payload(data=message, size=len(message), messages=1)
            self._recorder.tell(self._said)

    def answered(self, message: bytes) -> None:
        self._answers += 1
        self._answer = message

    def __enter__(self) -> _Call:
        return self

    def __exit__(self, _: object, exc: BaseException | None, __: object) -> None:
        said = self._said
        if not self._asked:
            self._recorder.tell(said)
        said.nanoseconds = time.perf_counter_ns() - self._begin
        said.code, said.error = _outcome(exc)
        if said.request is not None:
            # Only how many there were: the first has been told.
            said.request = Payload(size=said.request.size, messages=self._asked)
        if self._answer is not None:
            size = len(self._answer)
            said.answer = Payload(data=self._answer, size=size, messages=self._answers)
        self._recorder.tell(said)


def _outcome(exc: BaseException | None) -> tuple[int, str]:
    match exc:
        case None:
            return Code.OK, ""
        case TaskdError():
            return exc.code, str(exc)
        case GRPCError():
            return exc.status.value, exc.message or ""
        case asyncio.CancelledError():
            return Code.CANCELLED, ""
        case _:
            return Code.UNKNOWN, repr(exc)


class _Overheard:
    """The stream of a client's call."""

    def __init__(self, stream: Any, call: _Call) -> None:
        self._stream = stream
        self._call = call

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    async def recv_message(self) -> Any:
        message = await self._stream.recv_message()
        if isinstance(message, betterproto2.Message):
            task = getattr(message, "container_id", "")
            self._call.asked(codec.encode(message), task if isinstance(task, str) else "")
        return message

    async def send_message(self, message: Any, **options: Any) -> None:
        if isinstance(message, betterproto2.Message):
            self._call.answered(codec.encode(message))
        await self._stream.send_message(message, **options)

    async def __aiter__(self) -> Any:
        while (message := await self.recv_message()) is not None:
            yield message


class _Overhearing:
    """The connection to a shim."""

    def __init__(self, connection: Connection, recorder: Recorder, bundle: Bundle) -> None:
        self._connection = connection
        self._recorder = recorder
        self._bundle = bundle
        self.wait_closed = connection.wait_closed
        self.aclose = connection.aclose

    def call(
        self,
        service: str,
        method: str,
        payload: bytes,
        *,
        timeout: float | None = None,
        metadata: ttrpc.Metadata | None = None,
    ) -> Any:
        answer = self._connection.call(service, method, payload, timeout=timeout, metadata=metadata)
        if not self._recorder.listeners or not self._recorder.wants(path := f"/{service}/{method}"):
            return answer
        return self._overhear(path, payload, answer)

    async def _overhear(self, method: str, payload: bytes, answer: Awaitable[bytes]) -> bytes:
        bundle = self._bundle
        with _Call(self._recorder, Way.TO_SHIM, bundle.namespace, bundle.id, method) as call:
            call.asked(payload)
            found = await answer
            call.answered(found)
            return found


class _OverheardBinary:
    """A shim's executable."""

    def __init__(self, binary: Binary, recorder: Recorder) -> None:
        self._binary = binary
        self._recorder = recorder
        self.path = binary.path
        self.bundle = binary.bundle
        self.features = binary.features

    @property
    def deletes_after_shutdown(self) -> bool:
        return self._binary.deletes_after_shutdown

    async def start(self, options: CreateOptions, group: str = "") -> Bootstrap:
        with self._call("start") as call:
            made = await self._binary.start(options, group)
            call.answered(f"{made.protocol} {made.version} {made.address}".encode())
            return made

    async def adopt(self, bundles: Iterable[Bundle], group: str = "") -> Bootstrap:
        with self._call("adopt") as call:
            made = await self._binary.adopt(bundles, group)
            call.answered(f"{made.protocol} {made.version} {made.address}".encode())
            return made

    async def delete(self) -> Exit:
        with self._call("delete") as call:
            found = await self._binary.delete()
            call.answered(f"pid {found.pid}, exit status {found.status}".encode())
            return found

    def _call(self, word: str) -> _Call:
        call = _Call(self._recorder, Way.COMMAND, self.bundle.namespace, self.bundle.id, word)
        call.asked(str(self.path).encode())
        return call


def _subject(payload: bytes) -> tuple[str, str]:
    """The namespace and the task that an event of a shim's is about."""
    try:
        envelope = codec.decode(ForwardRequest, payload).envelope
    except codec.MalformedMessage:
        return "", ""
    event = from_any(envelope.event) if envelope is not None else None
    if envelope is None or event is None:
        return "", ""
    return envelope.namespace, getattr(unpack(event), "container_id", "")
