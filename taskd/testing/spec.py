"""What a container is unless a test says otherwise, for OCI runtimes and for those that are none.

Source: ``populateDefaultUnixSpec`` in containerd's ``oci/spec.go``, of which this is what a program
needs that is run for a test: namespaces of its own but for the network, and the usual mounts.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from taskd.proto.google.protobuf import Any as AnyMessage

__all__ = ["ENV", "container", "merged", "packed", "process"]

ENV = (f"PATH={os.defpath}",)

_TYPE = "types.containerd.io/opencontainers/runtime-spec/1/"
_NAMESPACES = ("pid", "ipc", "uts", "mount")
_MOUNTS = (
    ("/proc", "proc", ("nosuid", "noexec", "nodev")),
    ("/dev", "tmpfs", ("nosuid", "strictatime", "mode=755", "size=65536k")),
    ("/dev/pts", "devpts", ("nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620")),
    ("/dev/shm", "tmpfs", ("nosuid", "noexec", "nodev", "mode=1777", "size=65536k")),  # noqa: S108
)


def process(args: Sequence[str], env: Sequence[str]) -> dict[str, Any]:
    """``process`` of the OCI runtime specification, for this process's user."""
    user = {"uid": os.getuid(), "gid": os.getgid()}
    return {"args": list(args), "cwd": "/", "env": list(env), "user": user}


def container(process: Mapping[str, Any], rootfs: Path, cgroup: str) -> dict[str, Any]:
    """A whole specification. An ordinary user's has no cgroup: only root may make one."""
    return {
        "ociVersion": "1.0.2",
        "process": process,
        "root": {"path": str(rootfs)},
        "mounts": [
            {"destination": place, "type": kind, "source": kind, "options": list(options)}
            for place, kind, options in _MOUNTS
        ],
        "linux": {
            "namespaces": [{"type": name} for name in _NAMESPACES],
            **({"cgroupsPath": cgroup} if os.geteuid() == 0 else {}),
        },
    }


def merged(document: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    """`document` with what `more` says: objects are merged, everything else is replaced."""
    result = dict(document)
    for name, value in more.items():
        there = result.get(name)
        both = isinstance(there, Mapping) and isinstance(value, Mapping)
        result[name] = merged(there, value) if both else value  # type: ignore[arg-type]
    return result


def packed(name: str, document: Mapping[str, Any]) -> AnyMessage:
    """A document in JSON as containerd's clients send it; `name` is ``Spec`` or ``Process``."""
    return AnyMessage(type_url=_TYPE + name, value=json.dumps(document).encode())
