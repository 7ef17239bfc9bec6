"""``Apply`` and ``Diff``. Sources: containerd's ``diff/apply`` and ``diff/walking/differ.go``."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, suppress
from pathlib import Path

import anyio

from taskd.content import ContentStore, Info, Writer
from taskd.diff import child, media
from taskd.diff.limits import Limits
from taskd.errors import AlreadyExists, NotFound, TaskdError
from taskd.metadata import Descriptor
from taskd.types import Mount

__all__ = ["UNCOMPRESSED", "Differ"]

UNCOMPRESSED = "containerd.io/uncompressed"
"""Label of a compressed layer: the digest of the tar in it."""


class Differ:
    """Works with the blobs of `content`."""

    def __init__(self, content: ContentStore, place: Path, limits: Limits) -> None:
        """`place` is a folder to mount in, which is made; nobody else sees what. Blocks."""
        for each in (place, place / "left", place / "right"):
            each.mkdir(mode=0o700, exist_ok=True)
        self._content = content
        self._place = place
        self._limits = limits
        # More would only wait for each other.
        self._turns = anyio.CapacityLimiter(max(2, os.cpu_count() or 2))

    async def apply(
        self, namespace: str, layer: Descriptor, mounts: Iterable[Mount], *, sync: bool = False
    ) -> Descriptor:
        """Unpack a layer onto mounts; returns the descriptor of the tar in it.

        With one overlay mount it goes into its upper directory. With `sync` it is on the disk on
        return. Several may be unpacked at once. Raises `NotFound` for a blob that there is not,
        `ResourceExhausted` for a layer that goes beyond the limits, and `Unknown`; then a part of
        it has been unpacked.
        """
        done = await self._apply(namespace, layer, mounts, sync=sync)
        return Descriptor(media.LAYER, done.digest, done.size)

    async def apply_ahead(
        self, namespace: str, layer: Descriptor, mounts: Iterable[Mount]
    ) -> Descriptor | None:
        """Unpack a layer into a folder that will be the upper one of an overlay.

        `mounts` bind that folder. It is as if it had been applied to that overlay; None if it
        depends on what will be below. Otherwise as `apply`.
        """
        (folder,) = mounts
        upper = Mount("overlay", "overlay", options=(f"upperdir={folder.source}",))
        done = await self._apply(namespace, layer, [upper], ahead=True)
        return Descriptor(media.LAYER, done.digest, done.size) if done.digest else None

    async def _apply(
        self,
        namespace: str,
        layer: Descriptor,
        mounts: Iterable[Mount],
        *,
        sync: bool = False,
        ahead: bool = False,
    ) -> child.Told:
        with ExitStack() as stack:
            try:
                blob = stack.enter_context(self._content.opened(namespace, layer.digest))
            except TaskdError as error:
                raise error.within("failed to get reader from content store") from None
            order = {
                "mounts": child.ordered(mounts),
                "ahead": ahead,
                "place": str(self._place),
                "sniff": media.is_compressed(layer.media_type),
                "sync": sync or self._limits.sync_fs,
                "max_size": self._limits.max_size,
                "max_entries": self._limits.max_entries,
            }
            async with self._turns:
                return await child.run("apply", order, stdin=blob)

    async def diff(
        self,
        namespace: str,
        left: Iterable[Mount],
        right: Iterable[Mount],
        *,
        media_type: str = "",
        ref: str = "",
        labels: Mapping[str, str] | None = None,
        latest: int | None = None,
        lease: str | None = None,
    ) -> Descriptor:
        """Make a layer of what `right` has beyond `left`, and keep it; returns its descriptor.

        `ref` is the write's, whose bytes so far are thrown away; without one it is one that
        nobody has. `labels` are the blob's, if it is new. No time in the layer is later than
        `latest`, in nanoseconds since the epoch. Raises `Unimplemented` for a media type that is
        not made, `Unknown`, and what the content store raises.
        """
        media_type = media_type or media.LAYER_GZIP
        order = {
            "left": child.ordered(left),
            "right": child.ordered(right),
            "place": str(self._place),
            "compression": media.made(media_type),
            "latest": latest,
        }
        found = dict(labels or {})
        async with self._turns, child.output("diff", order) as made:
            # Nothing is begun for what cannot even be mounted.
            piece = await made.read()
            async with self._writer(namespace, ref, lease) as writer:
                while piece:
                    await writer.write(piece)
                    piece = await made.read()
                if media_type != media.LAYER:
                    found[UNCOMPRESSED] = made.told.digest
                with suppress(AlreadyExists):
                    try:
                        await writer.commit(0, "", found)
                    except TaskdError as error:
                        raise error.within("failed to commit") from None
                layer = Descriptor(media_type, writer.digest, writer.status.offset)
        if UNCOMPRESSED in found:
            await self._label(namespace, layer.digest, found[UNCOMPRESSED])
        return layer

    @asynccontextmanager
    async def _writer(self, namespace: str, ref: str, lease: str | None) -> AsyncIterator[Writer]:
        """A write that begins anew; without a `ref` nothing is left of one that fails."""
        called = ref or f"{time.time_ns()}-{secrets.token_urlsafe(3)}"
        async with AsyncExitStack() as stack:
            try:
                writer = await stack.enter_async_context(
                    self._content.writer(namespace, called, 0, "", lease)
                )
            except TaskdError as error:
                raise error.within("failed to open writer") from None
            try:
                if ref:
                    await writer.truncate()
                yield writer
            except BaseException:
                if not ref:
                    with anyio.CancelScope(shield=True), suppress(NotFound):
                        await writer.close()
                        await self._content.abort(namespace, called, lease)
                raise

    async def _label(self, namespace: str, digest: str, uncompressed: str) -> None:
        """Say of a blob what is in it, if it was there before without saying so."""
        if UNCOMPRESSED not in self._content.info(namespace, digest).labels:
            info = Info(digest, labels={UNCOMPRESSED: uncompressed})
            await self._content.update(namespace, info, [f"labels.{UNCOMPRESSED}"])
