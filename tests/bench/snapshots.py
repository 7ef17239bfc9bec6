"""One layer more for a container: `Prepare`, `Mounts` and `Remove`, one client, one connection."""

from __future__ import annotations

import statistics
import time

from bench.table import Sides, Table
from harness.daemons import client

from taskd.proto.containerd.services.leases.v1 import CreateRequest, LeasesStub
from taskd.proto.containerd.services.snapshots.v1 import (
    CommitSnapshotRequest,
    MountsRequest,
    PrepareSnapshotRequest,
    RemoveSnapshotRequest,
    SnapshotsStub,
)

__all__ = ["layers"]

NAME = "overlayfs"
LEASE = "bench"
HELD = {"containerd-lease": LEASE}
"""What is made is collected otherwise, since what is removed has garbage collected."""


async def layers(sides: Sides, rounds: int = 6, count: int = 40) -> Table:
    """On five committed snapshots, as containers of an image are."""
    table = Table(f"Snapshots, {NAME}, p50", "ms")
    for _, daemon, namespace in sides.alternate(1):
        async with client(daemon.address, namespace) as channel:
            snapshots = SnapshotsStub(channel)
            await LeasesStub(channel).create(CreateRequest(id=LEASE))
            parent = ""
            for number in range(5):
                await snapshots.prepare(
                    PrepareSnapshotRequest(snapshotter=NAME, key="key", parent=parent),
                    metadata=HELD,
                )
                parent = f"layer-{number}"
                # It stays, whatever is collected.
                labels = {"containerd.io/gc.root": "bench"}
                await snapshots.commit(
                    CommitSnapshotRequest(snapshotter=NAME, name=parent, key="key", labels=labels)
                )
    for side, daemon, namespace in sides.alternate(rounds):
        async with client(daemon.address, namespace) as channel:
            snapshots = SnapshotsStub(channel)
            taken: dict[str, list[float]] = {}
            for number in range(count):
                key = f"container-{number}"
                calls = {
                    "Prepare": snapshots.prepare(
                        PrepareSnapshotRequest(snapshotter=NAME, key=key, parent="layer-4"),
                        metadata=HELD,
                    ),
                    "Mounts": snapshots.mounts(MountsRequest(snapshotter=NAME, key=key)),
                    "Remove": snapshots.remove(
                        RemoveSnapshotRequest(snapshotter=NAME, key=key), metadata=HELD
                    ),
                }
                begin = time.perf_counter()
                for name, call in calls.items():
                    before = time.perf_counter()
                    await call
                    taken.setdefault(name, []).append((time.perf_counter() - before) * 1e3)
                taken.setdefault("all three", []).append((time.perf_counter() - begin) * 1e3)
            for name, samples in taken.items():
                table.add(name, side, statistics.median(samples))
    return table
