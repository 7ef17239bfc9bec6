"""A virtual machine in software, which runs the tests that its disk names and is turned off."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

from vm.image import Image
from vm.plans import Group

__all__ = ["Case", "Report", "read", "run"]

_CPUS = 2
_MEGABYTES = 2560
_DISKS = ("disk", "results")
_RESULTS = 16 << 20
"""Bytes of the disk that the results are written to; what is not used costs nothing."""
# `quiet` for the kernel alone: systemd's own lines say how far a machine came.
_ARGUMENTS = "rw quiet systemd.show_status=yes"
# User-mode Linux needs a newer libc than Debian 12 has: it is in a tree with its own.
_INSIDE = """
mount -t proc proc "$0/proc"
mount --rbind /dev "$0/dev"
mount --bind "$1" "$0/mnt"
shift
chroot "$0" "$@" || exit
"""


@dataclass(frozen=True)
class Case:
    """One test, as it went in the machine."""

    name: str
    outcome: str
    """``passed``, ``failed``, ``error`` or ``skipped``."""
    seconds: float
    words: str


@dataclass(frozen=True)
class Report:
    """What a machine did."""

    cases: list[Case]
    collected: list[str]
    """All tests that were asked for; those that have no case were not run."""
    seconds: float = 0.0
    """From turning it on to its being off."""
    log: str = ""
    """All that pytest said."""

    @property
    def bad(self) -> list[Case]:
        """A machine that was made for its tests has no reason to skip one."""
        return [case for case in self.cases if case.outcome != "passed"]

    def __str__(self) -> str:
        counts = Counter(case.outcome for case in self.cases)
        words = ", ".join(f"{count} {outcome}" for outcome, count in counts.items())
        return f"{words or 'none'} of {len(self.collected)} in {self.seconds:.0f} s"


def run(
    image: Image, group: Group, folder: Path, timeout: float, passed: Iterable[str] = ()
) -> Report:
    """Turn it on, and wait until it turns itself off. Raises RuntimeError if it does not.

    How each test went stands in the folder's ``results`` as soon as it is known, for `read`,
    whatever becomes of the machine; what that says, in ``console``. `passed` are left out.
    """
    begun = time.monotonic()
    disk, results, console = (folder / name for name in ("disk", "results", "console"))
    results.touch()
    os.truncate(results, _RESULTS)
    command = {"user": _user_mode, "debian": _emulated}[group.kernel](image, folder)
    try:
        subprocess.run(["cp", "--sparse=always", image.disk, disk], check=True)
        _write(disk, "/opt/tests/arguments", group.arguments)
        _write(disk, "/opt/tests/passed", passed)
        with console.open("wb") as said:
            _wait(command, said, timeout)
        log = _read(disk, "/results/log")
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"not off after {timeout:.0f} s:\n{_tail(console)}") from None
    finally:
        disk.unlink(missing_ok=True)
    report = replace(read(results), seconds=time.monotonic() - begun, log=log)
    if not report.collected:
        raise RuntimeError(f"it left no results:\n{log}\n{_tail(console)}")
    return report


def _wait(command: list[str], said: BinaryIO, timeout: float) -> None:
    # However this process ends, the machine does not outlive it.
    command = ["setpriv", "--pdeathsig", "KILL", *command]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=said) as machine:
        try:
            machine.wait(timeout)
        finally:
            machine.kill()


def _emulated(image: Image, folder: Path) -> list[str]:
    """QEMU without KVM, and the release's own kernel."""
    arguments = f"root=/dev/vda console=ttyS0 no_timer_check {_ARGUMENTS}"
    drives = (f"file={folder / name},format=raw,if=virtio,cache=unsafe" for name in _DISKS)
    return [
        *("qemu-system-x86_64", "-accel", "tcg,thread=multi"),
        *("-smp", str(_CPUS), "-m", str(_MEGABYTES), "-display", "none", "-nic", "none"),
        *("-kernel", str(image.kernel), "-initrd", str(image.initrd), "-append", arguments),
        *(word for drive in drives for word in ("-drive", drive)),
        *("-serial", "stdio", "-monitor", "none", "-no-reboot"),
    ]


def _user_mode(image: Image, folder: Path) -> list[str]:
    """User-mode Linux: programs run natively, and by seccomp their system calls come to it."""
    disks = (f"ubd{number}=/mnt/{name}" for number, name in enumerate(_DISKS))
    return [
        *("unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-ec", _INSIDE),
        *(str(image.user_mode), str(folder), "/usr/bin/linux.uml"),
        *(f"mem={_MEGABYTES}M", "seccomp=on", "uml_dir=/tmp/", *disks, "root=/dev/ubda"),
        *("con=null", "con0=null,fd:1", "console=tty0", *_ARGUMENTS.split()),
    ]


def _tail(console: Path) -> str:
    lines = console.read_text(errors="replace").splitlines() if console.exists() else []
    return "\n".join(lines[-50:])


def _read(disk: Path, path: str) -> str:
    """A file of an ext4 file system that is not mounted; empty if there is none."""
    done = subprocess.run(
        ["debugfs", "-R", f"cat {path}", str(disk)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        check=True,
    )
    return done.stdout.decode(errors="replace")


def _write(disk: Path, path: str, lines: Iterable[str]) -> None:
    """A new file of an ext4 file system that is not mounted."""
    with tempfile.NamedTemporaryFile("w") as file:
        file.writelines(f"{line}\n" for line in lines)
        file.flush()
        subprocess.run(
            ["debugfs", "-w", "-R", f"write {file.name} {path}", str(disk)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            check=True,
        )


def read(results: Path) -> Report:
    """What stands in the results of a machine, which may still run. See `vm.guest.report`."""
    cases: list[Case] = []
    collected: list[str] = []
    for line in results.read_bytes().partition(b"\0")[0].splitlines():
        told = json.loads(line)
        if "collected" in told:
            collected = told["collected"]
        else:
            cases.append(Case(**told))
    return Report(cases, collected)
