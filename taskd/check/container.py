"""Specifications of the containers that are made: for runtimes with namespaces, and without.

A container's root is what the host's is, read-only, unless the user gives another; a shim of plain
processes has no use for it, and as an ordinary user there is none.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any as AnyType

from taskd.proto.containerd.types import Mount
from taskd.proto.google.protobuf import Any

__all__ = ["MARK", "process", "process_any", "resources", "rootfs_mounts", "spec"]

MARK = "TASKD_CHECK"
"""Variable in the environment of every process in our containers: the namespace."""

_TYPE = "types.containerd.io/opencontainers/runtime-spec/1/"


def process(
    arguments: Sequence[str],
    namespace: str,
    *,
    terminal: bool = False,
    env: Mapping[str, str] | None = None,
    cwd: str = "/",
) -> dict[str, AnyType]:
    """``process`` of the OCI runtime specification."""
    variables = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "TERM": "xterm", MARK: namespace}
    return {
        "args": list(arguments),
        "cwd": cwd,
        "env": [f"{name}={value}" for name, value in (variables | dict(env or {})).items()],
        "terminal": terminal,
        "user": {"uid": os.getuid(), "gid": os.getgid()},
    }


def process_any(document: AnyType) -> Any:
    """The specification of an exec."""
    return Any(type_url=f"{_TYPE}Process", value=json.dumps(document).encode())


def resources(document: AnyType) -> Any:
    """What Update takes."""
    return Any(type_url=f"{_TYPE}LinuxResources", value=json.dumps(document).encode())


def spec(
    container_process: Mapping[str, AnyType],
    cgroup: str,
    root: str,
    *,
    limits: Mapping[str, AnyType] | None = None,
    annotations: Mapping[str, str] | None = None,
    hooks: Mapping[str, AnyType] | None = None,
) -> bytes:
    """``config.json`` of a bundle with that root filesystem."""
    namespaces = ["pid", "ipc", "uts", "mount", "network"]
    document = {
        "ociVersion": "1.0.2",
        "process": container_process,
        "root": {"path": root, "readonly": True},
        "hostname": "check",
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["mode=755"]},
            {
                "destination": "/dev/pts",
                "type": "devpts",
                "source": "devpts",
                "options": ["newinstance", "ptmxmode=0666", "mode=0620"],
            },
            {"destination": "/tmp", "type": "tmpfs", "source": "tmpfs"},  # noqa: S108
        ],
        "linux": {
            "cgroupsPath": cgroup,
            "namespaces": [{"type": name} for name in namespaces],
            **({"resources": limits} if limits else {}),
        },
        **({"annotations": annotations} if annotations else {}),
        **({"hooks": hooks} if hooks else {}),
    }
    return json.dumps(document).encode()


def rootfs_mounts(rootfs: Path) -> list[Mount]:
    """What the daemon would have its snapshotter say; as an ordinary user, nothing."""
    if os.geteuid() != 0:
        return []
    return [Mount(type="bind", source=str(rootfs), options=["bind", "ro"])]
