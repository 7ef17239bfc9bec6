"""What is done to a mount before it is made: the part of its type before a slash says what.

``format/TYPE``   source, target and options may name mounts made before: ``{{ mount 0 }}``
``mkfs/TYPE``     see `mkfs`
``mkdir/TYPE``    an option ``X-containerd.mkdir.path=PATH[:MODE[:UID:GID]]`` makes a folder

Sources: containerd's ``core/mount/manager/format.go`` and ``mkdir.go``.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from taskd import rooted
from taskd.activations.mkfs import mkfs
from taskd.activations.types import Active
from taskd.content.files import explained
from taskd.errors import InvalidArgument, Unimplemented, Unknown
from taskd.printable import quoted
from taskd.types import Mount

__all__ = ["TRANSFORMS", "Transform", "split"]

Transform = Callable[[Mount, Sequence[Active], Sequence[Path]], Mount]
"""Takes a mount, those that were made before it, and the folders below which it may make others."""

_ACTION = re.compile(r"\{\{-? *(\w+)((?: +-?\d+)*) *-?\}\}")
_MKDIR = "X-containerd.mkdir."


def split(kind: str) -> tuple[list[str], str]:
    """The names of the transforms in a mount's type, and what is left of it."""
    names = []
    while "/" in kind and kind.partition("/")[0] in TRANSFORMS:
        name, _, kind = kind.partition("/")
        names.append(name)
    return names, kind


def _format(mount: Mount, active: Sequence[Active], _: Sequence[Path]) -> Mount:
    """Raises `Unknown` for what cannot be filled in."""

    def filled(text: str) -> str:
        rest = _ACTION.sub("", text)
        if "{{" in rest:
            raise Unknown(f"template: cannot be understood: {quoted(text)}")
        return _ACTION.sub(lambda found: _value(found[1], found[2].split(), active), text)

    return replace(
        mount,
        source=filled(mount.source),
        target=filled(mount.target),
        options=tuple(filled(each) for each in mount.options),
    )


def _value(function: str, arguments: Sequence[str], active: Sequence[Active]) -> str:
    numbers = [int(each) for each in arguments]
    have = f"has {len(active)} active mounts"
    match function, numbers:
        case (("source" | "target" | "mount"), [number]):
            if not 0 <= number < len(active):
                raise Unknown(f"index out of bounds: {number}, {have}")
            found = active[number]
            return {
                "source": found.mount.source,
                "target": found.mount.target,
                "mount": found.point,
            }[function]
        case "overlay", [start, end]:
            step = -1 if start > end else 1
            if min(start, end) < 0 or max(start, end) >= len(active):
                raise Unknown(f"invalid range: {start}-{end}, {have}")
            return ":".join(active[each].point for each in range(start, end + step, step))
    raise Unknown(f"template: no such function: {' '.join((function, *arguments))}")


def _mkdir(mount: Mount, _: Sequence[Active], roots: Sequence[Path]) -> Mount:
    """Raises `InvalidArgument`, `Unknown`, `Unimplemented` for where nothing may be made."""
    for option in mount.options:
        if option.startswith(_MKDIR):
            _make(option, roots)
    rest = tuple(each for each in mount.options if not each.startswith(_MKDIR))
    return replace(mount, options=rest)


def _make(option: str, roots: Sequence[Path]) -> None:
    value = option.removeprefix(_MKDIR)
    parts = value.removeprefix("path=").split(":")
    if not value.startswith("path=") or len(parts) not in (1, 2, 4):
        raise InvalidArgument(f"invalid mkdir option {quoted(option)}")
    folder, *rest = parts
    mode = _number(rest[0], "mode", 8) if rest else 0o700
    if mode & ~0o777:
        raise Unknown(f"invalid mode {mode:o}")
    owner = None
    if len(rest) == 3:
        owner = _number(rest[1], "uid"), _number(rest[2], "gid")
    for root in roots:
        if folder.startswith(f"{root}/"):
            _make_in(root, folder.removeprefix(f"{root}/"), folder, mode, owner)
            return
    raise Unimplemented(f"no root {quoted(folder)} configured for mkdir")


def _make_in(root: Path, path: str, shown: str, mode: int, owner: tuple[int, int] | None) -> None:
    above, _, name = path.rstrip("/").rpartition("/")
    if name in ("", ".", ".."):
        raise InvalidArgument(f"invalid mkdir path {quoted(shown)}")
    doing = explained(f"failed to create directory {quoted(shown)}: mkdir {shown}")
    # Links in it lead nowhere else, whoever may have made them.
    with doing, rooted.opened(root, above or ".") as parent:
        place = parent / name
        try:
            found = place.lstat()
        except FileNotFoundError:
            place.mkdir()
            place.chmod(mode)
            if owner is not None:
                os.chown(place, *owner, follow_symlinks=False)
            return
    if not stat.S_ISDIR(found.st_mode) or stat.S_IMODE(found.st_mode) & 0o777 != mode:
        raise Unimplemented(f"{shown} is there, and not a directory of mode {mode:o}")


def _number(text: str, what: str, base: int = 10) -> int:
    if not re.fullmatch("[0-7]+" if base == 8 else "[0-9]+", text):
        words = text if what == "mode" else quoted(text)
        raise InvalidArgument(f"invalid {what} {words}")
    return int(text, base)


TRANSFORMS: dict[str, Transform] = {"format": _format, "mkdir": _mkdir, "mkfs": mkfs}
