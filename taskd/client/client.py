"""The client: containers, images and events of one namespace of a daemon."""

from __future__ import annotations

import logging
import os
import shutil
import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, TypedDict, Unpack

from taskd import identifiers
from taskd.client import address as addresses
from taskd.client import events, logs, spec
from taskd.client.channel import Channel, naming
from taskd.client.cleanup import Made, whatever_happens
from taskd.client.container import Container
from taskd.client.stats import Stats
from taskd.client.streams import Streams
from taskd.errors import InvalidArgument, NotFound, Unimplemented
from taskd.labels import LOG, REMOVE
from taskd.proto.containerd.runc.v1 import Options as RuncOptions
from taskd.proto.containerd.services.containers.v1 import (
    Container as Record,
)
from taskd.proto.containerd.services.containers.v1 import (
    ContainerRuntime,
    ContainersStub,
    CreateContainerRequest,
    DeleteContainerRequest,
    GetContainerRequest,
    ListContainersRequest,
)
from taskd.proto.containerd.services.tasks.v1 import (
    CreateTaskRequest,
    GetRequest,
    ListTasksRequest,
    MetricsRequest,
    TasksStub,
)
from taskd.proto.containerd.services.version.v1 import VersionResponse, VersionStub
from taskd.proto.containerd.types import Descriptor, Mount
from taskd.proto.google.protobuf import Any as AnyMessage
from taskd.proto.google.protobuf import Empty
from taskd.wellknown import pack, to_any

if TYPE_CHECKING:
    import betterproto2

    from taskd.client.images import Contents, Images
    from taskd.client.sandboxes import Sandboxes
    from taskd.client.stores import Content, Leases, Namespaces, Snapshots
    from taskd.client.trace import Conversation
    from taskd.proto.taskd.v1 import FollowRequest

__all__ = ["Client", "Options", "is_path"]

log = logging.getLogger("taskd.client")

PROCESS, OCI, RUNC = "io.taskd.process.v1", "io.taskd.oci.v1", "io.containerd.runc.v2"


class Options(TypedDict, total=False):
    """How a container is to be, but for what it is made of and what it runs."""

    id: str
    """By default one that nobody has."""
    env: Mapping[str, str] | Sequence[str]
    """Beside the image's."""
    mounts: Sequence[str | Mapping[str, Any]]
    """``SOURCE:DESTINATION[:ro]``, ``tmpfs:DESTINATION``, or the OCI specification's objects."""
    user: str
    """``USER[:GROUP]``, by name or number; by default the image's, or this process's."""
    cwd: str
    tty: bool
    """It has a terminal, and with that one output."""
    stdin: bool
    """It has an input: `Container.stdin`."""
    output: Literal["stream", "log", "none"] | Path
    """Where its output goes: to this client, by default; into a log that is kept, for
    `Container.logs`; nowhere; or into a file."""
    limits: spec.Limits
    network: spec.Network
    """None of its own, or the host's."""
    read_only: bool
    """Its root filesystem cannot be written to."""
    hostname: str
    labels: Mapping[str, str]
    remove: bool
    """The daemon removes it once it has ended, whoever is still there then: taskd's alone."""
    annotations: Mapping[str, str]
    runtime: str
    """A name (``io.example.thing.v1``), or the path of a shim's executable."""
    runtime_options: betterproto2.Message | AnyMessage | None
    snapshotter: str
    sandbox: str
    """Name of the sandbox that it is in."""
    checkpoint: Path | str | Descriptor
    """What it goes on from: see `Container.checkpoint`."""
    amend: spec.Amendment
    """The last word on its specification: what is merged into it, or a function of it."""
    log_size: int
    """Bytes after which a log is put aside."""
    log_files: int
    """How many of them are kept."""


class Client:
    """See `taskd.client.connect`. What its methods raise are the classes of `taskd.errors`."""

    def __init__(
        self,
        address: Path | str | None = None,
        namespace: str | None = None,
        *,
        patience: float = 10.0,
    ) -> None:
        """Use it in ``async with``. A call waits `patience` seconds for a daemon that restarts."""
        self.address = addresses.find(address)
        self.namespace = addresses.namespace(namespace)
        self.channel = Channel(self.address, namespace=self.namespace, patience=patience)
        """For stubs of one's own; their errors are taskd's as well."""
        self.containers = ContainersStub(self.channel)
        self.tasks = TasksStub(self.channel)
        self._streams: set[Streams] = set()

    async def __aenter__(self) -> Self:
        await self.channel.connect()
        return self

    async def __aexit__(self, *_: object) -> None:
        for each in self._streams:
            each.close(remove=False)
        self.channel.close()

    # Whoever lists containers need not load them.

    @cached_property
    def namespaces(self) -> Namespaces:
        from taskd.client.stores import Namespaces

        return Namespaces(self.channel)

    @cached_property
    def leases(self) -> Leases:
        from taskd.client.stores import Leases

        return Leases(self.channel)

    @cached_property
    def content(self) -> Content:
        from taskd.client.stores import Content

        return Content(self.channel)

    @cached_property
    def images(self) -> Images:
        from taskd.client.images import Images

        return Images(self.channel, self.content, self.leases)

    @cached_property
    def sandboxes(self) -> Sandboxes:
        from taskd.client.sandboxes import Sandboxes

        return Sandboxes(self.channel)

    def keep(self, io: Streams) -> None:
        """Close `io` with the client, at the latest."""
        self._streams = {each for each in self._streams if not each.closed} | {io}

    async def version(self) -> VersionResponse:
        """The daemon's."""
        return await self.channel.persist(lambda: VersionStub(self.channel).version(Empty()))

    async def is_taskd(self) -> bool:
        """Whether it is a taskd, which has a journal of events, and its own runtimes."""
        return await events.journal(self.channel) is not None

    def snapshots(self, snapshotter: str = "overlayfs") -> Snapshots:
        """The snapshots of one snapshotter."""
        from taskd.client.stores import Snapshots

        return Snapshots(self.channel, snapshotter)

    def events(
        self,
        *filters: str,
        since: int | datetime | None = None,
        after: int | None = None,
        follow: bool = True,
        everywhere: bool = False,
        reconnect: bool = True,
    ) -> events.Events:
        """What happens in this namespace, or `everywhere`, restarts of the daemon included.

        `filters` are in containerd's language; one of them has to match. From a taskd one can have
        what was before: `since` a time (nanoseconds, or a datetime), or `after` a position; without
        `follow` it ends with what has happened. Raises `Unimplemented` if it is a containerd.
        """
        wanted = list(filters)
        if not everywhere:
            here = f'namespace=="{self.namespace}"'
            wanted = [f"{each},{here}" for each in wanted] or [here]
        return events.Events(
            self.channel,
            wanted,
            since=since,
            after=after,
            follow=follow,
            reconnect=reconnect,
        )

    def conversation(self, request: FollowRequest) -> Conversation:
        """What a taskd, its clients and its shims say to each other from now on."""
        from taskd.client.trace import Conversation

        return Conversation(self.channel, request)

    def run(
        self, source: str | Path, args: Sequence[str] = (), **options: Unpack[Options]
    ) -> Made[Container]:
        """Make a container and start it: ``async with`` removes it, ``await`` lets it stay.

        `source` is the name of an image, or the path of a root filesystem; `args` is what it runs,
        in the image's stead. As an ordinary user it is a plain process of `io.taskd.process.v1`.
        """

        async def make() -> Container:
            made = await self._create(source, args, options)
            try:
                await made.start()
            except BaseException:
                await whatever_happens(made.leave())
                raise
            return made

        return Made(make)

    def create(
        self, source: str | Path, args: Sequence[str] = (), **options: Unpack[Options]
    ) -> Made[Container]:
        """The same, but not started yet."""
        return Made(lambda: self._create(source, args, options))

    async def get(self, id: str) -> Container:  # noqa: A002
        """The container of that name, whoever has made it. Raises `NotFound`."""

        async def get() -> Record:
            found: Record = (await self.containers.get(GetContainerRequest(id=id))).container
            return found

        with naming("container", id):
            container = Container(self, await self.channel.persist(get))
        with suppress(NotFound):
            container.found(await container.state())
        return container

    async def list(self, *filters: str) -> Sequence[Container]:
        """All of them, with the state of their tasks: in containerd's language, ``labels.a==b``."""

        async def get() -> Sequence[Container]:
            records = await self.containers.list(ListContainersRequest(filters=list(filters)))
            tasks = await self.tasks.list(ListTasksRequest())
            by_id = {task.id: task for task in tasks.tasks}
            made = [Container(self, record) for record in records.containers]
            for container in made:
                container.found(by_id.get(container.id))
            return made

        return await self.channel.persist(get)

    async def stats(self, *ids: str) -> Sequence[Stats]:
        """What all of them use, or those that are named, of those that run and are measured."""
        filters = [f'id=="{each}"' for each in ids]
        found = (await self.tasks.metrics(MetricsRequest(filters=filters))).metrics
        return [stats for each in found if (stats := Stats.from_message(each))]

    async def roots(self, record: Record) -> Sequence[Path]:
        """The folders that make up a container's root filesystem, the topmost first."""
        if record.snapshot_key:
            snapshots = self.snapshots(record.snapshotter)
            return spec.roots(await snapshots.mounts(record.snapshot_key))
        root = Container(self, record).spec.get("root", {}).get("path", "")
        return [Path(root)] if root.startswith("/") else []

    async def _create(self, source: str | Path, args: Sequence[str], options: Options) -> Container:
        id = options.get("id") or uuid.uuid4().hex[:12]  # noqa: A001
        identifiers.validate(id)
        if options.get("remove") and not await self.is_taskd():
            raise Unimplemented(
                f"the daemon at {self.address} removes no container that has ended: it is no taskd",
                verbatim=True,
            )
        chosen: Options = {**options, "id": id}
        if is_path(source):
            rootfs = Path(source).absolute()  # noqa: ASYNC240 - one stat
            if not rootfs.is_dir():
                raise NotFound(f'root filesystem "{rootfs}"')
            return await self._made(chosen, args, rootfs, [])
        async with self.leases.hold():
            return await self._of_image(str(source), args, chosen)

    async def _of_image(self, name: str, args: Sequence[str], chosen: Options) -> Container:
        image = await self.images.get(name)
        snapshots = self.snapshots(chosen.get("snapshotter") or "overlayfs")
        contents = await self.images.unpack(image, snapshots)
        mounts = await snapshots.prepare(chosen["id"], contents.chain[-1] if contents.chain else "")
        try:
            return await self._made(chosen, args, "rootfs", mounts, image.name, contents)
        except BaseException:
            await whatever_happens(_quietly(snapshots.remove(chosen["id"])))
            raise

    async def _made(
        self,
        chosen: Options,
        args: Sequence[str],
        rootfs: Path | str,
        mounts: Sequence[Mount],
        image: str = "",
        contents: Contents | None = None,
    ) -> Container:
        """The container on its root filesystem, with its task."""
        runtime = chosen.get("runtime") or _usual_runtime()
        roots = spec.roots(mounts) or [Path(rootfs)]
        document = self._specification(chosen, args, rootfs, roots, contents, runtime)
        labels = dict(chosen.get("labels") or {})
        output = chosen.get("output", "stream")
        if output == "log":
            labels[LOG] = str(logs.usual(self.namespace, chosen["id"]))
        if chosen.get("remove"):
            labels[REMOVE] = chosen["id"]
        given = chosen.get("runtime_options")
        record = Record(
            id=chosen["id"],
            labels=labels,
            image=image,
            runtime=ContainerRuntime(name=runtime, options=_any(given)),
            spec=spec.packed("Spec", document),
            snapshotter=(chosen.get("snapshotter") or "overlayfs") if mounts else "",
            snapshot_key=chosen["id"] if mounts else "",
            sandbox=chosen.get("sandbox", ""),
        )
        with naming("container", chosen["id"]):
            made = (
                await self.containers.create(CreateContainerRequest(container=record))
            ).container
        container = Container(self, made)
        try:
            await self._task(container, chosen, mounts)
        except BaseException:
            await whatever_happens(self._undo(container))
            raise
        return container

    async def _task(self, container: Container, chosen: Options, mounts: Sequence[Mount]) -> None:
        output = chosen.get("output", "stream")
        io = container.give(stdin=chosen.get("stdin", False), output=output == "stream")
        self.keep(io)
        where: dict[str, Any] = {name: io.path(name) for name in ("stdin", "stdout", "stderr")}
        if output == "log":
            place = logs.uri(
                Path(container.labels[LOG]),
                max_size=chosen.get("log_size", 0),
                max_files=chosen.get("log_files", 0),
            )
            where |= {"stdout": place, "stderr": place}
        elif isinstance(output, Path):
            place = f"file://{output.absolute()}"
            where |= {"stdout": place, "stderr": place}
        checkpoint = chosen.get("checkpoint")
        options = _any(chosen.get("runtime_options"))
        if isinstance(checkpoint, Path | str):
            options = _restoring(Path(checkpoint))
        with naming("container", container.id):
            created = await self.tasks.create(
                CreateTaskRequest(
                    container_id=container.id,
                    rootfs=list(mounts),
                    terminal=container.tty,
                    options=options,
                    checkpoint=checkpoint if isinstance(checkpoint, Descriptor) else None,
                    **where,
                )
            )
        container.pid = created.pid

    async def _undo(self, container: Container) -> None:
        """A container whose task could not be made, or perhaps was made, and we did not hear."""
        try:
            await self.tasks.get(GetRequest(container_id=container.id))
        except NotFound:
            container.forget()
            container.remove_log()
            await _quietly(self.containers.delete(DeleteContainerRequest(id=container.id)))
        else:
            await container.leave()

    def _specification(
        self,
        chosen: Options,
        args: Sequence[str],
        rootfs: Path | str,
        roots: Sequence[Path],
        contents: Contents | None,
        runtime: str,
    ) -> dict[str, Any]:
        of_image: Mapping[str, Any] = contents.process if contents else {}
        command = list(args or of_image.get("Cmd") or ())
        command = [*(of_image.get("Entrypoint") or ()), *command]
        if not command:
            raise InvalidArgument(
                f'container "{chosen["id"]}": no command: neither arguments nor an image say '
                "what it is to run",
                verbatim=True,
            )
        given = chosen.get("env") or ()
        own = [f"{k}={v}" for k, v in given.items()] if isinstance(given, Mapping) else list(given)
        said = {each.partition("=")[0] for each in own}
        inherited = [
            each for each in of_image.get("Env") or () if each.partition("=")[0] not in said
        ]
        who = chosen.get("user") or of_image.get("User") or ("0:0" if contents else "")
        process = spec.process(
            command,
            env=[*inherited, *own],
            cwd=chosen.get("cwd") or of_image.get("WorkingDir") or "/",
            user=spec.user_in(who, roots) if who else None,
            tty=chosen.get("tty", False),
        )
        root = os.geteuid() == 0
        document = spec.container(
            process,
            rootfs,
            cgroup=f"/{self.namespace}/{chosen['id']}" if root else "",
            read_only=chosen.get("read_only", False),
            network=chosen.get("network", "none"),
            mounts=chosen.get("mounts") or (),
            limits=chosen.get("limits"),
            hostname=chosen.get("hostname", ""),
            annotations=chosen.get("annotations"),
        )
        if not root and runtime != PROCESS:
            document = spec.rootless(document)
        return spec.amended(document, chosen.get("amend"))


def is_path(source: str | Path) -> bool:
    """Whether it is a root filesystem's, and not the name of an image."""
    return isinstance(source, Path) or source.startswith(("/", "./", "../")) or source == "."


def _any(options: betterproto2.Message | AnyMessage | None) -> AnyMessage | None:
    if options is None or isinstance(options, AnyMessage):
        return options
    return to_any(pack(options))


def _restoring(folder: Path) -> AnyMessage | None:
    return to_any(pack(RuncOptions(criu_image_path=str(folder.absolute()))))


async def _quietly(call: Any) -> None:
    """What is to go may have gone."""
    with suppress(NotFound, Unimplemented):
        await call


def _usual_runtime() -> str:
    """What runs containers here, as far as one can see from this side."""
    if os.geteuid() != 0:
        log.warning(
            "without root there are no containers: %s runs plain processes of this user", PROCESS
        )
        return PROCESS
    return RUNC if shutil.which("containerd-shim-runc-v2") else OCI
