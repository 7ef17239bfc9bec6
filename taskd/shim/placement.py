"""Where a shim's own process is to be: its cgroup, and its place among what is killed for memory.

Source: containerd's ``runtime/v2/runc/manager/manager_linux.go``, ``Start``.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from taskd.errors import InvalidArgument, NotFound, Unknown
from taskd.wire import MalformedMessage, fields

if TYPE_CHECKING:
    from taskd.shim.request import StartRequest

__all__ = ["adjust_oom_score", "join_cgroup"]

_ROOT = Path("/sys/fs/cgroup")
_OPTIONS = "containerd.runc.v1.Options"
_SHIM_CGROUP = 3
"""Number of the field in these options."""


def join_cgroup(request: StartRequest) -> None:
    """Enter the cgroup that runc's options name for the shim, if they do.

    Raises `TaskdError` if there is no such cgroup, or if it cannot be entered.
    """
    try:
        options = fields(request.of_type(_OPTIONS) or b"")
    except MalformedMessage:
        return
    names = [value for key, value, _, _ in options if key >> 3 == _SHIM_CGROUP]
    if names and isinstance(name := names[-1], bytes) and name:
        _join(os.fsdecode(name))


def _join(name: str) -> None:
    if ".." in Path(name).parts:
        raise InvalidArgument(f'shim cgroup "{name}" leaves the hierarchy')
    inner = name.lstrip("/")
    unified = (_ROOT / "cgroup.controllers").exists()
    places = [_ROOT / inner] if unified else [each / inner for each in _ROOT.iterdir()]
    files = [each / "cgroup.procs" for each in places]
    if not unified:
        files = [each for each in files if each.exists()]
    if not files:
        raise NotFound(f"failed to load cgroup {name}: cgroups: cgroup deleted", verbatim=True)
    for file in files:
        doing = "open"
        try:
            with file.open("w") as members:
                doing = "write"
                members.write(str(os.getpid()))
        except OSError as exc:
            words = (exc.strerror or str(exc)).lower()
            raise Unknown(f"failed to join cgroup {name}: {doing} {file}: {words}") from exc


def adjust_oom_score() -> None:
    """Be killed before the daemon is, when memory is short (containerd: ``AdjustOOMScore``)."""
    with suppress(OSError):
        parent = int(Path(f"/proc/{os.getppid()}/oom_score_adj").read_text())
        Path("/proc/self/oom_score_adj").write_text(str(min(parent + 1, 1000)))
