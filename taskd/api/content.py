"""``containerd.services.content.v1.Content``; source: ``services/content/contentserver``."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, suppress

from taskd import digests
from taskd.api import request
from taskd.content import ContentStore, Info, Status, Writer
from taskd.errors import (
    AlreadyExists,
    InvalidArgument,
    NotFound,
    OutOfRange,
    TaskdError,
    Unknown,
)
from taskd.events import Bus
from taskd.proto.containerd import events
from taskd.proto.containerd.services.content import v1
from taskd.proto.google.protobuf import Empty
from taskd.wellknown import nanoseconds, pack, timestamp

__all__ = ["Content"]


_BATCH = 100  # infos in one message of List
_NEVER = timestamp(nanoseconds(None))  # what containerd sends for a time that is not known


class Content(v1.ContentBase):
    def __init__(self, store: ContentStore, bus: Bus) -> None:
        self._store = store
        self._bus = bus

    async def info(self, message: v1.InfoRequest) -> v1.InfoResponse:
        _require_digest(message.digest)
        info = self._store.info(request.namespace(), message.digest)
        return v1.InfoResponse(info=_info(info))

    async def update(self, message: v1.UpdateRequest) -> v1.UpdateResponse:
        wanted = message.info or v1.Info()
        _require_digest(wanted.digest)
        paths = message.update_mask.paths if message.update_mask else ()
        info = await self._store.update(
            request.namespace(), Info(wanted.digest, labels=wanted.labels), paths
        )
        return v1.UpdateResponse(info=_info(info))

    async def list(self, message: v1.ListContentRequest) -> AsyncIterator[v1.ListContentResponse]:
        """Leaves out when each was updated, as containerd does."""
        infos = [
            v1.Info(
                digest=info.digest,
                size=info.size,
                created_at=timestamp(info.created_at),
                updated_at=_NEVER,
                labels=dict(info.labels),
            )
            for info in await self._store.list(request.namespace(), message.filters)
        ]
        for start in range(0, len(infos), _BATCH):
            yield v1.ListContentResponse(info=infos[start : start + _BATCH])

    async def delete(self, message: v1.DeleteContentRequest) -> Empty:
        digests.validate(message.digest)
        namespace = request.namespace()
        await self._store.delete(namespace, message.digest, request.lease())
        event = events.ContentDelete(digest=message.digest)
        await self._bus.publish(namespace, "/content/delete", pack(event))
        return Empty()

    async def read(self, message: v1.ReadContentRequest) -> AsyncGenerator[v1.ReadContentResponse]:
        """Offsets in the answers count from where reading began, as containerd's do."""
        try:
            digests.validate(message.digest)
        except InvalidArgument as error:
            raise error.within(message.digest) from None
        sent = 0
        content = self._store.read(
            request.namespace(), message.digest, message.offset, message.size
        )
        async with aclosing(content):
            async for data in content:
                yield v1.ReadContentResponse(offset=sent, data=data)
                sent += len(data)

    async def status(self, message: v1.StatusRequest) -> v1.StatusResponse:
        try:
            status = await self._store.status(request.namespace(), message.ref)
        except TaskdError as error:
            raise error.within(f'could not get status for ref "{message.ref}"') from None
        return v1.StatusResponse(status=_status(status))

    async def list_statuses(self, message: v1.ListStatusesRequest) -> v1.ListStatusesResponse:
        statuses = await self._store.statuses(request.namespace(), message.filters)
        return v1.ListStatusesResponse(statuses=[_status(each) for each in statuses])

    async def abort(self, message: v1.AbortRequest) -> Empty:
        await self._store.abort(request.namespace(), message.ref, request.lease())
        return Empty()

    async def write(
        self, messages: AsyncIterator[v1.WriteContentRequest]
    ) -> AsyncGenerator[v1.WriteContentResponse]:
        """Answers each message, and says the last answer twice, as containerd does."""
        first = await anext(messages, None)
        if first is None:
            raise Unknown("EOF")
        if not first.ref:
            raise InvalidArgument("first message must have a reference", verbatim=True)
        namespace = request.namespace()
        begun = self._store.writer(
            namespace, first.ref, first.total, first.expected, request.lease()
        )
        async with begun as writer:
            session = _Session(self._store, namespace, writer, first)
            yield await session.answer(first)
            while session.response.action != v1.WriteAction.COMMIT:
                message = await anext(messages, None)
                if message is None:
                    break
                yield await session.answer(message)
        yield session.response


class _Session:
    """What one call of Write has agreed on so far."""

    def __init__(
        self, store: ContentStore, namespace: str, writer: Writer, first: v1.WriteContentRequest
    ) -> None:
        self.response = v1.WriteContentResponse(started_at=_NEVER, updated_at=_NEVER)
        """The last answer: each says again what those before said and it does not."""
        self._store = store
        self._namespace = namespace
        self._writer = writer
        self._ref = first.ref
        self._total = first.total
        self._expected = first.expected

    async def answer(self, message: v1.WriteContentRequest) -> v1.WriteContentResponse:
        status, response = self._writer.status, self.response
        response.action = message.action
        response.offset = status.offset
        if message.expected:
            self._expected = message.expected
            await self._refuse_what_is_there()
        if message.total > 0:
            self._total = message.total
        match message.action:
            case v1.WriteAction.STAT:
                response.started_at = timestamp(status.started_at)
                response.updated_at = timestamp(status.updated_at)
                response.total = self._total
                response.digest = self._writer.digest
            case v1.WriteAction.WRITE:
                await self._write(message)
            case v1.WriteAction.COMMIT:
                await self._write(message)
                await self._writer.commit(self._total, self._expected, message.labels)
        return response

    async def _write(self, message: v1.WriteContentRequest) -> None:
        offset = self._writer.status.offset
        if message.offset > 0 and message.offset != offset:
            raise OutOfRange(
                f"write @{message.offset} must occur at current offset {offset}", verbatim=True
            )
        if message.offset == 0 and offset > 0:
            await self._writer.truncate()
        await self._writer.write(message.data)
        self.response.offset = self._writer.status.offset
        self.response.digest = self._writer.digest

    async def _refuse_what_is_there(self) -> None:
        """The namespace may have got the blob by other hands since the write began."""
        try:
            self._store.info(self._namespace, self._expected)
        except NotFound:
            return
        await self._writer.close()
        with suppress(NotFound):
            await self._store.abort(self._namespace, self._ref, request.lease())
        raise AlreadyExists(f"blob with expected digest {self._expected} exists", verbatim=True)


def _require_digest(digest: str) -> None:
    try:
        digests.validate(digest)
    except InvalidArgument:
        raise InvalidArgument(f'"{digest}" failed validation', verbatim=True) from None


def _info(info: Info) -> v1.Info:
    return v1.Info(
        digest=info.digest,
        size=info.size,
        created_at=timestamp(info.created_at),
        updated_at=timestamp(info.updated_at),
        labels=dict(info.labels),
    )


def _status(status: Status) -> v1.Status:
    return v1.Status(
        ref=status.ref,
        offset=status.offset,
        total=status.total,
        expected=status.expected,
        started_at=timestamp(status.started_at),
        updated_at=timestamp(status.updated_at),
    )
