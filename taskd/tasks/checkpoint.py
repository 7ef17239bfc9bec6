"""Where a checkpoint is written to and restored from, as the runtime's options have it.

Source: containerd's ``services/tasks/local.go``, ``getCheckpointPath`` and ``getRestorePath``.
"""

from __future__ import annotations

from typing import TypeVar

import betterproto2

from taskd.errors import Unknown
from taskd.proto.containerd.linux import runc as linux
from taskd.proto.containerd.runc import v1 as runc
from taskd.types import TypedValue
from taskd.wellknown import unpack

__all__ = ["checkpoint_path", "restore_path"]

_Runc = TypeVar("_Runc", bound=betterproto2.Message)
_Linux = TypeVar("_Linux", bound=betterproto2.Message)

_LINUX = "io.containerd.runtime.v1.linux"
_RUNC = ["io", "containerd", "runc"]


def checkpoint_path(runtime: str, options: TypedValue | None) -> str:
    """Folder that Checkpoint's options name, or empty: then it goes into the content store.

    Raises `Unknown` for options of another runtime.
    """
    types = (runc.CheckpointOptions, linux.CheckpointOptions)
    found = _options(runtime, options, types, "checkpoint")
    return "" if found is None else found.image_path


def restore_path(runtime: str, options: TypedValue | None) -> str:
    """Folder of the checkpoint that Create's options name, or empty.

    Raises `Unknown` for options of another runtime.
    """
    found = _options(runtime, options, (runc.Options, linux.CreateOptions), "create")
    return "" if found is None else found.criu_image_path


def _options(
    runtime: str, options: TypedValue | None, types: tuple[type[_Runc], type[_Linux]], what: str
) -> _Runc | _Linux | None:
    if options is None:
        return None
    if runtime.split(".")[:3] == _RUNC:
        wanted: type[_Runc] | type[_Linux] = types[0]
    elif runtime == _LINUX:
        wanted = types[1]
    else:
        return None
    found = unpack(options)
    if found is None:
        raise Unknown(f"type with url {options.type_url}: not found")
    if not isinstance(found, wanted):
        raise Unknown(f"invalid task {what} option for {runtime}")
    return found
