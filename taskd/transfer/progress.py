"""How far a transfer is, as its client hears of it. Source: containerd's
``core/transfer/local/progress.go``.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

import anyio

from taskd.errors import Cancelled
from taskd.images.descriptors import Descriptor, key
from taskd.metadata import Descriptor as Target
from taskd.proto.containerd import types
from taskd.proto.containerd.types.transfer import Progress as ProgressMessage
from taskd.together import together
from taskd.transfer.streams import Stream

__all__ = ["Progress", "Tracker"]

_log = logging.getLogger(__name__)

_INTERVAL = 0.3
_MAX_LAG = 10.0
"""Seconds that a client may take to hear the end."""


class Progress:
    """Tells a client; or nobody, without a stream."""

    def __init__(self, stream: Stream | None) -> None:
        self._stream = stream

    @property
    def wanted(self) -> bool:
        return self._stream is not None

    async def tell(
        self,
        event: str,
        name: str = "",
        target: Target | None = None,
        *,
        parents: Sequence[str] = (),
        done: int = 0,
        total: int = 0,
    ) -> None:
        if self._stream is None:
            return
        message = ProgressMessage(
            event=event,
            name=name,
            parents=list(parents),
            progress=done,
            total=total,
            desc=None
            if target is None
            else types.Descriptor(
                media_type=target.media_type,
                digest=target.digest,
                size=target.size,
                annotations=dict(target.annotations),
            ),
        )
        try:
            await self._stream.send(message)
        except Cancelled:
            _log.debug("nobody hears of the progress any more")
            self._stream = None


@dataclass(slots=True)
class _Job:
    name: str
    descriptor: Descriptor
    parents: list[str]
    done: int = 0
    over: bool = False


class Tracker:
    """What is fetched or pushed for one image, told as often as a reader can follow.

    `moving` is the word for what is on its way; `offset` says how far something of that name is,
    or None for what is not on its way; `complete` whether something is there.
    """

    def __init__(
        self,
        progress: Progress,
        root: str,
        moving: str,
        offset: Callable[[Descriptor], int | None],
        complete: Callable[[Descriptor], bool],
    ) -> None:
        self._progress = progress
        self._root = root
        self._moving = moving
        self._offset = offset
        self._complete = complete
        self._jobs: dict[str, _Job] = {}
        self._parents: dict[str, list[str]] = {}
        self._news: list[tuple[_Job, bool]] = []
        self._woken = anyio.Event()

    def add(self, descriptor: Descriptor) -> None:
        """It is about to be."""
        if self._progress.wanted and descriptor.digest not in self._jobs:
            parents = self._parents.get(descriptor.digest) or [self._root]
            job = _Job(key(descriptor), descriptor, list(parents))
            self._jobs[descriptor.digest] = job
            self._tell(job, exists=False)

    def add_children(self, parent: Descriptor, children: Sequence[Descriptor]) -> None:
        if self._progress.wanted:
            for child in children:
                self._parents.setdefault(child.digest, []).append(key(parent))

    def exists(self, descriptor: Descriptor) -> None:
        """It need not be fetched or pushed."""
        job = self._jobs.get(descriptor.digest)
        if job is not None and not job.over:
            self._tell(job, exists=True)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Tell as long as the context is open, and in the end how everything ended."""
        if not self._progress.wanted:
            yield
            return
        try:
            async with together() as group:
                group.start_soon(self._run)
                yield
                group.cancel_scope.cancel()
        finally:
            with anyio.move_on_after(_MAX_LAG):
                await self._tell_news()
                await self._tell_jobs()

    def _tell(self, job: _Job, *, exists: bool) -> None:
        self._news.append((job, exists))
        self._woken.set()

    async def _run(self) -> None:
        due = anyio.current_time() + _INTERVAL
        while True:
            with anyio.move_on_at(due):
                await self._woken.wait()
                self._woken = anyio.Event()
            await self._tell_news()
            if anyio.current_time() >= due:
                await self._tell_jobs()
                due = anyio.current_time() + _INTERVAL

    async def _tell_news(self) -> None:
        while self._news:
            # It stays until it has been told: this may be cut short, and begun anew.
            job, exists = self._news[0]
            size = job.descriptor.size
            if not exists:
                await self._progress.tell(
                    "waiting", job.name, job.descriptor, parents=job.parents, total=size
                )
            elif not job.over:
                await self._progress.tell(
                    "already exists", job.name, job.descriptor, done=size, total=size
                )
                job.over = True
            self._news.pop(0)

    async def _tell_jobs(self) -> None:
        for job in list(self._jobs.values()):
            if job.over:
                continue
            size, offset = job.descriptor.size, self._offset(job.descriptor)
            if offset is None and self._complete(job.descriptor):
                await self._progress.tell(
                    "complete",
                    job.name,
                    job.descriptor,
                    parents=job.parents,
                    done=size,
                    total=size,
                )
                job.over = True
            elif offset is not None and offset > job.done:
                await self._progress.tell(
                    self._moving,
                    job.name,
                    job.descriptor,
                    parents=job.parents,
                    done=offset,
                    total=size,
                )
                job.done = offset
