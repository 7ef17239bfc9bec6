"""Drives a daemon through gRPC, and notes down what it answered and which events came."""

from __future__ import annotations

import hashlib
import inspect
import json
import re
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from shutil import which
from typing import Any, Self, TypeVar

import anyio
import betterproto2
from grpclib import GRPCError
from grpclib.client import Channel
from grpclib.exceptions import StreamTerminatedError
from harness.containers import spec
from harness.daemons import Daemon, client

from taskd import wellknown
from taskd.proto.containerd.services.containers import v1 as containers
from taskd.proto.containerd.services.content import v1 as content
from taskd.proto.containerd.services.diff import v1 as diff
from taskd.proto.containerd.services.events import v1 as events
from taskd.proto.containerd.services.images import v1 as images
from taskd.proto.containerd.services.leases import v1 as leases
from taskd.proto.containerd.services.namespaces import v1 as namespaces
from taskd.proto.containerd.services.sandbox import v1 as sandboxes
from taskd.proto.containerd.services.snapshots import v1 as snapshots
from taskd.proto.containerd.services.tasks import v1 as tasks
from taskd.proto.google import protobuf

__all__ = ["PATIENCE_SECONDS", "RUNC", "Recorder"]

T = TypeVar("T")

ANSWER_SECONDS = 30.0
"""For a call to be answered: more than any shim needs on a slow machine."""

PATIENCE_SECONDS = 0.3
"""For a call that is expected to wait: what has not answered by then is taken to wait."""

_ORDERED = {"rootfs", "options", "filters", "paths"}
"""Lists whose order means something."""

RUNC = "io.containerd.runc.v2"

_elsewhere: ContextVar[list[str] | None] = ContextVar("elsewhere", default=None)
"""Where calls that are made at once are noted down, until all have their answers."""


class Service:
    """A stub's methods, each call of which is noted down. Fields of the request are arguments."""

    def __init__(self, recorder: Recorder, stub: betterproto2.Message | Any) -> None:
        self._recorder = recorder
        self._stub = stub

    def __getattr__(self, name: str) -> Callable[..., Awaitable[Any]]:
        method = getattr(self._stub, name)
        service = type(self._stub).__name__.removesuffix("Stub")

        async def call(
            request: Any = None,
            *,
            metadata: dict[str, str] | None = None,
            patience: float = ANSWER_SECONDS,
            **fields: Any,
        ) -> Any:
            if request is None:
                request = _request_type(method)(**fields)
            sent = [request] if isinstance(request, betterproto2.Message) else request
            said = " ".join(self._recorder.shown(message) for message in sent)
            answers = method(request, metadata=metadata)
            return await self._recorder.call(f"{service}.{name} {said}", answers, patience)

        return call


def _request_type(method: Any) -> Any:
    annotation = str(inspect.signature(method).parameters["message"].annotation)
    name = annotation.strip("'\"").removesuffix(" | None").rpartition(".")[2]
    return getattr(sys.modules[type(method.__self__).__module__], name, protobuf.Empty)


class Recorder:
    """A client in `namespace`; use it in ``async with``. `lines` is what it has noted down."""

    def __init__(self, daemon: Daemon, namespace: str, rootfs: Path, folder: Path) -> None:
        """`folder` is the scenario's own; it is there."""
        self.daemon = daemon
        self.namespace = namespace
        self.rootfs = rootfs
        self.folder = folder
        self.sandbox_runtime = RUNC
        """Whose shims have sandboxes: containerd's own of 1.7, not those of 2.x."""
        self.lines: list[str] = []
        self._events: list[events.Envelope] = []
        self._names = {
            str(folder): "SCENARIO",
            str(daemon.folder): "FOLDER",
            str(Path(which("containerd-shim-runc-v2", path=daemon.path) or "").parent): "SHIMS",
            namespace: "NAMESPACE",
        }
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        await self._stack.__aenter__()
        channel = await self._stack.enter_async_context(client(self.daemon.address, self.namespace))
        self._use(channel)
        group = await self._stack.enter_async_context(anyio.create_task_group())
        self._stack.callback(group.cancel_scope.cancel)
        listening = anyio.Event()
        group.start_soon(self._listen, events.EventsStub(channel), listening)
        while not listening.is_set():
            # A subscription has no first answer: what is published says when it is there.
            await self.publish_marker("begin", channel)
            with anyio.move_on_after(0.02):
                await listening.wait()
        return self

    async def __aexit__(self, *details: Any) -> None:
        await self._stack.__aexit__(*details)

    def _use(self, channel: Channel) -> None:
        self.channel = channel
        self.tasks = Service(self, tasks.TasksStub(channel))
        self.containers = Service(self, containers.ContainersStub(channel))
        self.content = Service(self, content.ContentStub(channel))
        self.diff = Service(self, diff.DiffStub(channel))
        self.images = Service(self, images.ImagesStub(channel))
        self.leases = Service(self, leases.LeasesStub(channel))
        self.namespaces = Service(self, namespaces.NamespacesStub(channel))
        self.snapshots = Service(self, snapshots.SnapshotsStub(channel))
        self.events = Service(self, events.EventsStub(channel))
        self.sandboxes = Service(self, sandboxes.StoreStub(channel))
        self.controllers = Service(self, sandboxes.ControllerStub(channel))

    @asynccontextmanager
    async def within(self, namespace: str | None) -> AsyncIterator[Recorder]:
        """One that calls in another namespace (None: in none), and notes down in the same place."""
        other = Recorder(self.daemon, namespace or "", self.rootfs, self.folder)
        other.lines, other._names = self.lines, self._names
        channel = Channel(path=str(self.daemon.address))
        async with channel if namespace is None else client(self.daemon.address, namespace) as chan:
            other._use(chan)
            yield other

    # What scenarios do again and again.

    def spec(self, name: str, command: str | Iterable[str] = "sleep 1000", **options: Any) -> Any:
        """The specification of a container whose cgroup is named after it."""
        arguments = ["/bin/sh", "-c", f"exec {command}"] if isinstance(command, str) else command
        found = spec(self.rootfs, list(arguments), **options)
        document = json.loads(found.value)
        document["linux"]["cgroupsPath"] = f"/{self.namespace}-{name}"
        found.value = json.dumps(document).encode()
        return found

    async def container(
        self,
        name: str = "one",
        command: str | Iterable[str] = "sleep 1000",
        *,
        runtime: str = RUNC,
        sandbox: str = "",
        **options: Any,
    ) -> None:
        container = containers.Container(
            id=name,
            sandbox=sandbox,
            runtime=containers.ContainerRuntime(name=runtime),
            spec=self.spec(name, command, **options),
        )
        await self.containers.create(container=container)

    async def created(
        self, name: str = "one", command: str | Iterable[str] = "sleep 1000", **options: Any
    ) -> None:
        await self.container(name, command, **options)
        await self.tasks.create(container_id=name)

    async def running(
        self, name: str = "one", command: str | Iterable[str] = "sleep 1000", **options: Any
    ) -> None:
        await self.created(name, command, **options)
        await self.tasks.start(container_id=name)

    async def stopped(self, name: str = "one", command: str = "true", **options: Any) -> None:
        await self.running(name, command, **options)
        await self.tasks.wait(container_id=name)

    async def end(self, name: str = "one") -> None:
        """Kill a task and delete it."""
        await self.tasks.kill(container_id=name, signal=9)
        await self.tasks.wait(container_id=name)
        await self.tasks.delete(container_id=name)

    async def all(self, *calls: Awaitable[Any]) -> None:
        """Make calls at once; their answers are noted down in an order of no meaning."""
        async with self.meanwhile(*calls):
            pass

    @asynccontextmanager
    async def meanwhile(self, *calls: Awaitable[Any], head_start: float = 0) -> AsyncIterator[None]:
        """Calls that are under way in the block; their answers are noted down at its end.

        They have `head_start` seconds before the block begins.
        """
        theirs: list[str] = []

        async def one(awaited: Awaitable[Any]) -> None:
            _elsewhere.set(theirs)
            await awaited

        async with anyio.create_task_group() as group:
            for each in calls:
                group.start_soon(one, each)
            await anyio.sleep(head_start)
            yield
        self.lines.extend(sorted(theirs))

    def stub(self, kind: Callable[[Channel], T]) -> T:
        """A stub whose calls are not noted down."""
        return kind(self.channel)

    def note(self, line: str) -> None:
        elsewhere = _elsewhere.get()
        lines = self.lines if elsewhere is None else elsewhere
        lines.append(self.normalised(line))

    async def call(
        self,
        what: str,
        answers: Awaitable[Any] | AsyncIterator[Any],
        patience: float = ANSWER_SECONDS,
    ) -> Any:
        """Note down each answer, and how the call ended. Returns the last answer."""
        shown, answer = [what], None
        try:
            with anyio.fail_after(patience):
                if isinstance(answers, AsyncIterator):
                    async for answer in answers:
                        shown.append(self.shown(answer))
                else:
                    answer = await answers
                    shown.append(self.shown(answer))
        except GRPCError as error:
            shown.append(f"{error.status.name}: {error.message}")
        except TimeoutError:
            shown.append("waits")
        except (StreamTerminatedError, ConnectionError):
            shown.append("the daemon is gone")
        self.note("\n    ".join(shown))
        return answer

    # Events.

    async def publish_marker(self, name: str, channel: Channel) -> None:
        marker = protobuf.Any(type_url="containerd.events.NamespaceCreate", value=b"")
        await events.EventsStub(channel).publish(
            events.PublishRequest(topic=f"/parity/{name}", event=marker)
        )

    async def _listen(self, stub: events.EventsStub, listening: anyio.Event) -> None:
        message = events.SubscribeRequest(filters=[f"namespace=={self.namespace}"])
        with suppress(StreamTerminatedError):  # with the daemon
            async for envelope in stub.subscribe(message):
                listening.set()
                if not envelope.topic.startswith("/parity/"):
                    self._events.append(envelope)

    def transcript(self) -> list[str]:
        """What was noted down, and the events; pids are numbered as they are first named.

        So are snapshots.
        """
        lines = [*self.lines, *self._events_seen()]
        folders = dict.fromkeys(re.findall(r"/snapshots/(\d+)", "\n".join(lines)))
        numbers = {found: str(number) for number, found in enumerate(folders, 1)}
        for number, line in enumerate(lines):
            lines[number] = re.sub(
                r"(?<=/snapshots/)\d+", lambda found: f"number{numbers[found[0]]}", line
            )
        pids = dict.fromkeys(re.findall(r"pid#(\d+)", "\n".join(lines)))
        for number, pid in enumerate(pids, 1):
            lines = [re.sub(rf"(pid#|\b){pid}\b", f"pid{number}", line) for line in lines]
        return lines

    def _events_seen(self) -> list[str]:
        """Events in containerd's order: its own, and for each container those of its shim.

        Between what the daemon publishes and what shims do there is no order.
        """
        order: dict[str, list[str]] = {}
        for envelope in self._events:
            event = _unpacked(envelope.event)
            owner = "daemon"
            if envelope.topic.startswith("/tasks/"):
                owner = f"task {getattr(event, 'container_id', '')}"
            line = f"event {envelope.topic} {self.shown(event)}"
            order.setdefault(owner, []).append(self.normalised(line))
        return [line for owner in sorted(order) for line in order[owner]]

    # What may differ, under a name that does not.

    def shown(self, message: Any) -> str:
        return str(self.plain(message))

    def plain(self, value: Any, field: str = "") -> Any:
        """What a message says; of a time only whether it is one, or Go's zero."""
        match value:
            case protobuf.Timestamp():
                if value.seconds > 10**9:
                    return "some time"
                return "never" if value.seconds < 0 else f"{value.seconds}.{value.nanos:09}"
            case protobuf.Any():
                return self._any(value)
            case betterproto2.Message():
                plain = {
                    name: self.plain(inner, name)
                    for name, inner in vars(value).items()
                    if name[0] != "_"
                }
                return {name: inner for name, inner in plain.items() if inner}
            case int() if field == "pid" and value > 1:
                return f"pid#{value}"
            case list():
                plain_list = [self.plain(each) for each in value]
                return plain_list if field in _ORDERED else sorted(plain_list, key=_order)
            case dict():
                return {key: self.plain(value[key]) for key in sorted(value)}
            case bytes() if len(value) > 99:
                words = self.normalised(value.decode(errors="replace"))
                return f"{len(words)} bytes {hashlib.sha256(words.encode()).hexdigest()[:12]}"
        return value

    def _any(self, value: protobuf.Any) -> Any:
        if value.type_url.endswith("Metrics"):  # what is measured differs; that it is does not
            return {value.type_url: f"{len(value.value) > 0 and 'measured'}"}
        message = _unpacked(value)
        if message is value:
            return {"type_url": value.type_url, "value": self.plain(value.value)}
        return {value.type_url: self.plain(message)}

    def normalised(self, text: str) -> str:
        for found, name in self._names.items():
            text = text.replace(found, name)
        for pattern, name in (
            (r"ingest/[0-9a-f]{64}", "ingest/HASH"),
            (r"NAMESPACE(-other)?/\d+/", r"NAMESPACE\1/NUMBER/"),
            (r"extract-\d+-[\w-]{4} ", "extract-KEY "),
            (r"locked for \S+ \(since [^)]*\)", "locked"),
            (r"\((current|peak) usage: \d+, peak usage: \d+\)", "(usage)"),
            (r"/containerd/s/[0-9a-f]{64}", "/containerd/s/HASH"),
            (r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(\.\d+)?Z?", "TIME"),
        ):
            text = re.sub(pattern, name, text)
        return re.sub(
            r"(.)\1{99,}", lambda found: f"{found[1]}*{found.end() - found.start()}", text
        )

    # The end.

    async def clean_up(self) -> None:
        """Remove what the scenario left, without noting it down."""
        if self.daemon.process is None or self.daemon.process.poll() is not None:
            return  # the scenario was its end
        _elsewhere.set([])
        listed = await tasks.TasksStub(self.channel).list(tasks.ListTasksRequest())
        held = await containers.ContainersStub(self.channel).list(
            containers.ListContainersRequest()
        )
        # Not every task is listed, nor has every one a record by now.
        for name in {task.id for task in listed.tasks} | {each.id for each in held.containers}:
            await self.container(name)
            await self.tasks.resume(container_id=name)
            await self.tasks.kill(container_id=name, signal=9, all=True)
            await self.tasks.wait(container_id=name, patience=5)
            await self.tasks.delete(container_id=name)
            await self.containers.delete(id=name)
        with suppress(GRPCError):
            held = await sandboxes.StoreStub(self.channel).list(sandboxes.StoreListRequest())
            for name in {each.sandbox_id for each in held.list}:
                named = {"sandbox_id": name, "sandboxer": "shim"}
                await self.controllers.stop(**named)
                await self.controllers.shutdown(**named)
                await self.sandboxes.delete(sandbox_id=name)
        _elsewhere.set(None)
        with suppress(OSError):
            Path("/run/containerd/runc", self.namespace).rmdir()


def _order(shown: Any) -> str:
    return re.sub(r"pid#\d+", "", str(shown))  # which is a number by chance


def _unpacked(value: protobuf.Any | None) -> Any:
    """The message in `value`; itself if it is of no known type."""
    found = wellknown.from_any(value)
    message = None if found is None else wellknown.unpack(found)
    return value if message is None else message
