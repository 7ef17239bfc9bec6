"""Images from registries and to them, by the daemon's hand. containerd can since 1.7."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from typing import Any as AnyType

import anyio
from grpclib.const import Cardinality

from taskd.client.channel import Channel
from taskd.codec import decode
from taskd.errors import Unimplemented
from taskd.proto.containerd.services.streaming.v1 import StreamInit
from taskd.proto.containerd.services.transfer.v1 import (
    TransferOptions,
    TransferRequest,
    TransferStub,
)
from taskd.proto.containerd.types.transfer import (
    AuthRequest,
    AuthResponse,
    AuthType,
    ImageStore,
    OciRegistry,
    Progress,
    RegistryResolver,
)
from taskd.proto.google.protobuf import Any
from taskd.wellknown import pack, to_any

__all__ = ["Credentials", "Progress", "pull", "push"]

Credentials = tuple[str, str]
"""User and password."""

_STREAM = "/containerd.services.streaming.v1.Streaming/Stream"


async def pull(
    channel: Channel,
    reference: str,
    *,
    credentials: Credentials | None,
    plain_http: bool,
    hosts: str,
    progress: Callable[[Progress], object] | None,
) -> None:
    """Have the daemon fetch what `reference` names, and call it so."""
    with _alone(channel):
        async with _registry(channel, reference, credentials, plain_http, hosts) as registry:
            await _transfer(channel, registry, ImageStore(name=reference), progress)


async def push(
    channel: Channel,
    name: str,
    reference: str,
    *,
    credentials: Credentials | None,
    plain_http: bool,
    hosts: str,
    progress: Callable[[Progress], object] | None,
) -> None:
    """Have the daemon store the image `name` under `reference`."""
    with _alone(channel):
        async with _registry(channel, reference, credentials, plain_http, hosts) as registry:
            await _transfer(channel, ImageStore(name=name), registry, progress)


async def _transfer(
    channel: Channel,
    source: AnyType,
    destination: AnyType,
    progress: Callable[[Progress], object] | None,
) -> None:
    request = TransferRequest(source=to_any(pack(source)), destination=to_any(pack(destination)))
    if progress is None:
        await TransferStub(channel).transfer(request)
        return
    async with _stream(channel) as (name, stream), anyio.create_task_group() as group:
        request.options = TransferOptions(progress_stream=name)
        group.start_soon(_tell, stream, progress)
        await TransferStub(channel).transfer(request)
        # What it has had to say has come before its answer.
        group.cancel_scope.cancel()


@contextmanager
def _alone(channel: Channel) -> Iterator[None]:
    """Errors as they were, out of their groups."""
    try:
        yield
    except* Unimplemented as several:
        reason = next(_flat(several))
        raise Unimplemented(
            f"the daemon at {channel.path} does not move images: containerd does since 1.7, taskd "
            f"does ({reason})",
            verbatim=True,
        ) from None
    except* Exception as several:
        raise next(_flat(several)) from None


def _flat(group: BaseExceptionGroup[BaseException]) -> Iterator[BaseException]:
    for each in group.exceptions:
        if isinstance(each, BaseExceptionGroup):
            yield from _flat(each)
        else:
            yield each


async def _tell(stream: AnyType, progress: Callable[[Progress], object]) -> None:
    while (message := await stream.recv_message()) is not None:
        progress(decode(Progress, message.value))


@asynccontextmanager
async def _registry(
    channel: Channel, reference: str, credentials: Credentials | None, plain_http: bool, hosts: str
) -> AsyncIterator[OciRegistry]:
    """One that gets `credentials` when it asks for them."""
    resolver = RegistryResolver(host_dir=hosts, default_scheme="http" if plain_http else "")
    async with AsyncExitStack() as stack:
        if credentials is not None:
            resolver.auth_stream, stream = await stack.enter_async_context(_stream(channel))
            group = await stack.enter_async_context(anyio.create_task_group())
            group.start_soon(_authorize, stream, credentials)
            stack.callback(group.cancel_scope.cancel)
        yield OciRegistry(reference=reference, resolver=resolver)


async def _authorize(stream: AnyType, credentials: Credentials) -> None:
    user, password = credentials
    answer = AuthResponse(auth_type=AuthType.CREDENTIALS, username=user, secret=password)
    while (message := await stream.recv_message()) is not None:
        decode(AuthRequest, message.value)
        await stream.send_message(to_any(pack(answer)))


@asynccontextmanager
async def _stream(channel: Channel) -> AsyncIterator[tuple[str, AnyType]]:
    """A stream beside a call, and its name."""
    name = f"client-{uuid.uuid4().hex}"
    async with channel.request(_STREAM, Cardinality.STREAM_STREAM, Any, Any) as stream:
        await stream.send_message(to_any(pack(StreamInit(id=name))))
        await stream.recv_message()  # it is there
        yield name, stream
        await stream.cancel()
