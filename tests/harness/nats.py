"""A real NATS server with JetStream, on loopback."""

from __future__ import annotations

import re
import socket
import subprocess
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Self

import nats
from nats.aio.msg import Msg
from nats.js.api import ConsumerConfig, DeliverPolicy

__all__ = ["NatsServer", "connection", "positions", "settings", "stored"]

START_SECONDS = 20.0


class NatsServer:
    """On a free port that it keeps when it is started again; use it in ``with``.

    `settings` is more text for its configuration.
    """

    def __init__(self, folder: Path, settings: str = "") -> None:
        self.folder = folder
        self.log = folder / "log"
        self.process: subprocess.Popen[bytes] | None = None
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        folder.mkdir(parents=True, exist_ok=True)
        self.config = folder / "nats.conf"
        self.config.write_text(
            f'listen: "127.0.0.1:{self.port}"\n'
            f'jetstream {{ store_dir: "{folder}/store" }}\n{settings}'
        )

    @property
    def url(self) -> str:
        return f"nats://127.0.0.1:{self.port}"

    def start(self) -> Self:
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                ["nats-server", "-c", str(self.config)], stdout=log, stderr=log
            )
        deadline = time.monotonic() + START_SECONDS
        while not re.search("Server is ready", self.log.read_text()):
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"nats-server did not start:\n{self.log.read_text()}")
            time.sleep(0.02)
        return self

    def kill(self) -> None:
        """SIGKILL."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        assert self.process is not None
        if self.process.poll() is None:
            self.kill()


def settings(server: NatsServer, node: str = "one") -> str:
    """Settings of a taskd that publishes there."""
    return f'[events]\nnode = "{node}"\n[events.nats]\nservers = ["{server.url}"]\n'


@asynccontextmanager
async def connection(server: NatsServer, **options: object) -> AsyncIterator[nats.NATS]:
    connected = await nats.connect(server.url, **options)
    try:
        yield connected
    finally:
        await connected.close()


async def stored(server: NatsServer, stream: str = "TASKD") -> list[Msg]:
    """The whole stream."""
    async with connection(server) as connected:
        jetstream = connected.jetstream()
        count = (await jetstream.stream_info(stream)).state.messages
        reader = await jetstream.subscribe(
            ">",
            stream=stream,
            ordered_consumer=True,
            config=ConsumerConfig(deliver_policy=DeliverPolicy.ALL),
        )
        return [await reader.next_msg(timeout=10) for _ in range(count)]


def positions(messages: list[Msg], node: str = "one") -> list[int]:
    assert all(message.headers for message in messages)
    return [
        int(message.headers["Taskd-Position"])
        for message in messages
        if message.headers["Taskd-Node"] == node
    ]
