"""Snapshots of an image's layers, each as soon as it is there.

Source: containerd's ``core/unpack``.
"""

from __future__ import annotations

import hashlib
import logging
import secrets
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, Protocol

import anyio

from taskd.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound, TaskdError
from taskd.errors import Unknown as UnknownError
from taskd.images.descriptors import Descriptor
from taskd.images.platforms import Platform, normalized
from taskd.images.tree import Images
from taskd.metadata import Descriptor as Target
from taskd.together import together
from taskd.transfer.store import Unpack
from taskd.transfer.writing import Contents

__all__ = ["Applier", "Layers", "Snapshots", "Unpacker"]

_log = logging.getLogger(__name__)

USUAL = "overlayfs"

_REF = "containerd.io/snapshot.ref"
_INHERITED = "containerd.io/snapshot/"
_DIFF_ID = "containerd.io/snapshot/diff-id"
_PARENT = "containerd.io/snapshot/parent-chain-id"
_UNCOMPRESSED = "containerd.io/uncompressed"
_REBASE = "rebase"
"""What a snapshotter says of which a layer may be unpacked before the one below is there."""
_TRIES = 3

Fetch = Callable[[Descriptor], Coroutine[Any, Any, None]]
"""Has a layer's content, which may be there."""


class Applier(Protocol):
    """Unpacks layers of a namespace's content onto mounts; answers what they were uncompressed."""

    async def apply(self, namespace: str, layer: Target, mounts: Sequence[Any], /) -> Target: ...

    async def apply_ahead(
        self, namespace: str, layer: Target, mounts: Sequence[Any], /
    ) -> Target | None:
        """Before those below are there; None if it depends on them."""


class Snapshots(Protocol):
    """A snapshotter, as far as it is used here."""

    @property
    def capabilities(self) -> Sequence[str]: ...

    async def prepare(
        self,
        namespace: str,
        key: str,
        parent: str = "",
        labels: Mapping[str, str] | None = None,
        lease: str | None = None,
    ) -> Sequence[Any]: ...

    async def commit(
        self,
        namespace: str,
        name: str,
        key: str,
        parent: str = "",
        labels: Mapping[str, str] | None = None,
        lease: str | None = None,
    ) -> None: ...

    async def remove(self, namespace: str, key: str, lease: str | None = None) -> None: ...

    def stat(self, namespace: str, name: str) -> object: ...


class Layers:
    """What makes layers into snapshots, for all transfers: each only once at a time."""

    def __init__(self, snapshotters: Mapping[str, Snapshots], applier: Applier) -> None:
        self.snapshotters = snapshotters
        self.applier = applier
        self._locks: dict[tuple[str, str, str], tuple[anyio.Lock, int]] = {}

    @asynccontextmanager
    async def alone(self, namespace: str, snapshotter: str, name: str) -> AsyncIterator[None]:
        """While the context is open nobody else makes that snapshot."""
        key = namespace, snapshotter, name
        lock, users = self._locks.get(key, (anyio.Lock(), 0))
        self._locks[key] = lock, users + 1
        try:
            async with lock:
                yield
        finally:
            lock, users = self._locks.pop(key)
            if users > 1:
                self._locks[key] = lock, users - 1


class Unpacker:
    """Unpacks the images of one transfer."""

    def __init__(
        self, layers: Layers, contents: Contents, images: Images, unpacks: Sequence[Unpack]
    ) -> None:
        """Raises `InvalidArgument` if there is no snapshotter for any of `unpacks`."""
        self._layers = layers
        self._contents = contents
        self._images = images
        self._systems: dict[str, str] = {}
        """The snapshotter for each operating system."""
        for unpack in unpacks:
            name = unpack.snapshotter or USUAL
            system = normalized(unpack.platform).os
            if name in layers.snapshotters and system == "linux":
                self._systems.setdefault(system, name)
            else:
                _log.warning("nothing is unpacked for %s with snapshotter %s", system, name)
        if not self._systems:
            words = "unable to initialize unpacker: no unpack platforms defined"
            raise InvalidArgument(words)

    async def unpack(self, config: Descriptor, layers: Sequence[Descriptor], fetch: Fetch) -> None:
        """Have the layers' content, and the snapshots if they are for this machine.

        Raises `InvalidArgument`, `FailedPrecondition` for a layer that is not what it should be,
        and what `fetch`, the snapshotter and the differ raise.
        """
        platform, diff_ids, kind = await self._images.layers_of(config)
        if len(diff_ids) != len(layers):
            words = "number of layers and diffIDs don't match"
            raise InvalidArgument(f"{words}: {len(layers)} != {len(diff_ids)}")
        snapshotter = self._snapshotter(platform, kind)
        if snapshotter is None:
            await _fetch_all(layers, fetch)
            return
        chain = _chain(diff_ids)
        making = _Making(self._layers, self._contents, self._images, snapshotter)
        async with together() as group:
            below = anyio.Event()
            below.set()
            for number, layer in enumerate(layers):
                parent = chain[number - 1] if number else ""
                made = _Layer(layer, diff_ids[number], chain[number], parent, below, fetch)
                group.start_soon(making.make, made)
                below = made.done
        if chain:
            label = f"containerd.io/gc.ref.snapshot.{snapshotter}"
            await self._images.set_labels(config.digest, {label: chain[-1]})

    def _snapshotter(self, platform: Platform, kind: str) -> str | None:
        if kind not in ("", "layers"):
            return None
        return self._systems.get(normalized(platform).os)


class _Layer:
    """One layer of an image on its way to be a snapshot."""

    def __init__(
        self,
        descriptor: Descriptor,
        diff_id: str,
        name: str,
        parent: str,
        below: anyio.Event,
        fetch: Fetch,
    ) -> None:
        """`below` is set once there is the snapshot `parent`, if that is not empty."""
        self.descriptor = descriptor
        self.diff_id = diff_id
        self.name = name
        self.parent = parent
        self.below = below
        self.done = anyio.Event()
        self._fetch = fetch
        self._is_here = False

    @property
    def labels(self) -> dict[str, str]:
        found = {
            key: value
            for key, value in self.descriptor.annotations.items()
            if key.startswith(_INHERITED)
        }
        found |= {_REF: self.name, _DIFF_ID: self.diff_id}
        return found | ({_PARENT: self.parent} if self.parent else {})

    async def content(self) -> None:
        """Have its content."""
        if not self._is_here:
            await self._fetch(self.descriptor)
            self._is_here = True


class _Making:
    """Snapshots of one image."""

    def __init__(
        self, layers: Layers, contents: Contents, images: Images, snapshotter: str
    ) -> None:
        self._layers = layers
        self._contents = contents
        self._images = images
        self._name = snapshotter
        self._snapshots = layers.snapshotters[snapshotter]

    async def make(self, layer: _Layer) -> None:
        """Make the snapshot of a layer, unless there is one.

        Content comes, and layers are unpacked, in any order, and committed from the lowest on.
        What needs the layers below, as few layers do, is unpacked anew once they are there.
        """
        async with self._layers.alone(self._contents.namespace, self._name, layer.name):
            ahead = bool(layer.parent) and _REBASE in self._snapshots.capabilities
            if not (ahead and await self._make(layer, ahead=True)):
                if not self._is_there(layer.name):
                    await layer.content()
                await layer.below.wait()
                await self._make(layer, ahead=False)
        layer.done.set()

    async def _make(self, layer: _Layer, *, ahead: bool) -> bool:
        """Returns whether there is the snapshot now, which there always is if not `ahead`."""
        namespace, lease = self._contents.namespace, self._contents.lease
        labels = layer.labels
        prepared = await self._prepare(layer.name, "" if ahead else layer.parent, labels)
        if prepared is None:
            return True
        key, mounts = prepared
        try:
            await layer.content()
            if not await self._fill(layer, key, mounts, ahead=ahead):
                await self._discard(key)
                return False
            await layer.below.wait()
            parent = layer.parent if ahead else ""
            try:
                await self._snapshots.commit(namespace, layer.name, key, parent, labels, lease)
            except AlreadyExists:
                await self._snapshots.remove(namespace, key, lease)
        except BaseException:
            with anyio.CancelScope(shield=True):
                await self._discard(key)
            raise
        await self._images.set_labels(layer.descriptor.digest, {_UNCOMPRESSED: layer.diff_id})
        return True

    def _is_there(self, name: str) -> bool:
        with suppress(NotFound):
            self._snapshots.stat(self._contents.namespace, name)
            return True
        return False

    async def _prepare(
        self, name: str, parent: str, labels: Mapping[str, str]
    ) -> tuple[str, Sequence[Any]] | None:
        """Key and mounts of a new snapshot, or None if there is one of that name.

        The lease holds either.
        """
        namespace, lease = self._contents.namespace, self._contents.lease
        for _ in range(_TRIES):
            key = f"extract-{time.time_ns() % 10**9}-{secrets.token_urlsafe(3)} {name}"
            try:
                return key, await self._snapshots.prepare(namespace, key, parent, labels, lease)
            except AlreadyExists:
                if self._is_there(name):
                    return None
            except TaskdError as exc:
                words = f'failed to prepare extraction snapshot "{key}"'
                raise exc.within(words) from exc
        raise UnknownError(f"unable to prepare extraction snapshot for {name}")

    async def _fill(self, layer: _Layer, key: str, mounts: Sequence[Any], *, ahead: bool) -> bool:
        """Unpack it; returns whether that can be."""
        applier, descriptor = self._layers.applier, layer.descriptor
        apply = applier.apply_ahead if ahead else applier.apply
        try:
            found = await apply(self._contents.namespace, descriptor, mounts)
        except TaskdError as exc:
            raise exc.within(
                f"failed to extract layer ({descriptor.media_type} {descriptor.digest}) to "
                f'{self._name} as "{key}"'
            ) from exc
        if found is None:
            return False
        if found.digest != layer.diff_id:
            words = f'wrong diff id "{found.digest}" calculated on extraction "{layer.diff_id}"'
            raise FailedPrecondition(f"{words}, desc {descriptor.digest}", verbatim=True)
        return True

    async def _discard(self, key: str) -> None:
        try:
            await self._snapshots.remove(self._contents.namespace, key, self._contents.lease)
        except TaskdError as exc:
            _log.error('failed to cleanup "%s": %s', key, exc)


def _chain(diff_ids: Sequence[str]) -> list[str]:
    """The names of snapshots, each of which says what is below it (OCI's ``ChainID``)."""
    chain: list[str] = []
    for diff_id in diff_ids:
        if chain:
            pair = f"{chain[-1]} {diff_id}".encode()
            chain.append(f"sha256:{hashlib.sha256(pair).hexdigest()}")
        else:
            chain.append(diff_id)
    return chain


async def _fetch_all(layers: Sequence[Descriptor], fetch: Fetch) -> None:
    async with together() as group:
        for layer in layers:
            group.start_soon(fetch, layer)
