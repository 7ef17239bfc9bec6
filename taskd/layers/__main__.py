"""The process: does what its one argument says, in JSON, and tells in JSON how it went."""

from __future__ import annotations

import ctypes
import json
import os
import resource
import sys
from pathlib import Path
from typing import Any

from taskd.layers import confinement
from taskd.layers.errors import Exhausted, ParentsWanted, Refused, failed

_MEMORY = 1 << 30
"""Bytes of address space: names have to be remembered."""

_libc = ctypes.CDLL(None, use_errno=True)


def main() -> None:
    order = json.loads(sys.argv[1])
    confinement.die_with(order["parent"])
    os.umask(0)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    try:
        outcome = _TASKS[order["task"]](order)
    except Exhausted as error:
        outcome = {"exhausted": str(error)}
    except MemoryError:
        outcome = {"exhausted": f"the layer takes more than {_MEMORY} bytes of memory"}
    except Refused as error:
        outcome = {"error": str(error)}
    except OSError as error:
        outcome = {"error": str(failed("", error))}
    except Exception as error:
        # In a root that anybody may have made there is nothing to show it with.
        outcome = {"error": f"{type(error).__name__}: {error}"}
    json.dump(outcome, sys.stdout)
    sys.stdout.flush()
    os._exit(0)  # a thread may be waiting


def _apply(order: dict[str, Any]) -> dict[str, Any]:
    """Unpack the blob that is standard input onto mounts; there is no digest if it cannot yet be.

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
    place = Path(upper or f"{order['place']}/left")
    if not upper:
        confinement.mount(given, place)
    root = _folder(place)
    parents = [_folder(Path(each)) for each in lower] if upper else []
    ahead = bool(upper) and order["ahead"]
    confinement.enter(root)
    layer = Layer(
        overlay=bool(upper),
        parents=None if ahead else parents,
        devices=not (mapped or rootless),
        owners=not rootless,
        max_size=order["max_size"],
        max_entries=order["max_entries"],
    )
    source = Source(0, sniff=order["sniff"], limit=order["max_size"])
    try:
        layer.unpack(source)
    except ParentsWanted:
        return {"digest": None}
    digest = source.finish()
    is_one_folder = upper or [each["type"] for each in given] == ["bind"]
    if order["sync"] and is_one_folder and _libc.syncfs(root) != 0:
        raise failed("failed to syncfs", OSError(ctypes.get_errno(), ""))
    return {"digest": digest, "size": source.size}


def _folder(path: Path) -> int:
    try:
        return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise failed(f"open {path}", error) from None


def _diff(order: dict[str, Any]) -> dict[str, Any]:
    """Write what differs between two lists of mounts to a descriptor."""
    from taskd.layers import diff
    from taskd.layers.streams import Compressor

    confinement.lonely()
    place = Path(order["place"])
    confinement.mount(order["left"], place / "left")
    confinement.mount(map(confinement.readonly, order["right"]), place / "right")
    # Links that are changed meanwhile lead nowhere else.
    confinement.enter(_folder(place))
    out = Compressor(order["compression"], order["out"])
    diff.write(b"/left", b"/right", out, order["latest"])
    return {"digest": out.finish()}


_TASKS = {"apply": _apply, "diff": _diff}

if __name__ == "__main__":
    main()
