"""The page's server: what it shows, as streams of events, and what it does."""

from __future__ import annotations

import json
import signal
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any

import anyio
from aiohttp import web
from anyio.abc import TaskGroup

import taskd
from taskd import errors, procfs
from taskd.client import Client, Container, Event
from taskd.client.events import journal
from taskd.client.logs import Reader
from taskd.errors import InvalidArgument, NotFound, TaskdError, Unavailable
from taskd.plain import line, plain
from taskd.together import together
from taskd.web.guard import Guard
from taskd.web.lives import Lives
from taskd.web.watch import Watch
from taskd.wellknown import nanoseconds

__all__ = ["Site"]

_PAGE = Path(__file__).parent / "page"
_TYPES = {
    ".html": "text/html",
    ".css": "text/css",
    ".js": "text/javascript",
    ".svg": "image/svg+xml",
}
_FEEDS = 64
"""Streams at once; a page has two."""
_EVENTS = 500
"""Of the past, that a page begins with."""
_LINES = 2000
_OUTPUT_SECONDS = 0.1
_ANSWER_SECONDS = 5.0
_PROCESSES_SECONDS = 2.0
_RETRY_SECONDS = 1.0
_PING_SECONDS = 15.0
_SIGNALS = ("TERM", "INT", "HUP", "QUIT", "USR1", "USR2", "WINCH", "STOP", "CONT", "KILL")

_REFUSALS: Mapping[type[Exception], type[web.HTTPError]] = {
    InvalidArgument: web.HTTPBadRequest,
    NotFound: web.HTTPNotFound,
    Unavailable: web.HTTPServiceUnavailable,
}
_Act = Callable[[Container], Awaitable[object]]
_ACTIONS: Mapping[str, _Act] = {
    "pause": lambda each: each.pause(),
    "resume": lambda each: each.resume(),
    "stop": lambda each: each.stop(),
    "kill": lambda each: each.kill(),
    "delete": lambda each: each.delete(),
}


class Site:
    """One daemon and namespace on one page; use `serving` in ``async with``."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._guard = Guard()
        self._watch = Watch(client)
        self._lives = Lives(client)
        self._feeds = 0

    @asynccontextmanager
    async def serving(self, port: int = 0) -> AsyncIterator[Site]:
        """Serve on loopback, at a free port if it is 0. Raises OSError for one that is taken."""
        application = web.Application(middlewares=[self._guard.check], client_max_size=16 << 10)
        application.on_response_prepare.append(self._guard.harden)
        application.router.add_get("/", self._file, allow_head=False)
        application.router.add_get("/page/{name}", self._file, allow_head=False)
        application.router.add_get("/feed", self._feed, allow_head=False)
        application.router.add_get("/task/{id}", self._task, allow_head=False)
        application.router.add_get("/task/{id}/feed", self._task_feed, allow_head=False)
        application.router.add_post("/task/{id}/{action}", self._act)
        runner = web.AppRunner(
            application, access_log=None, handler_cancellation=True, shutdown_timeout=0.5
        )
        await runner.setup()
        try:
            await web.TCPSite(runner, "127.0.0.1", port).start()
            self.port: int = runner.addresses[0][1]
            async with anyio.create_task_group() as group:
                group.start_soon(self._watch.run)
                group.start_soon(self._lives.listen)
                yield self
                group.cancel_scope.cancel()
        finally:
            await runner.cleanup()

    @property
    def link(self) -> str:
        """For whoever may have the page."""
        return f"http://127.0.0.1:{self.port}/?token={self._guard.token}"

    @property
    def link_once(self) -> str:
        """The same, but good for one visit."""
        return f"http://127.0.0.1:{self.port}/?token={self._guard.pass_once}"

    async def _file(self, request: web.Request) -> web.StreamResponse:
        path = _PAGE / request.match_info.get("name", "index.html")
        if path.parent != _PAGE or path.suffix not in _TYPES or not path.is_file():
            raise web.HTTPNotFound
        return web.Response(body=path.read_bytes(), content_type=_TYPES[path.suffix])

    async def _feed(self, request: web.Request) -> web.StreamResponse:
        """All tasks, and what happens: from the event on that the page has seen last."""
        after = request.headers.get("Last-Event-ID") or request.query.get("after", "")
        async with self._stream(request) as stream:
            await stream.send("hello", await self._hello())
            stream.start(self._tell_tasks)
            stream.start(lambda stream: self._tell_events(stream, after))
        return stream.response

    async def _task_feed(self, request: web.Request) -> web.StreamResponse:
        """What one container writes, and what is said about it."""
        name = request.match_info["id"]
        async with self._stream(request) as stream:
            stream.start(lambda stream: self._tell_output(stream, name))
            stream.start(lambda stream: self._tell_life(stream, name))
            stream.start(lambda stream: self._tell_processes(stream, name))
        return stream.response

    @asynccontextmanager
    async def _stream(self, request: web.Request) -> AsyncIterator[_Stream]:
        if self._feeds >= _FEEDS:
            raise web.HTTPServiceUnavailable(text="too many pages are open\n")
        self._feeds += 1
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        try:
            await response.prepare(request)
            async with anyio.create_task_group() as group:
                stream = _Stream(response, group)
                group.start_soon(stream.ping)
                yield stream
        except* ConnectionError:
            pass  # the page has gone
        finally:
            self._feeds -= 1

    async def _hello(self) -> dict[str, Any]:
        found = {
            "taskd": taskd.__version__,
            "address": str(self._client.address),
            "namespace": self._client.namespace,
            "token": self._guard.action,
            "signals": _SIGNALS,
            "others": [],
        }
        with suppress(TaskdError):
            names = {each.name for each in await self._client.namespaces.list()}
            found["others"] = sorted(names - {self._client.namespace})
        return found

    async def _tell_tasks(self, stream: _Stream) -> None:
        trouble = None
        tasks: object = None
        with self._watch.watched():
            await stream.send("past", self._watch.past())
            while True:
                if self._watch.tasks != tasks and self._watch.use:
                    tasks = self._watch.tasks
                    await stream.send("tasks", tasks)
                if not self._watch.trouble and self._watch.use:
                    await stream.send("use", self._watch.use)
                if self._watch.trouble != trouble:
                    trouble = self._watch.trouble
                    await stream.send("trouble", trouble)
                await self._watch.next()

    async def _tell_events(self, stream: _Stream, after: str) -> None:
        """The position of each is its journal's, which need not be there any more."""
        known, _, text = after.rpartition(":")
        position = int(text) if text.isdecimal() else None
        while True:
            with suppress(TaskdError):
                info = await journal(self._client.channel)
                if info is None:
                    await stream.send("live", "")  # containerd does not know what was
                    begin = None
                elif (
                    known == info.journal
                    and position is not None
                    and (info.first - 1 <= position <= info.last)
                ):
                    begin = position
                else:
                    begin = max(info.first - 1, info.last - _EVENTS)
                    await stream.send("anew", "")
                known = info.journal if info else ""
                events = self._client.events('topic~="^/(tasks|containers)/"', after=begin)
                async with events:
                    async for event in events:
                        position = event.position
                        number = f"{known}:{position}" if position is not None else ""
                        await stream.send("happened", _told(event), number)
            await anyio.sleep(_RETRY_SECONDS)

    async def _tell_output(self, stream: _Stream, name: str) -> None:
        waiting: deque[dict[str, Any]] = deque(maxlen=_LINES)

        async def tell() -> None:
            if told := list(waiting):
                waiting.clear()
                await stream.send("output", told)

        async def keep_telling() -> None:
            while True:
                await tell()
                await anyio.sleep(_OUTPUT_SECONDS)

        since: int | None = None

        async def follow(entries: Reader) -> bool:
            """To the container's end; False if the daemon is away before that."""
            nonlocal since
            with suppress(Unavailable):
                async for each in entries:
                    since = each.at + 1
                    waiting.append({"stream": each.stream, "text": each.text, "at": each.at / 1e6})
                    if len(waiting) == _LINES:
                        # The newest lines of those who write so much are all that is shown.
                        await anyio.sleep(_OUTPUT_SECONDS)
                return True
            return False

        while True:
            try:
                container = await self._client.get(name)
                entries = container.logs(follow=True, tail=_LINES, since=since)
                async with together() as group:
                    group.start_soon(keep_telling)
                    ended = await follow(entries)
                    await tell()
                    group.cancel_scope.cancel()
                if ended:
                    return
            except Unavailable:
                pass  # it goes on when the daemon is back
            except (TaskdError, OSError) as exc:
                await stream.send("quiet", errors.words(exc))
                return
            await anyio.sleep(_RETRY_SECONDS)

    async def _tell_life(self, stream: _Stream, name: str) -> None:
        version, trouble = 0, None
        while True:
            life = self._lives.of(name)
            if self._lives.trouble != trouble:
                trouble = self._lives.trouble
                await stream.send("deaf", trouble)
            if told := life.since(version):
                version = life.version
                await stream.send("calls", told)
            with anyio.move_on_after(_RETRY_SECONDS):
                await life.changed.wait()

    async def _tell_processes(self, stream: _Stream, name: str) -> None:
        while True:
            try:
                container = await self._client.get(name)
                pids = await container.pids()
            except (TaskdError, OSError):
                await stream.send("processes", [])
            else:
                await stream.send("processes", [(pid, procfs.command(pid)) for pid in pids])
            await anyio.sleep(_PROCESSES_SECONDS)

    async def _task(self, request: web.Request) -> web.StreamResponse:
        with _refusing():
            container = await self._client.get(request.match_info["id"])
        record = container.record
        snapshot = f"{record.snapshotter} {record.snapshot_key}".strip()
        return web.json_response(
            {
                "id": container.id,
                "image": container.source,
                "runtime": container.runtime,
                "created": nanoseconds(record.created_at) // 10**6,
                "labels": dict(container.labels),
                "snapshot": snapshot,
                "spec": json.dumps(container.spec, indent=2, ensure_ascii=False),
            }
        )

    async def _act(self, request: web.Request) -> web.StreamResponse:
        act = await self._action(request)
        with _refusing():
            await act(await self._there(request.match_info["id"]))
        self._watch.hurry()
        return web.json_response({})

    async def _there(self, id: str) -> Container:  # noqa: A002
        """The container. What is asked of a daemon that is away is not done when it is back."""
        with suppress(Unavailable), anyio.move_on_after(_ANSWER_SECONDS):
            return await self._client.get(id)
        raise Unavailable("the daemon does not answer, and nothing was done", verbatim=True)

    async def _action(self, request: web.Request) -> _Act:
        name = request.match_info["action"]
        if name in _ACTIONS:
            return _ACTIONS[name]
        if name != "signal":
            raise web.HTTPNotFound
        with suppress(ValueError, TypeError, KeyError):
            wanted = (await request.json())["signal"]
            if wanted in _SIGNALS:
                number = signal.Signals[f"SIG{wanted}"]
                return lambda each: each.kill(number)
        raise web.HTTPBadRequest(text="no such signal")


class _Stream:
    """Server-sent events to one page."""

    def __init__(self, response: web.StreamResponse, group: TaskGroup) -> None:
        self.response = response
        self._group = group
        self._lock = anyio.Lock()

    def start(self, tell: Callable[[_Stream], Coroutine[Any, Any, None]]) -> None:
        self._group.start_soon(tell, self)

    async def send(self, event: str, data: object, number: str = "") -> None:
        # JSON has no line breaks of its own, and what containers have is escaped in it.
        text = json.dumps(data, separators=(",", ":"))
        id_ = f"id: {number}\n" if number else ""
        await self._write(f"{id_}event: {event}\ndata: {text}\n\n")

    async def ping(self) -> None:
        while True:
            await anyio.sleep(_PING_SECONDS)
            await self._write(":\n\n")

    async def _write(self, text: str) -> None:
        async with self._lock:
            await self.response.write(text.encode())


@contextmanager
def _refusing() -> Iterator[None]:
    """Tell the page what the daemon refuses."""
    try:
        yield
    except (TaskdError, OSError) as exc:
        refused = _REFUSALS.get(type(exc), web.HTTPConflict)
        raise refused(text=errors.words(exc)) from exc


def _told(event: Event) -> dict[str, Any]:
    message = event.message
    return {
        "topic": event.topic,
        "at": event.at / 1e6,
        "id": event.container_id,
        "exec": _exec(event),
        "code": getattr(message, "exit_status", None),
        "about": line(plain(message, opened=True)) if message is not None else "",
    }


def _exec(event: Event) -> str:
    """The process that it is about, if that is not the container's own."""
    message = event.message
    found = getattr(message, "exec_id", "") or getattr(message, "id", "")
    return "" if found == event.container_id else str(found)
