"""What goes from where to where. Source: containerd's ``core/transfer/local/transfer.go``."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
from anyio import to_thread

from taskd.content import ContentStore
from taskd.errors import Cancelled, TaskdError
from taskd.images.descriptors import Descriptor
from taskd.metadata import LeaseStore
from taskd.metadata.told import ToldImages
from taskd.proto.containerd.types.transfer import AuthRequest, AuthResponse, AuthType
from taskd.together import together
from taskd.transfer.exporting import Options, export_archive
from taskd.transfer.importing import import_archive
from taskd.transfer.leases import Leases
from taskd.transfer.progress import Progress
from taskd.transfer.pull import pull
from taskd.transfer.push import push
from taskd.transfer.settings import TransferConfig
from taskd.transfer.store import Records, Store
from taskd.transfer.streams import Sender, Stream, message, received
from taskd.transfer.unpacking import Layers
from taskd.transfer.writing import Contents

if TYPE_CHECKING:
    from taskd.registry.authorization import Credentials
    from taskd.registry.resolver import Registry

__all__ = ["Caller", "ExportStream", "ImportStream", "RegistryImage", "Transfers"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Caller:
    """On whose behalf something is transferred."""

    namespace: str
    lease: str | None
    progress: Progress


@dataclass(frozen=True, slots=True)
class RegistryImage:
    """An image of a registry; `credentials` is a stream on which the client says who it is.

    With `dumped` it is told on the stream `logs`, or else the log is, what is asked and answered,
    and with `traced` the log tells of connections.
    """

    name: str
    host_dir: Path | None = None
    default_scheme: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    credentials: Stream | None = None
    dumped: bool = False
    traced: bool = False
    logs: Stream | None = None


@dataclass(frozen=True, slots=True)
class ImportStream:
    """An archive that a client sends."""

    stream: Stream
    media_type: str = ""
    compress: bool = False


@dataclass(frozen=True, slots=True)
class ExportStream:
    """An archive that a client gets."""

    stream: Stream
    options: Options = field(default_factory=Options)


class Transfers:
    def __init__(
        self,
        content: ContentStore,
        images: ToldImages,
        leases: LeaseStore,
        layers: Layers,
        config: TransferConfig,
    ) -> None:
        self._content = content
        self._images = images
        self._leases = Leases(leases)
        self._layers = layers
        self._config = config
        self._downloads = anyio.CapacityLimiter(config.max_concurrent_downloads)
        self._uploads = anyio.CapacityLimiter(config.max_concurrent_uploaded_layers)

    async def pull(self, source: RegistryImage, store: Store, caller: Caller) -> None:
        """From a registry into the image store; see `pull.pull`."""
        async with (
            self._contents(caller, source.name) as own,
            self._registry(source, "failed to resolve image") as registry,
        ):
            await pull(
                registry,
                store,
                own,
                self._records(caller),
                self._layers,
                self._downloads,
                caller.progress,
            )

    async def push(self, store: Store, destination: RegistryImage, caller: Caller) -> None:
        """From the image store to a registry; see `push.push`."""
        async with self._registry(destination) as registry:
            await push(
                store,
                registry,
                self._content,
                caller.namespace,
                self._records(caller),
                self._uploads,
                caller.progress,
            )

    async def import_archive(self, source: ImportStream, store: Store, caller: Caller) -> None:
        """From an archive into the image store; see `importing.import_archive`."""
        try:
            async with self._contents(caller, "") as own, aclosing(received(source.stream)) as data:
                await import_archive(
                    data,
                    source.media_type,
                    source.compress,
                    store,
                    own,
                    self._records(caller),
                    self._layers,
                    caller.progress,
                )
        finally:
            source.stream.close()

    async def export_archive(self, store: Store, target: ExportStream, caller: Caller) -> None:
        """From the image store into an archive; see `exporting.export_archive`."""
        async with self._contents(caller, ""), _sending(target.stream) as sender:
            await export_archive(
                store,
                target.options,
                sender.send,
                self._content,
                caller.namespace,
                self._records(caller),
                caller.progress,
            )

    async def tag(self, store: Store, other: Store, caller: Caller) -> None:
        """Give an image of the image store another name, or several. Raises `NotFound`."""
        records = self._records(caller)
        image = records.get(store)
        target = Descriptor.of(image.target)
        await records.put(other.names(target), target, other.labels)

    async def echo(self, source: ImportStream, target: ExportStream) -> None:
        """Send back what comes, as it is."""
        try:
            async with aclosing(received(source.stream)) as data, _sending(target.stream) as sender:
                async for piece in data:
                    await sender.send(piece)
        finally:
            source.stream.close()

    def _records(self, caller: Caller) -> Records:
        return Records(self._images, caller.namespace)

    @asynccontextmanager
    async def _contents(self, caller: Caller, subject: str) -> AsyncIterator[Contents]:
        async with self._leases.held(caller.namespace, caller.lease, subject) as lease:
            yield Contents(self._content, caller.namespace, lease)

    @asynccontextmanager
    async def _registry(self, image: RegistryImage, doing: str = "") -> AsyncIterator[Registry]:
        """What has that image; errors say what it was asked for in, if that is given."""
        # It takes aiohttp, which is not loaded for those who transfer nothing.
        resolver = await to_thread.run_sync(import_module, "taskd.registry.resolver")
        lock = anyio.Lock()

        async def ask(host: str) -> Credentials:
            assert image.credentials is not None
            async with lock:
                return await _credentials(image.credentials, image.name, host)

        async with AsyncExitStack() as stack:
            if image.credentials is not None:
                stack.callback(image.credentials.close)
            dump = _logged
            if image.logs is not None:
                dump = (await stack.enter_async_context(_sending(image.logs))).send
            try:
                registry: Registry = resolver.Registry(
                    image.name,
                    host_dir=image.host_dir or self._config.config_path,
                    default_scheme=image.default_scheme,
                    headers=image.headers,
                    ask=None if image.credentials is None else ask,
                    idle_seconds=self._config.idle_timeout,
                    dump=dump if image.dumped else None,
                    traced=image.traced,
                )
                await stack.enter_async_context(registry)
            except TaskdError as exc:
                raise exc.within(doing) if doing else exc from None
            yield registry


@asynccontextmanager
async def _sending(stream: Stream) -> AsyncIterator[Sender]:
    sender = Sender(stream)
    try:
        async with together() as group:
            group.start_soon(sender.run)
            yield sender
            group.cancel_scope.cancel()
    finally:
        stream.close()


async def _logged(content: bytes) -> None:
    for line in content.decode(errors="replace").splitlines():
        _log.info("%s", line)


async def _credentials(stream: Stream, name: str, host: str) -> Credentials:
    """What the client answers, when it is asked. Raises `Unknown`, `Cancelled`."""
    from taskd.registry.authorization import AuthorizationFailed, Credentials

    await stream.send(AuthRequest(host=host, reference=name))
    value = await stream.receive()
    if value is None:
        raise Cancelled
    answer = message(value, AuthResponse)
    if answer is None:
        raise AuthorizationFailed(f'the client answers "{value.type_url}" when asked who it is')
    match answer.auth_type:
        case AuthType.CREDENTIALS:
            return Credentials(answer.username, answer.secret)
        case AuthType.REFRESH:
            return Credentials(secret=answer.secret)
        case AuthType.HEADER:
            return Credentials(header=answer.secret)
    return Credentials()
