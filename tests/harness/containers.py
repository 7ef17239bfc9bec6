"""Containers to run: a root filesystem with busybox, and OCI specifications for it."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path

from taskd.client import spec as client_spec
from taskd.proto.google.protobuf import Any

__all__ = ["PROCESS_TYPE", "SPEC_TYPE", "hungry", "make_rootfs", "process", "spec"]

SPEC_TYPE = "types.containerd.io/opencontainers/runtime-spec/1/Spec"
PROCESS_TYPE = "types.containerd.io/opencontainers/runtime-spec/1/Process"

_APPLETS = ("cat", "cp", "echo", "env", "false", "id", "kill", "ls", "ps", "sh", "sleep", "stty")
_APPLETS += ("true", "tty", "wc", "yes", "dd", "seq", "pwd", "trap", "head", "date", "mkdir")


def make_rootfs(folder: Path) -> Path:
    """Lay out a root filesystem below `folder`."""
    for name in ("bin", "dev", "etc", "proc", "sys", "tmp"):
        (folder / name).mkdir(parents=True)
    busybox = shutil.which("busybox")
    assert busybox is not None
    shutil.copy(busybox, folder / "bin/busybox")
    for applet in _APPLETS:
        (folder / "bin" / applet).symlink_to("busybox")
    return folder


def _process(
    arguments: Sequence[str], *, terminal: bool = False, cwd: str = "/"
) -> dict[str, object]:
    return client_spec.process(
        arguments,
        env=["PATH=/bin", "TERM=xterm"],
        cwd=cwd,
        user={"uid": 0, "gid": 0},
        tty=terminal,
        privileges=False,
    )


def process(arguments: Sequence[str], *, terminal: bool = False, cwd: str = "/") -> Any:
    """The specification of an exec."""
    return client_spec.packed("Process", _process(arguments, terminal=terminal, cwd=cwd))


def hungry(rootfs: Path) -> Any:
    """The specification of a container that soon wants more memory than it may have."""
    script = "sleep 0.5; dd if=/dev/zero of=/dev/null bs=512M count=1; sleep 1000"
    # Newer runcs need some 12 MiB in the container's group to start.
    limits = {"memory": {"limit": 32 << 20, "swap": 32 << 20}}
    return spec(rootfs, ["/bin/sh", "-c", script], resources=limits)


def spec(
    rootfs: Path | str,
    arguments: Sequence[str],
    *,
    terminal: bool = False,
    cwd: str = "/",
    binds: Mapping[str, Path] | None = None,
    host_network: bool = False,
    resources: Mapping[str, object] | None = None,
    annotations: Mapping[str, str] | None = None,
    writable: bool = False,
) -> Any:
    """The specification of a container without a network, or with the host's.

    `binds` are folders of the host's, by where they are in the container.
    """
    namespaces = ["pid", "ipc", "uts", "mount", *([] if host_network else ["network"])]
    document = {
        "ociVersion": "1.0.2",
        "process": _process(arguments, terminal=terminal, cwd=cwd),
        "root": {"path": str(rootfs), "readonly": not writable},
        "annotations": dict(annotations or {}),
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["mode=755"]},
            {"destination": "/dev/pts", "type": "devpts", "source": "devpts"},
            {"destination": "/tmp", "type": "tmpfs", "source": "tmpfs"},
            *(
                {"destination": place, "type": "bind", "source": str(source), "options": ["rbind"]}
                for place, source in (binds or {}).items()
            ),
        ],
        "linux": {
            # By default runc takes the container's id alone, which other tests have too.
            "cgroupsPath": f"/test-{uuid.uuid4().hex}",
            "namespaces": [{"type": name} for name in namespaces],
            "resources": resources or {},
        },
    }
    return client_spec.packed("Spec", document)
