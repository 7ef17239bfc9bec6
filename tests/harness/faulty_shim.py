"""The fake shim with one method that goes wrong in a way that no real shim can be made to show."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

from harness.executables import write_executable
from harness.fake_shim import Handlers, Task, main, methods
from taskd.ttrpc.frames import Decoder, Frame, FrameType, encode
from taskd.ttrpc.messages import Request, Response

__all__ = ["install"]


def install(folder: Path, method: str, fault: str) -> Path:
    """Write an executable of a shim whose `method` does this when it is called:

    ``close``: close the connection; ``garbage``: answer what is no frame; ``nonsense``: answer a
    frame that holds no message; ``silence``: never answer; ``exit``: end the process.
    """
    name = f"containerd-shim-{method.lower()}-{fault}"
    return write_executable(folder / name, __name__, f"run({method!r}, {fault!r})")


def run(method: str, fault: str) -> None:
    main(lambda address: serve(address, method, fault))


async def serve(address: str, method: str, fault: str) -> None:
    task = Task()
    handlers = methods(task)

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        decoder = Decoder()
        while data := await reader.read(65536):
            for frame in decoder.feed(data):
                assert isinstance(frame, Frame)
                answering = answer(frame, writer, handlers, method, fault)
                running.add(one := asyncio.ensure_future(answering))
                one.add_done_callback(running.discard)

    running: set[asyncio.Future[None]] = set()
    server = await asyncio.start_unix_server(connected, address)
    await task.shut_down.wait()
    server.close()
    Path(address).unlink(missing_ok=True)


async def answer(
    frame: Frame, writer: asyncio.StreamWriter, handlers: Handlers, method: str, fault: str
) -> None:
    request = Request.decode(frame.payload)
    if request.method != method:
        payload = await handlers[request.method](None, request.payload)
        writer.write(
            encode(frame.stream_id, FrameType.RESPONSE, 0, Response(payload=payload).encode())
        )
    elif fault == "close":
        writer.close()
    elif fault == "garbage":
        writer.write(os.urandom(10000))
    elif fault == "nonsense":
        writer.write(encode(frame.stream_id, FrameType.RESPONSE, 0, b"\xff" * 100))
    elif fault == "exit":
        sys.stdout.flush()
        os._exit(1)
