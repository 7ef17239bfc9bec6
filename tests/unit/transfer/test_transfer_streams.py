from __future__ import annotations

import anyio
import pytest

from taskd.codec import decode
from taskd.errors import AlreadyExists, Cancelled, NotFound, Unknown
from taskd.images.descriptors import Descriptor
from taskd.proto.containerd.types.transfer import Data, WindowUpdate
from taskd.proto.containerd.types.transfer import Progress as ProgressMessage
from taskd.transfer.progress import Progress, Tracker
from taskd.transfer.streams import PIECE, WINDOW, Sender, Stream, Streams, received
from taskd.wellknown import pack


def test_by_namespace_and_name() -> None:
    streams = Streams()
    with streams.opened("n", "one") as one:
        assert streams.get("n", "one") is one
        with pytest.raises(AlreadyExists), streams.opened("n", "one"):
            pass
        with streams.opened("m", "one"):
            pass
        with pytest.raises(NotFound):
            streams.get("m", "one")
    with pytest.raises(NotFound):
        streams.get("n", "one")


async def test_a_client_that_has_gone() -> None:
    stream = Stream()
    stream.lost()
    assert await stream.receive() is None
    with pytest.raises(Cancelled):
        await stream.send(Data(data=b"x"))


async def test_what_was_sent_before_the_end_is_read() -> None:
    stream = Stream()
    await stream.incoming.send(pack(Data(data=b"one")))
    await stream.incoming.send(pack(ProgressMessage()))  # nothing of ours: passed over
    await stream.incoming.send(pack(Data(data=b"two")))
    stream.incoming.close()
    assert b"".join([piece async for piece in received(stream)]) == b"onetwo"
    update = decode(WindowUpdate, (await stream.outgoing.receive()).value)
    assert update.update == WINDOW


async def test_a_sender_is_told_of_room_before_it_has_none() -> None:
    stream = Stream()
    total, got = 3 * WINDOW, 0

    async def client() -> None:
        sent = room = 0
        async for value in stream.outgoing:
            room += decode(WindowUpdate, value.value).update
            while room and sent < total:
                size = min(room, PIECE, total - sent)
                await stream.incoming.send(pack(Data(data=bytes(size))))
                room, sent = room - size, sent + size
            if sent == total:
                stream.incoming.close()
                return

    async with anyio.create_task_group() as group:
        group.start_soon(client)
        with anyio.fail_after(20):
            async for piece in received(stream):
                got += len(piece)
    assert got == total


async def test_no_more_is_sent_than_there_is_room_for() -> None:
    stream = Stream()
    sender = Sender(stream)
    async with anyio.create_task_group() as group:
        group.start_soon(sender.run)
        group.start_soon(sender.send, bytes(PIECE + 10))
        await anyio.sleep(0.01)
        assert stream.outgoing.statistics().current_buffer_used == 0
        await stream.incoming.send(pack(WindowUpdate(update=7)))
        value = await stream.outgoing.receive()
        assert decode(Data, value.value).data == bytes(7)
        await stream.incoming.send(pack(WindowUpdate(update=-5)))
        await stream.incoming.send(pack(WindowUpdate(update=1 << 20)))
        sizes = [len(decode(Data, (await stream.outgoing.receive()).value).data) for _ in "12"]
        assert sizes == [PIECE, 3]
        group.cancel_scope.cancel()


async def test_a_reader_that_goes_before_it_has_everything() -> None:
    stream = Stream()
    sender = Sender(stream)
    stream.incoming.close()
    async with anyio.create_task_group() as group:
        group.start_soon(sender.run)
        with pytest.raises(Unknown, match="ended before everything was sent"):
            await sender.send(b"x")


async def test_progress_that_nobody_reads_holds_nothing_up() -> None:
    """The client's stream is full, and what is tracked goes on."""
    stream = Stream()
    tracker = Tracker(Progress(stream), "root", "downloading", lambda _: None, lambda _: True)
    with anyio.fail_after(5):
        async with tracker.running():
            for number in range(1000):
                tracker.add(Descriptor("x", f"sha256:{number:064}", 1))
            await anyio.sleep(0.05)
            stream.lost()  # or the end would wait for it, for a while


async def test_progress_is_told_in_order_and_to_the_end() -> None:
    stream = Stream()
    offsets: dict[str, int] = {}
    done: set[str] = set()
    tracker = Tracker(
        Progress(stream),
        "root",
        "downloading",
        lambda each: offsets.get(each.digest),
        lambda each: each.digest in done,
    )
    layer = Descriptor("application/vnd.oci.image.layer.v1.tar", f"sha256:{'a' * 64}", 10)
    other = Descriptor("application/vnd.oci.image.config.v1+json", f"sha256:{'b' * 64}", 5)
    told: list[ProgressMessage] = []

    async def read() -> None:
        async for value in stream.outgoing:
            told.append(decode(ProgressMessage, value.value))

    async with anyio.create_task_group() as group:
        group.start_soon(read)
        async with tracker.running():
            tracker.add(layer)
            tracker.add(other)
            tracker.exists(other)
            offsets[layer.digest] = 4
            await anyio.sleep(0.5)
            del offsets[layer.digest]
            done.add(layer.digest)
        stream.close()
    assert [(each.event, each.name[:6], each.progress, each.total) for each in told] == [
        ("waiting", "layer-", 0, 10),
        ("waiting", "config", 0, 5),
        ("already exists", "config", 5, 5),
        ("downloading", "layer-", 4, 10),
        ("complete", "layer-", 10, 10),
    ]
