"""An image from a registry on loopback to snapshots that can be run, beside containerd 2.x."""

from __future__ import annotations

import os
import random
import tempfile
import time
from pathlib import Path

from bench.table import Sides, Table
from harness.daemons import Containerd, Taskd
from harness.generations import GENERATIONS
from harness.registry import Image, Registry, layer

__all__ = ["image"]

LAYERS = 5
FILES = 60
SIZE = 1 << 20


def image(sides: Sides, rounds: int = 5) -> Table:
    """`sides` has containerd 1.6, which knows no transfers: there are others here."""
    table = Table(f"pull of {LAYERS * FILES * SIZE >> 20} MiB in {LAYERS} gzip layers", "s")
    path = f"{GENERATIONS[-1].binaries()}:{os.environ['PATH']}"
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        folder = Path(name)
        with (
            Registry(folder / "r") as registry,
            Containerd(folder / "c", path=path) as containerd,
            Taskd(folder / "t", "--log-level", "warn", path=path) as taskd,
        ):
            registry.put(Image(tuple(map(_layer, range(LAYERS)))), "bench/image:1")
            reference = registry.name("bench/image:1")
            own = Sides(containerd, taskd, sides.rootfs, sides.namespace)
            for number, (side, daemon, namespace) in enumerate(own.alternate(rounds + 1)):
                begin = time.perf_counter()
                pull = ("images", "pull", "--plain-http", reference)
                daemon.ctr(*pull, namespace=namespace, timeout=300)
                if number > 1:  # nobody's first
                    table.add("ctr images pull", side, time.perf_counter() - begin)
                daemon.ctr("images", "rm", "--sync", reference, namespace=namespace)
    return table


def _layer(number: int) -> bytes:
    """Files half of which cannot be compressed."""
    source = random.Random(number)
    half = SIZE // 2
    return layer(
        {
            f"layer{number}/file{each}": source.randbytes(half) + bytes(range(256)) * (half // 256)
            for each in range(FILES)
        }
    )
