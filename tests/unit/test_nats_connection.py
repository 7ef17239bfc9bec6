"""A server of NATS that does not offer TLS is told nothing by whoever wants it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trustme

from taskd.errors import Unavailable
from taskd.nats.connection import connected
from taskd.nats.settings import NatsConfig


@asynccontextmanager
async def server(**info: object) -> AsyncIterator[tuple[int, bytearray]]:
    """A port on which what is sent is kept, and answered as far as it has to be."""
    received = bytearray()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        words = {"server_id": "x", "version": "2.10.0", "max_payload": 1 << 20, **info}
        writer.write(b"INFO " + json.dumps(words).encode() + b"\r\n")
        while line := await reader.readline():
            received.extend(line)
            if line.startswith(b"PING"):
                writer.write(b"PONG\r\n")
        writer.close()

    listening = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with listening:
        yield listening.sockets[0].getsockname()[1], received


@pytest.fixture
def files(tmp_path: Path) -> Path:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    (tmp_path / "password").write_text("secret")
    return tmp_path


@pytest.mark.parametrize("offer", [{}, {"tls_available": True}, {"auth_required": True}])
@pytest.mark.parametrize(
    ("url", "with_ca"),
    [
        ("tls://127.0.0.1:{}", False),
        ("tls://someone:secret@127.0.0.1:{}", True),
        ("nats://127.0.0.1:{}", True),
    ],
)
async def test_who_wants_tls_says_nothing_without_it(
    files: Path, url: str, with_ca: bool, offer: dict[str, object]
) -> None:
    async with server(**offer) as (port, received):
        settings = NatsConfig(
            (url.format(port),),
            user="taskd",
            password_file=files / "password",
            tls_ca=files / "ca.pem" if with_ca else None,
        )
        with pytest.raises(Unavailable) as caught:
            async with connected(settings, lambda: None):
                pass
        await asyncio.sleep(0.05)
        assert bytes(received) == b""
    assert "the server does not offer TLS" in str(caught.value)
    assert f"//127.0.0.1:{port}" in str(caught.value)
    assert "secret" not in str(caught.value)


async def test_who_does_not_want_it_goes_on(files: Path) -> None:
    async with server() as (port, received):
        settings = NatsConfig(
            (f"nats://127.0.0.1:{port}",), user="taskd", password_file=files / "password"
        )
        async with connected(settings, lambda: None):
            assert received.startswith(b"CONNECT ")
