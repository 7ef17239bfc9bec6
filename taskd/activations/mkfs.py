"""``mkfs/TYPE``: a file with a file system in it, made if it is not there.

Options are ``X-containerd.mkfs.size=16MiB``, ``.fs=ext4`` and ``.uuid=…``.
Source: containerd's ``core/mount/manager/mkfs.go``.
"""

from __future__ import annotations

import os
import re
import secrets
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from taskd import inherited, rooted
from taskd.activations.types import Active
from taskd.content.files import explained
from taskd.errors import InvalidArgument, Unimplemented, Unknown
from taskd.printable import quoted
from taskd.types import Mount

__all__ = ["mkfs"]

_PREFIX = "X-containerd.mkfs."
_UNITS = {unit: 1 << (10 * power) for power, unit in enumerate(("", "k", "m", "g", "t", "p"))}
_UUID = {"ext2": "-U", "ext3": "-U", "ext4": "-U", "xfs": "-m"}


def mkfs(mount: Mount, _: Sequence[Active], roots: Sequence[Path]) -> Mount:
    """Raises `InvalidArgument`, `Unknown`, `Unimplemented` for where nothing may be made."""
    size, kind, uuid = 0, "ext4", ""
    rest = []
    for option in mount.options:
        key, _equals, value = option.removeprefix(_PREFIX).partition("=")
        match key if option.startswith(_PREFIX) else None:
            case None:
                rest.append(option)
            case "size":
                size = _bytes(value)
            case "fs":
                kind = value
            case "uuid":
                uuid = value
            case _:
                raise InvalidArgument(f"unknown mount option {key}")
    if size == 0:
        raise InvalidArgument("mkfs requires mkfs.size option")
    if kind not in _UUID:
        raise InvalidArgument(f"unsupported filesystem {quoted(kind)}")
    flags = [_UUID[kind], f"uuid={uuid}" if kind == "xfs" else uuid] if uuid else []
    for root in roots:
        if mount.source.startswith(f"{root}/"):
            path = mount.source.removeprefix(f"{root}/")
            _make(root, path, size, [f"mkfs.{kind}", "-q", *flags, "--"], mount.source)
            return replace(mount, options=tuple(rest))
    raise Unimplemented(f"no root {quoted(mount.source)} configured for mkfs")


def _make(root: Path, path: str, size: int, command: Sequence[str], shown: str) -> None:
    above, _, name = path.rpartition("/")
    if name in ("", ".", ".."):
        raise InvalidArgument(f"invalid mkfs path {quoted(shown)}")
    doing = explained(f"failed to create file {quoted(shown)}: open {shown}")
    with doing, rooted.opened(root, above or ".") as parent:
        if os.path.lexists(parent / name):
            return
        # It is there when it is whole.
        made = parent / f".{name}-{secrets.token_hex(8)}"
        try:
            descriptor = os.open(made, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o640)
            try:
                os.ftruncate(descriptor, size)
            finally:
                os.close(descriptor)
            _run([*command, str(made)], shown)
            made.rename(parent / name)
        except BaseException:
            with suppress(FileNotFoundError):
                made.unlink()
            raise


def _run(command: Sequence[str], shown: str) -> None:
    with inherited.popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as process:
        words, _ = process.communicate()
    if process.returncode:
        said = words.decode(errors="replace").strip()
        raise Unknown(
            f"failed format {quoted(shown)}: {command[0]} failed: {said}: "
            f"exit status {process.returncode}"
        )


def _bytes(text: str) -> int:
    """As Go's ``units.RAMInBytes``: what is called a kilobyte has 1024 bytes."""
    parts = re.fullmatch(r"(\d+(?:\.\d+)?) ?([kmgtp]?)(?:i?b)?", text.lower())
    if parts is None:
        raise Unknown(f"bad option size: invalid size: '{text}'")
    return int(float(parts[1]) * _UNITS[parts[2]])
