"""What every call goes through, on a real socket, with a service made for the purpose."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest
from grpclib.const import Cardinality, Handler, Status
from grpclib.exceptions import GRPCError
from grpclib.health.v1.health_grpc import HealthStub
from grpclib.health.v1.health_pb2 import HealthCheckRequest

from taskd.api import request
from taskd.api.server import ApiServer
from taskd.errors import Code, TaskdError
from taskd.grpc.channel import Channel
from taskd.proto.google.protobuf import Empty

pytestmark = pytest.mark.usefixtures("on_engine")

PATH = "/test.Service/Call"


class Service:
    """One method, which does what the test says."""

    def __init__(self) -> None:
        self.entered = asyncio.Event()
        self.left = asyncio.Event()
        self.error: Exception | None = None
        self.seconds = 0.0
        self.namespace = ""
        self.deadline = 0.0

    async def call(self, stream: request.Stream) -> None:
        await stream.recv_message()
        self.entered.set()
        self.deadline = anyio.current_effective_deadline() - anyio.current_time()
        try:
            self.namespace = request.namespace()
            if self.error:
                raise self.error
            await anyio.sleep(self.seconds)
            await stream.send_message(Empty())
        finally:
            self.left.set()

    def __mapping__(self) -> Mapping[str, Handler]:
        return {PATH: Handler(self.call, Cardinality.UNARY_UNARY, Empty, Empty)}


@pytest.fixture
def service() -> Service:
    return Service()


@asynccontextmanager
async def serving(service: Service, folder: Path) -> AsyncIterator[tuple[ApiServer, Channel]]:
    server = ApiServer([service])
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder / "s"))
        listener.listen()
        await server.start(listener)
        async with Channel(folder / "s") as channel:
            yield server, channel
        await server.close()


async def call(channel: Channel, *, namespace: str = "ns", timeout: float | None = None) -> None:
    async with channel.request(
        PATH,
        Cardinality.UNARY_UNARY,
        Empty,
        Empty,
        timeout=timeout,
        metadata={"containerd-namespace": namespace} if namespace else {},
    ) as stream:
        await stream.send_message(Empty(), end=True)
        await stream.recv_message()


@pytest.mark.parametrize("error", TaskdError.__subclasses__())
async def test_every_error_becomes_its_status(
    service: Service, folder: Path, error: type[TaskdError]
) -> None:
    service.error = error('thing "x"')
    async with serving(service, folder) as (_, channel):
        with pytest.raises(GRPCError) as caught:
            await call(channel)
    assert (caught.value.status.value, caught.value.message) == (error.code, str(service.error))


async def test_an_unforeseen_error_is_told_and_logged(
    service: Service, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    service.error = ZeroDivisionError("by zero")
    async with serving(service, folder) as (_, channel):
        with pytest.raises(GRPCError) as caught:
            await call(channel)
    assert (caught.value.status, caught.value.message) == (Status.UNKNOWN, "by zero")
    assert f"{PATH} failed" in caplog.text


@pytest.mark.parametrize(
    ("namespace", "code", "words"),
    [
        ("", Code.FAILED_PRECONDITION, "namespace is required: failed precondition"),
        ("a/b", Code.INVALID_ARGUMENT, 'namespace validation: identifier "a/b" must match'),
        ("a" * 77, Code.INVALID_ARGUMENT, "greater than maximum length (76 characters)"),
    ],
)
async def test_namespaces_are_checked(
    service: Service, folder: Path, namespace: str, code: Code, words: str
) -> None:
    async with serving(service, folder) as (_, channel):
        with pytest.raises(GRPCError) as caught:
            await call(channel, namespace=namespace)
    assert caught.value.status.value == code
    assert words in (caught.value.message or "")


async def test_the_deadline_is_the_scopes(service: Service, folder: Path) -> None:
    async with serving(service, folder) as (_, channel):
        await call(channel, timeout=5)
        assert 4 < service.deadline <= 5
        await call(channel)
        assert service.deadline == float("inf")
        service.seconds = 60
        with pytest.raises((TimeoutError, GRPCError)):
            await call(channel, timeout=0.1)
        with anyio.fail_after(5):
            await service.left.wait()


async def test_a_client_that_goes_away_ends_its_call(service: Service, folder: Path) -> None:
    service.seconds = 60
    async with serving(service, folder) as (server, channel):
        with anyio.move_on_after(0.2):
            await call(channel)
        with anyio.fail_after(5):
            await service.left.wait()
            while server._calls:
                await anyio.sleep(0.01)


async def test_drain_lets_calls_finish_and_refuses_new_ones(service: Service, folder: Path) -> None:
    service.seconds = 0.3
    async with serving(service, folder) as (server, channel), anyio.create_task_group() as group:
        group.start_soon(call, channel)
        await service.entered.wait()
        group.start_soon(server.drain, 5)
        await anyio.sleep(0.05)
        with pytest.raises(GRPCError) as caught:
            await call(channel)
        assert caught.value.status is Status.UNAVAILABLE
    assert not server._calls


async def test_drain_is_bounded(service: Service, folder: Path) -> None:
    service.seconds = 60
    async with serving(service, folder) as (server, channel), anyio.create_task_group() as group:

        async def cut_off() -> None:
            with pytest.raises(GRPCError) as caught:
                await call(channel)
            assert caught.value.status is Status.UNAVAILABLE

        group.start_soon(cut_off)
        await service.entered.wait()
        with anyio.fail_after(5):
            await server.drain(0.1)


async def test_health(service: Service, folder: Path) -> None:
    async with serving(service, folder) as (_, channel):
        answer = await HealthStub(channel).Check(HealthCheckRequest())
        assert answer.status == 1
