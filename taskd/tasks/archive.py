"""Checkpoints as blobs of the content store: the folder that CRIU wrote as a tar, and back.

Source: containerd's ``services/tasks/local.go``, ``Create`` and ``Checkpoint``.
"""

from __future__ import annotations

import os
import shutil
import tarfile
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from tempfile import mkdtemp

import anyio
from anyio import to_thread

from taskd import archives
from taskd.archives import Limits
from taskd.codec import encode
from taskd.content import ContentStore
from taskd.content.bridges import Sink, ToLoop
from taskd.errors import AlreadyExists, TaskdError, Unknown
from taskd.metadata.images import Descriptor
from taskd.proto.google.protobuf import Any
from taskd.types import TypedValue
from taskd.wellknown import to_any

__all__ = ["CHECKPOINT", "CONFIG", "Checkpoints"]

CHECKPOINT = "application/vnd.containerd.container.criu.checkpoint.criu.tar"
"""containerd's media type of a checkpoint."""
CONFIG = "application/vnd.containerd.container.checkpoint.config.v1+proto"
"""containerd's media type of the specification of the container that a checkpoint is of."""

_CHUNK = 1 << 20

_BYTES_PER_SECOND = 10 << 20
"""What any disk copies: a checkpoint may be as large as the memory of its container."""


class Checkpoints:
    """Checkpoints in the content store."""

    def __init__(self, content: ContentStore, scratch: Path) -> None:
        """`scratch` is a folder of its own, whatever is in which is removed. Blocks."""
        shutil.rmtree(scratch, ignore_errors=True)  # of a daemon that was killed
        scratch.mkdir(mode=0o700)
        self._content = content
        self._scratch = scratch

    async def store(
        self,
        namespace: str,
        spec: TypedValue | None,
        lease: str | None,
        write: Callable[[str], Awaitable[None]],
    ) -> list[Descriptor]:
        """Let `write` fill a folder, and keep it and the container's specification as blobs.

        Raises what `write` and the store raise.
        """
        folder = Path(await to_thread.run_sync(lambda: mkdtemp(dir=self._scratch)))
        try:
            await write(str(folder))

            async def archive(sink: Sink) -> None:
                await to_thread.run_sync(_pack, folder, sink)

            async def specification(sink: Sink) -> None:
                await sink(encode(to_any(spec) or Any()))

            return [
                await self._blob(namespace, str(folder), CHECKPOINT, archive, lease),
                await self._blob(namespace, f"{folder}/spec", CONFIG, specification, lease),
            ]
        finally:
            with anyio.CancelScope(shield=True):
                await to_thread.run_sync(shutil.rmtree, folder)

    def unpack(self, namespace: str, checkpoint: Descriptor) -> Callable[[Path], Awaitable[None]]:
        """What makes a folder of a checkpoint.

        Raises `Unknown` for what is none, `NotFound` for a blob that there is not; and the
        function `InvalidArgument`, for one that is not a tar of plain files, and
        `ResourceExhausted`, for one with too much in it.
        """
        if checkpoint.media_type != CHECKPOINT:
            raise Unknown(f'unsupported checkpoint type "{checkpoint.media_type}"')
        self._content.info(namespace, checkpoint.digest)

        async def unpack(folder: Path) -> None:
            with self._content.opened(namespace, checkpoint.digest) as blob:
                size = os.fstat(blob).st_size
                limits = Limits(seconds=60 + size / _BYTES_PER_SECOND, bytes=size)
                try:
                    await archives.unpack(blob, folder, limits)
                except TaskdError as exc:
                    raise exc.within(f"checkpoint {checkpoint.digest}") from exc

        return unpack

    async def _blob(
        self,
        namespace: str,
        ref: str,
        media_type: str,
        produce: Callable[[Sink], Awaitable[None]],
        lease: str | None,
    ) -> Descriptor:
        async with self._content.writer(namespace, ref, 0, "", lease) as writer:
            await produce(writer.write)
            descriptor = Descriptor(media_type, writer.digest, writer.status.offset)
            with suppress(AlreadyExists):  # the same bytes are there already
                await writer.commit(0, "", {})
        return descriptor


def _pack(folder: Path, sink: Sink) -> None:
    with tarfile.open(fileobj=ToLoop(sink), mode="w|", bufsize=_CHUNK) as archive:
        for path in sorted(folder.rglob("*")):
            archive.add(path, path.relative_to(folder), recursive=False)
