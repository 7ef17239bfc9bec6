"""The folder of an activation: what is mounted in it. All of it blocks.

N/1, N/2 …         mount points, those mounted last first; of loop devices, links to them
N/1-type …         what each is
"""

from __future__ import annotations

import os
import time
from pathlib import Path

from taskd import mounts
from taskd.activations import loops
from taskd.activations.types import Active
from taskd.content.files import explained
from taskd.errors import Unknown
from taskd.types import Mount

__all__ = ["HANDLERS", "clear", "make"]

HANDLERS = {"loop"}
"""Types that mount(2) does not know."""


def make(mount: Mount, folder: Path, name: str) -> Active:
    """Mount it as `name` in `folder`. Raises `Unknown`."""
    point = folder / name
    with explained(f"open {point}-type"):
        point.with_name(f"{name}-type").write_text(mount.type)
    if mount.type == "loop":
        loops.attach(mount.source, point)
    else:
        with explained(f"mkdir {point}"):
            point.mkdir(mode=0o700)
        try:
            mounts.mount(mount.type, mount.source, point, mount.options, inside=mount.target)
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise Unknown(f"mount failed {mount.type} {mount.source}: {reason}") from error
    return Active(mount, str(point), time.time_ns())


def clear(folder: Path) -> None:
    """Unmount what is mounted in `folder`, and remove it. Raises `Unknown` if that cannot be."""
    if not folder.exists():
        return
    with explained(f"unmount all in {folder}"):
        names = {entry.name for entry in os.scandir(folder)}
        for name in sorted((each for each in names if each.isdigit()), key=int):
            point = folder / name
            if point.is_symlink():
                loops.detach(point)
            else:
                mounts.unmount_all(point)
                point.rmdir()
        for name in names:
            if name.endswith("-type"):
                (folder / name).unlink()
        folder.rmdir()
