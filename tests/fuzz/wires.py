"""ttrpc: a server with a client that breaks the protocol, and the other way round."""

from __future__ import annotations

import asyncio
import logging
import random
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from fuzz.session import Session, damaged
from taskd import ttrpc
from taskd.errors import TaskdError
from taskd.ttrpc.frames import encode
from taskd.ttrpc.messages import KeyValue, Request, Response

__all__ = ["ttrpc_client", "ttrpc_server"]

_SECONDS = 10.0
"""How long anything may take before it is taken for stuck."""


async def _echo(context: ttrpc.CallContext, payload: bytes) -> bytes:
    return payload


async def _refuse(context: ttrpc.CallContext, payload: bytes) -> bytes:
    raise TaskdError("no")


async def _stream(context: ttrpc.CallContext, stream: ttrpc.ServerStream) -> None:
    async for message in stream:
        await stream.send(message)


SERVICE = ttrpc.Service(
    "test", {"Echo": _echo, "Refuse": _refuse, "Stream": ttrpc.Streaming(_stream)}
)


async def ttrpc_server(session: Session) -> None:
    """Whatever arrives, the server ends that connection or goes on, and serves all others."""
    async with _no_word_of_trouble(), ttrpc.Server([SERVICE]) as server:
        good = await _client(server)
        for number in session.cases():
            wire = _wire(session.random, requests=True)
            ours, theirs = socket.socketpair()
            await server.serve_connection(theirs)
            reader, writer = await asyncio.open_unix_connection(sock=ours)
            async with asyncio.timeout(_SECONDS):
                with suppress(ConnectionError):
                    writer.write(wire)
                    writer.write_eof()
                answer = b""
                with suppress(ConnectionError):
                    answer = await reader.read()
                writer.close()
                with suppress(ConnectionError):
                    await writer.wait_closed()
                if number % 50 == 0:
                    assert await good.call("test", "Echo", b"still") == b"still"
            session.saw("answered" if answer else "not answered", len(wire))
        await good.aclose()


async def ttrpc_client(session: Session) -> None:
    """Whatever a shim answers, each call has an outcome, in its time."""
    async with _no_word_of_trouble():
        for _ in session.cases():
            wire = _wire(session.random, requests=False)
            ours, theirs = socket.socketpair()
            client = await ttrpc.Client.from_socket(ours)
            _, writer = await asyncio.open_unix_connection(sock=theirs)
            async with asyncio.timeout(_SECONDS):
                calls = [
                    asyncio.create_task(_outcome(client.call("test", "Echo", b"", timeout=5)))
                    for _ in range(2)
                ] + [asyncio.create_task(_outcome(_collect(client)))]
                await asyncio.sleep(0)
                with suppress(ConnectionError):
                    writer.write(wire)
                    await writer.drain()
                writer.close()
                for outcome in await asyncio.gather(*calls):
                    session.saw(outcome, 0)
                await client.aclose()
                with suppress(ConnectionError):
                    await writer.wait_closed()
            session.bytes += len(wire)


async def _client(server: ttrpc.Server) -> ttrpc.Client:
    ours, theirs = socket.socketpair()
    await server.serve_connection(theirs)
    return await ttrpc.Client.from_socket(ours)


async def _collect(client: ttrpc.Client) -> None:
    async with client.stream("test", "Stream", None, timeout=5) as stream:
        await stream.send(b"a")
        async for _ in stream:
            pass


async def _outcome(call: object) -> str:
    try:
        await call  # type: ignore[misc]
    except TaskdError as exc:
        return type(exc).__name__
    return "success"


@asynccontextmanager
async def _no_word_of_trouble() -> AsyncIterator[None]:
    """Nothing may end in a traceback, or leave a task behind."""
    loop = asyncio.get_running_loop()
    trouble: list[str] = []
    handler = _Records(trouble)
    logger = logging.getLogger("taskd.ttrpc")
    level, propagate = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.propagate = False
    before = asyncio.all_tasks()
    loop.set_exception_handler(lambda _, context: trouble.append(str(context)))
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        logger.propagate = propagate
        loop.set_exception_handler(None)
    await asyncio.sleep(0.05)
    assert not trouble, trouble
    assert not asyncio.all_tasks() - before


class _Records(logging.Handler):
    def __init__(self, trouble: list[str]) -> None:
        super().__init__(logging.ERROR)
        self._trouble = trouble

    def emit(self, record: logging.LogRecord) -> None:
        self._trouble.append(self.format(record))


def _wire(choose: random.Random, *, requests: bool) -> bytes:
    frames = [_frame(choose, requests) for _ in range(choose.randint(1, 8))]
    wire = b"".join(frames)
    return damaged(choose, wire) if choose.random() < 0.5 else wire


def _frame(choose: random.Random, requests: bool) -> bytes:
    stream_id = choose.choice((1, 1, 3, 3, 5, 7, 9, 2, 0, 2**32 - 1))
    kind = choose.choice((1, 1, 3, 2, 0, 4) if requests else (2, 2, 3, 1, 0, 4))
    flags = choose.choice((0, 0, 1, 2, 3, 4, 5, 255))
    method = choose.choice(("Echo", "Refuse", "Stream", "Nothing", ""))
    request = Request(
        choose.choice(("test", "test", "other")),
        method,
        choose.randbytes(choose.choice((0, 1, 20, 3000))),
        choose.choice((0, 0, -1, 1, 10**6, 2**63 - 1)),
        (KeyValue("key", "value"),) * choose.choice((0, 1, 50)),
    )
    response = Response(choose.choice((0, 0, 5, 99, -1)), choose.choice(("", "no")), b"x")
    payload = choose.choice(
        (request.encode(), request.encode(), response.encode(), b"", choose.randbytes(9))
    )
    frame = encode(stream_id, kind, flags, payload)
    if choose.random() < 0.03:
        return (choose.choice((5 << 20, 2**32 - 1))).to_bytes(4) + frame[4:]
    return frame
