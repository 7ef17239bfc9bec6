"""The process: does what it is told, and tells on standard output how it went.

What it imports, it imports again for each layer, and it lives for less than a second: half of what
it took were `json`, `pathlib`, `re`, `signal` and `typing`.
"""

from __future__ import annotations

import ctypes
import os
import resource

from taskd.layers import confinement
from taskd.layers.errors import Exhausted, ParentsWanted, Refused, failed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_MEMORY = 1 << 30
"""Bytes of address space: names have to be remembered."""

_libc = ctypes.CDLL(None, use_errno=True)


def main(order: dict[str, Any]) -> None:
    """Do the task that `order` has, and end.

    Its first line is ``done``, or what was in the way: ``error`` or ``exhausted``. What follows is
    the digest of the tar and, if it was unpacked, its size in bytes; or else words.
    """
    confinement.die_with(order["parent"])
    os.umask(0)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    try:
        told = "done", _TASKS[order["task"]](order)
    except Exhausted as error:
        told = "exhausted", str(error)
    except MemoryError:
        told = "exhausted", f"the layer takes more than {_MEMORY} bytes of memory"
    except Refused as error:
        told = "error", str(error)
    except OSError as error:
        told = "error", str(failed("", error))
    except Exception as error:
        # In a root that anybody may have made there is nothing to show it with.
        told = "error", f"{type(error).__name__}: {error}"
    os.write(1, os.fsencode("\n".join(told)))
    os._exit(0)  # a thread may be waiting


def _apply(order: dict[str, Any]) -> str:
    """Unpack the blob that is standard input onto mounts; nothing is told if it cannot yet be.

    That is if it is told to be `ahead` of the layers below, and depends on them.
    """
    from taskd.layers.apply import Layer
    from taskd.layers.streams import Source

    mapped = confinement.mapped()
    rootless = confinement.lonely()
    given = order["mounts"]
    upper, lower = "", []
    if len(given) == 1 and given[0]["type"] == "overlay" and not (mapped or rootless):
        # Into the folder itself: what is deleted has to be written down there.
        for option in given[0]["options"]:
            if option.startswith("upperdir="):
                upper = option.removeprefix("upperdir=")
            elif option.startswith("lowerdir="):
                lower = option.removeprefix("lowerdir=").split(":")
    place = upper or f"{order['place']}/left"
    if not upper:
        confinement.mount(given, place)
    root = _folder(place)
    parents = [_folder(each) for each in lower] if upper else []
    ahead = bool(upper) and order["ahead"]
    source = Source(0, sniff=order["sniff"], limit=order["max_size"])
    confinement.enter(root)
    layer = Layer(
        overlay=bool(upper),
        parents=None if ahead else parents,
        devices=not (mapped or rootless),
        owners=not rootless,
        max_size=order["max_size"],
        max_entries=order["max_entries"],
    )
    try:
        layer.unpack(source)
    except ParentsWanted:
        return ""
    digest = source.finish()
    is_one_folder = upper or [each["type"] for each in given] == ["bind"]
    if order["sync"] and is_one_folder and _libc.syncfs(root) != 0:
        raise failed("failed to syncfs", OSError(ctypes.get_errno(), ""))
    return f"{digest} {source.size}"


def _folder(path: str) -> int:
    try:
        return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise failed(f"open {path}", error) from None


def _diff(order: dict[str, Any]) -> str:
    """Write what differs between two lists of mounts to a descriptor."""
    from taskd.layers import diff
    from taskd.layers.streams import Compressor

    confinement.lonely()
    place = order["place"]
    confinement.mount(order["left"], f"{place}/left")
    confinement.mount(map(confinement.readonly, order["right"]), f"{place}/right")
    out = Compressor(order["compression"], order["out"])
    # Links that are changed meanwhile lead nowhere else.
    confinement.enter(_folder(place))
    diff.write(b"/left", b"/right", out, order["latest"])
    return out.finish()


_TASKS = {"apply": _apply, "diff": _diff}
