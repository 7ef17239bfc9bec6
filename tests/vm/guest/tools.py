"""What the tests in the virtual machine share: programs, cgroups, systemd's units."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from harness.client import Client
from harness.containers import SPEC_TYPE

from taskd.proto.containerd.runc.v1 import Options
from taskd.proto.containerd.services.containers.v1 import (
    Container,
    ContainerRuntime,
    CreateContainerRequest,
)
from taskd.proto.google.protobuf import Any as AnyMessage

__all__ = ["ROOT", "cgroup", "create", "parent", "run", "show", "soon"]

ROOT = Path("/sys/fs/cgroup")
_SECONDS = 60.0
_Found = TypeVar("_Found")


def run(*command: str, check: bool = True) -> str:
    """What a program says, on both of its streams."""
    done = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
        check=False,
    )
    assert not check or done.returncode == 0, f"{command}: {done.returncode}\n{done.stdout}"
    return done.stdout.strip()


def soon(holds: Callable[[], _Found]) -> _Found:
    """What `holds` returns when it is something, which must be soon."""
    deadline = time.monotonic() + _SECONDS
    while not (found := holds()):
        assert time.monotonic() < deadline, "it never was so"
        time.sleep(0.1)
    return found


def show(unit: str, key: str, *options: str) -> str:
    """A property of a unit's."""
    return run("systemctl", *options, "show", "--value", "--property", key, unit)


def cgroup(pid: int) -> Path:
    """Where a process is, below `ROOT`."""
    return ROOT / Path(f"/proc/{pid}/cgroup").read_text().strip().removeprefix("0::/")


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


async def create(
    ask: Client, name: str, document: Mapping[str, Any], runtime: str, options: Options
) -> None:
    """The record of a container."""
    packed = AnyMessage(type_url="containerd.runc.v1.Options", value=bytes(options))
    container = Container(
        id=name,
        runtime=ContainerRuntime(name=runtime, options=packed),
        spec=AnyMessage(type_url=SPEC_TYPE, value=json.dumps(document).encode()),
    )
    await ask.containers.create(CreateContainerRequest(container=container))
