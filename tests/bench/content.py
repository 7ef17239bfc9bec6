"""Blobs, with containerd's own client."""

from __future__ import annotations

import hashlib
import subprocess
import tempfile
import time
from pathlib import Path

from bench.table import Sides, Table

__all__ = ["get"]

SIZE = 400 << 20


def get(sides: Sides, rounds: int = 3) -> Table:
    table = Table(f"{SIZE >> 20} MiB of content", "s")
    with tempfile.NamedTemporaryFile() as file:
        Path(file.name).write_bytes(bytes(range(256)) * (SIZE >> 8))
        for number, (side, daemon, namespace) in enumerate(sides.alternate(rounds)):
            # Another blob each time: containerd removes the last one some time after it says so,
            # and would have to be sent nothing.
            with Path(file.name).open("r+b") as data:
                data.write(number.to_bytes(8))
                data.seek(0)
                digest = f"sha256:{hashlib.file_digest(data, 'sha256').hexdigest()}"
            for row, command in (
                ("ctr content ingest", ["ingest", "bench", "--expected-digest", digest]),
                ("ctr content get", ["get", digest]),
            ):
                begin = time.perf_counter()
                with Path(file.name).open("rb") as data:
                    subprocess.run(
                        daemon.ctr_command("content", *command, namespace=namespace),
                        stdin=data,
                        stdout=subprocess.DEVNULL,
                        check=True,
                    )
                table.add(row, side, time.perf_counter() - begin)
            daemon.ctr("content", "rm", digest, namespace=namespace)
    return table
