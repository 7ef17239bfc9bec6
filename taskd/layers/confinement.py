"""A mount namespace of the process's own, and a root in it.

Whatever is mounted goes when the process does, however it ends, and nobody else sees it. Without
root it takes a user namespace, in which the user is root: there only the user's own identity can
be given to files, and devices cannot be made.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterable

from taskd import mounts
from taskd.layers.errors import failed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

__all__ = ["die_with", "enter", "lonely", "mapped", "mount", "readonly"]

_CLONE_NEWNS, _CLONE_NEWUSER = 0x00020000, 0x10000000
_MS_REC, _MS_SLAVE = 1 << 14, 1 << 19
_PR_SET_PDEATHSIG = 1
_SIGKILL = 9
_EMPTY = "64m"
"""What fits on no mounts at all."""

_libc = ctypes.CDLL(None, use_errno=True)


def die_with(parent: int) -> None:
    """Be killed when the process `parent` ends, which is this one's."""
    _libc.prctl(_PR_SET_PDEATHSIG, _SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)  # it was quicker


def mapped() -> bool:
    """Whether this is a user namespace, and not the machine's own."""
    try:
        with open("/proc/self/uid_map", "rb") as file:
            return file.read().split() != [b"0", b"0", b"4294967295"]
    except OSError:
        return False


def lonely() -> bool:
    """Have mounts of one's own. Returns whether that took a user namespace. Raises `Refused`."""
    user, group = os.geteuid(), os.getegid()
    rootless = user != 0
    if _libc.unshare(_CLONE_NEWNS | (_CLONE_NEWUSER if rootless else 0)) != 0:
        raise failed("failed to unshare mounts", OSError(ctypes.get_errno(), ""))
    try:
        if rootless:
            for name, text in (
                ("setgroups", "deny"),
                ("uid_map", f"0 {user} 1"),
                ("gid_map", f"0 {group} 1"),
            ):
                with open(f"/proc/self/{name}", "w") as file:
                    file.write(text)
        # What others unmount goes here, too, and does not stay busy.
        if _libc.mount(b"none", b"/", None, ctypes.c_ulong(_MS_REC | _MS_SLAVE), None) != 0:
            raise OSError(ctypes.get_errno(), "")
    except OSError as error:
        raise failed("failed to unshare mounts", error) from None
    return rootless


def mount(all_of_them: Iterable[dict[str, Any]], place: str) -> None:
    """Mount one after another on `place`, a folder. Raises `Refused`."""
    # Below them nobody writes into the folder itself.
    try:
        mounts.mount("tmpfs", "none", place, [f"size={_EMPTY}", "mode=755"])
    except OSError as error:
        raise failed(f"failed to mount {place}", error) from None
    for each in all_of_them:
        options = each["options"]
        if each["type"] == "overlay":
            # Nobody mounts such a file system a second time.
            options = [each for each in options if each not in ("volatile", "fsync=volatile")]
        try:
            mounts.mount(each["type"], each["source"], place, options, inside=each["target"])
        except OSError as error:
            what = f'mount source: "{each["source"]}", target: "{place}", fstype: {each["type"]}'
            raise failed(f"failed to mount {place}: {what}, err", error) from None


def readonly(one: dict[str, Any]) -> dict[str, Any]:
    """The same mount, through which nothing can be changed."""
    options = one["options"]
    if one["type"] != "overlay":
        return {**one, "options": [*(each for each in options if each not in ("rw", "ro")), "ro"]}
    upper = [each.removeprefix("upperdir=") for each in options if each.startswith("upperdir=")]
    without = ("upperdir=", "workdir=", "uidmap=", "gidmap=")
    kept = [each for each in options if not each.startswith(without)]
    if upper:
        kept = [
            f"lowerdir={upper[-1]}:{each.removeprefix('lowerdir=')}"
            if each.startswith("lowerdir=")
            else each
            for each in kept
        ]
    return {**one, "options": kept}


def enter(root: int) -> None:
    """Let the folder that the descriptor `root` is open at be ``/``. Raises `Refused`."""
    try:
        os.fchdir(root)
        os.chroot(".")
    except OSError as error:
        raise failed("chroot", error) from None
