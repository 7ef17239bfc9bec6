"""Layers: how long it takes to unpack them, and what others notice of it."""

from __future__ import annotations

import gzip
import io
import os
import statistics
import tarfile
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import anyio
from bench import calls, costs
from bench.table import Sides, Table
from grpclib.client import Channel
from harness.daemons import Containerd, Daemon, client
from harness.generations import GENERATIONS
from harness.layers import LAYER, variants
from harness.processes import proportional

from taskd import digests
from taskd.proto.containerd.services.content.v1 import ContentStub, WriteAction, WriteContentRequest
from taskd.proto.containerd.services.diff.v1 import ApplyRequest, DiffStub
from taskd.proto.containerd.types import Descriptor, Mount

__all__ = ["memory", "noticed", "unpack"]

LAYERS, SIZE = 5, 60 << 20
KINDS = ("+gzip", "+zstd")
_PIECE = 1 << 20


@contextmanager
def _daemons(sides: Sides) -> Iterator[tuple[dict[str, Daemon], Path]]:
    """Those of the run, the newest containerd beside them, and a folder on a disk."""
    newer = GENERATIONS[-1]
    path = f"{newer.binaries()}:{os.environ['PATH']}"
    with (
        tempfile.TemporaryDirectory(prefix="bench-", dir="/var/tmp") as name,
        Containerd(Path(name, "newer"), path=path) as other,
    ):
        daemons = {"containerd": sides.containerd, "taskd": sides.taskd, newer.name: other}
        yield daemons, Path(name)


async def unpack(sides: Sides, rounds: int = 3) -> list[Table]:
    """An image of five layers from the content store, one after another and all at once."""
    table = Table(f"{LAYERS} layers of {SIZE >> 20} MiB", "s")
    with _daemons(sides) as (daemons, folder):
        namespace = sides.namespace
        found = {side: await _put(daemon, namespace) for side, daemon in daemons.items()}
        for number in range(rounds):
            for kind in (*KINDS, "+gzip, all at once"):
                for side in list(daemons)[:: (1, -1)[number % 2]]:
                    layers = found[side][kind[:5]]
                    at_once = kind not in KINDS
                    before = costs.cpu(daemons[side].pid, children=True)
                    taken = await _unpacked(
                        daemons[side], namespace, layers, folder, at_once=at_once
                    )
                    table.add(kind, side, taken)
                    used = costs.cpu(daemons[side].pid, children=True) - before
                    table.add(f"{kind}, CPU", side, used)
    return list(_by_generation(table))


def _by_generation(table: Table) -> Iterator[Table]:
    """The same beside each containerd."""
    for generation in ("containerd", GENERATIONS[-1].name):
        one = Table(f"{table.title}, beside {generation}", table.unit)
        for row, samples in table.rows.items():
            one.rows[row] = {"taskd": samples["taskd"], "containerd": samples[generation]}
        yield one


async def _unpacked(
    daemon: Daemon, namespace: str, layers: list[Descriptor], folder: Path, *, at_once: bool = False
) -> float:
    """Seconds until all are there."""
    with tempfile.TemporaryDirectory(dir=folder) as name:
        os.sync()
        async with client(daemon.address, namespace) as channel:
            begin = time.perf_counter()
            async with anyio.create_task_group() as group:
                lower: list[Path] = []
                for number, layer in enumerate(layers):
                    upper = Path(name, f"layer{number}")
                    if at_once:
                        group.start_soon(_apply, channel, layer, upper, [])
                    else:
                        await _apply(channel, layer, upper, lower)
                    lower.insert(0, upper)
            return time.perf_counter() - begin


async def _apply(channel: Channel, layer: Descriptor, upper: Path, lower: list[Path]) -> None:
    upper.mkdir()
    work = upper.with_name(f"{upper.name}-work")
    work.mkdir()
    below = lower or [work]
    options = [f"upperdir={upper}", f"workdir={work}", f"lowerdir={':'.join(map(str, below))}"]
    mount = Mount(type="overlay", source="overlay", options=options)
    await DiffStub(channel).apply(ApplyRequest(diff=layer, mounts=[mount]))


async def noticed(sides: Sides, rounds: int = 3) -> list[Table]:
    """What `Tasks.Get` takes while a layer is unpacked over and over."""
    table = Table("Tasks.Get while layers are unpacked, h2load", "µs; as a multiple of alone")
    with _daemons(sides) as (daemons, folder):
        for side, daemon in daemons.items():
            namespace = f"{sides.namespace}-{side}"
            async with client(daemon.address, namespace) as channel:
                layer = await _write(channel, _image()[0]["+gzip"], "+gzip")
                await calls.start(channel, sides.rootfs)
                for _ in range(rounds):
                    alone = await _p99(daemon, namespace, 1000)
                    ended = anyio.Event()
                    async with anyio.create_task_group() as group:
                        group.start_soon(_busy, channel, layer, folder, ended)
                        await anyio.sleep(0.5)
                        meanwhile = await _p99(daemon, namespace, 1000)
                        ended.set()
                    table.add("p99 alone", side, alone)
                    table.add("p99 meanwhile", side, meanwhile)
                    table.add("multiple", side, meanwhile / alone)
                await calls.stop(channel)
    return list(_by_generation(table))


async def _busy(channel: Channel, layer: Descriptor, folder: Path, ended: anyio.Event) -> None:
    while not ended.is_set():
        with tempfile.TemporaryDirectory(dir=folder) as name:
            await _apply(channel, layer, Path(name, "layer"), [])


async def _p99(daemon: Daemon, namespace: str, count: int) -> float:
    latencies = await anyio.to_thread.run_sync(
        lambda: calls.h2load(daemon, namespace, connections=1, streams=1, count=count)
    )
    return statistics.quantiles(latencies, n=100)[98]


async def memory(sides: Sides) -> list[Table]:
    """The most that a daemon and its children have while 1 GB of files is unpacked."""
    table = Table("1 GB unpacked, PSS of the daemon and its children", "MB")
    with _daemons(sides) as (daemons, folder):
        for side, daemon in daemons.items():
            namespace = f"{sides.namespace}-m"
            async with client(daemon.address, namespace) as channel:
                layer = await _write(channel, _repeated(1 << 30), "+gzip")
            daemon.stop()
            daemon.start()
            samples = [proportional(daemon.pid)]
            async with anyio.create_task_group() as group:
                group.start_soon(_watch, daemon.pid, samples)
                await _unpacked(daemon, namespace, [layer], folder)
                group.cancel_scope.cancel()
            table.add("idle", side, samples[0])
            table.add("most", side, max(samples))
    return list(_by_generation(table))


async def _watch(pid: int, samples: list[float]) -> None:
    while True:
        samples.append(await anyio.to_thread.run_sync(proportional, pid))
        await anyio.sleep(0.05)


async def _put(daemon: Daemon, namespace: str) -> dict[str, list[Descriptor]]:
    """Have the layers in the content store."""
    async with client(daemon.address, namespace) as channel:
        return {
            kind: [await _write(channel, layer[kind], kind) for layer in _image()] for kind in KINDS
        }


async def _write(channel: Channel, data: bytes, kind: str) -> Descriptor:
    digest = digests.of(data)

    async def messages() -> AsyncIterator[WriteContentRequest]:
        for at in range(0, len(data), _PIECE):
            piece = data[at : at + _PIECE]
            yield WriteContentRequest(action=WriteAction.WRITE, ref=digest, offset=at, data=piece)
        labels = {"containerd.io/gc.root": "bench"}
        yield WriteContentRequest(
            action=WriteAction.COMMIT, offset=len(data), expected=digest, labels=labels
        )

    async for _ in ContentStub(channel).write(messages()):
        pass
    return Descriptor(media_type=f"{LAYER}{kind}", digest=digest, size=len(data))


@cache
def _image() -> list[dict[str, bytes]]:
    """Files of this machine's /usr, as they come: programs, libraries, sources, texts."""
    paths = (path for path in sorted(Path("/usr").rglob("*")) if path.is_file())
    layers = []
    for _ in range(LAYERS):
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w") as archive:
            for path in paths:
                archive.add(path, str(path)[1:], recursive=False)
                if out.tell() >= SIZE:
                    break
        made = variants(out.getvalue())
        made["+gzip"] = gzip.compress(made[""], 6)
        layers.append(made)
    return layers


@cache
def _repeated(size: int) -> bytes:
    """A gzip layer of so many bytes: the first one's files, again and again in other folders."""
    out = io.BytesIO()
    with (
        gzip.GzipFile(fileobj=out, mode="wb", compresslevel=1) as packed,
        tarfile.open(fileobj=packed, mode="w|") as archive,
    ):
        written = number = 0
        while written < size:
            with tarfile.open(fileobj=io.BytesIO(_image()[0][""])) as original:
                for member in original:
                    if not member.islnk():
                        data = original.extractfile(member) if member.isreg() else None
                        member.name = f"{number}/{member.name}"
                        archive.addfile(member, data)
                        written += member.size
            number += 1
    return out.getvalue()
