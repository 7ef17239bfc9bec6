"""What transfers are made of, without a daemon around it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import anyio

from taskd import snapshots
from taskd.codec import decode
from taskd.content import ContentStore
from taskd.errors import TaskdError
from taskd.events import Bus
from taskd.gc.collector import Collector
from taskd.metadata import Database, Descriptor, LeaseStore
from taskd.metadata.told import ToldImages
from taskd.proto.containerd.types.transfer import AuthResponse, AuthType
from taskd.proto.containerd.types.transfer import Progress as ProgressMessage
from taskd.transfer.progress import Progress
from taskd.transfer.service import Caller, RegistryImage, Transfers
from taskd.transfer.settings import TransferConfig
from taskd.transfer.store import Store
from taskd.transfer.streams import Stream
from taskd.transfer.unpacking import Layers
from taskd.wellknown import pack

__all__ = ["NAMESPACE", "Parts", "events"]

NAMESPACE = "n"


class Parts:
    """Stores in a folder, and what transfers between them; layers are looked at, not unpacked."""

    def __init__(self, folder: Path, database: Database, bus: Bus) -> None:
        self.folder = folder
        self.database = database
        self.bus = bus
        self.snapshotters = snapshots.load(database, bus, folder)
        self.use(ContentStore(database, folder / "content"))
        self.images = ToldImages(database, self.bus)
        self.leases = LeaseStore(database)
        self.applied: list[str] = []
        self.diff_ids: dict[str, str] = {}
        """What layers turn out to be, by their digests."""
        self.want_parents: set[str] = set()
        """What cannot be unpacked ahead."""
        self.fails: TaskdError | None = None
        self.applies_for = 0.0

    def use(self, content: ContentStore) -> None:
        """Keep content there from now on."""
        self.content = content
        self.collector = Collector(self.database, content, self.snapshotters)

    def transfers(self, **settings: Any) -> Transfers:
        return Transfers(
            self.content,
            self.images,
            self.leases,
            Layers(self.snapshotters, self),
            TransferConfig(**{"idle_timeout": 0.3, **settings}),
        )

    async def apply_ahead(
        self, namespace: str, layer: Descriptor, mounts: Sequence[Any]
    ) -> Descriptor | None:
        if layer.digest in self.want_parents:
            return None
        return await self.apply(namespace, layer, mounts)

    async def apply(self, namespace: str, layer: Descriptor, mounts: Sequence[Any]) -> Descriptor:
        self.content.info(namespace, layer.digest)
        self.applied.append(layer.digest)
        if self.fails:
            raise self.fails
        await anyio.sleep(self.applies_for)
        return Descriptor("", self.diff_ids[layer.digest], 1)

    def caller(self, stream: Stream | None = None, lease: str | None = None) -> Caller:
        return Caller(NAMESPACE, lease, Progress(stream))

    async def pull(self, name: str, store: Store | None = None, **settings: Any) -> None:
        """As a client that says that the registry speaks plain HTTP."""
        source = RegistryImage(name, default_scheme="http")
        await self.transfers(**settings).pull(source, store or Store(name), self.caller())

    async def pull_with(self, transfers: Transfers, name: str, store: Store) -> None:
        await transfers.pull(RegistryImage(name, default_scheme="http"), store, self.caller())

    async def pull_as(self, name: str, user: str, password: str) -> None:
        """As `pull`, of a client that says who it is when it is asked."""
        stream = Stream()

        async def answer() -> None:
            async for _ in stream.outgoing:
                said = AuthResponse(auth_type=AuthType.CREDENTIALS, username=user, secret=password)
                await stream.incoming.send(pack(said))

        async with anyio.create_task_group() as group:
            group.start_soon(answer)
            source = RegistryImage(name, default_scheme="http", credentials=stream)
            await self.transfers().pull(source, Store(name), self.caller())

    async def digests(self) -> set[str]:
        return {info.digest for info in await self.content.list(NAMESPACE)}

    def files(self) -> list[Path]:
        """Of all content, and of what is being written."""
        folder = self.folder / "content"
        return sorted(path for path in folder.rglob("*") if path.is_file())

    async def left(self) -> list[str]:
        """What there is but images and what they refer to, once garbage has been collected."""
        await self.collector.collect()
        found = [f"lease {lease.id}" for lease in await self.leases.list(NAMESPACE)]
        found += [f"write {each.ref}" for each in await self.content.statuses(NAMESPACE)]
        return found


def events(stream: Stream) -> list[ProgressMessage]:
    """What a client has been told so far."""
    found = []
    while True:
        try:
            value = stream.outgoing.receive_nowait()
        except Exception:
            return found
        assert value.type_url == pack(ProgressMessage()).type_url
        found.append(decode(ProgressMessage, value.value))
