"""A virtual machine in software, which runs the tests that its disk names and is turned off."""

from __future__ import annotations

import subprocess
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from vm.image import Image

__all__ = ["Case", "Report", "cases", "run"]

_CPUS = 2
_MEGABYTES = 2560


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
    log: str
    """All that pytest said."""
    seconds: float
    """From turning it on to its being off."""

    @property
    def bad(self) -> list[Case]:
        """A machine that was made for its tests has no reason to skip one."""
        return [case for case in self.cases if case.outcome != "passed"]

    def __str__(self) -> str:
        counts = Counter(case.outcome for case in self.cases)
        words = ", ".join(f"{count} {outcome}" for outcome, count in counts.items())
        return f"{words} in {self.seconds:.0f} s"


def run(image: Image, timeout: float) -> Report:
    """Turn it on, and wait until it turns itself off. Raises RuntimeError if it does not."""
    console = image.console
    # `quiet` for the kernel alone: systemd's own lines say how far a machine came.
    arguments = "root=/dev/vda rw console=ttyS0 no_timer_check quiet systemd.show_status=yes"
    command = [
        *("qemu-system-x86_64", "-accel", "tcg,thread=multi"),
        *("-smp", str(_CPUS), "-m", str(_MEGABYTES), "-display", "none", "-nic", "none"),
        *("-kernel", str(image.kernel), "-initrd", str(image.initrd), "-append", arguments),
        *("-drive", f"file={image.disk},format=raw,if=virtio,cache=unsafe"),
        *("-serial", f"file:{console}", "-monitor", "none", "-no-reboot"),
    ]
    begun = time.monotonic()
    with subprocess.Popen(command, stdin=subprocess.DEVNULL) as machine:
        try:
            machine.wait(timeout)
        except subprocess.TimeoutExpired:
            raise RuntimeError(f"not off after {timeout} s:\n{_tail(console)}") from None
        finally:
            machine.kill()
    seconds = time.monotonic() - begun
    junit = _read(image.disk, "/results/junit.xml")
    if not junit:
        log = _read(image.disk, "/results/log")
        raise RuntimeError(f"it left no results:\n{log}\n{_tail(console)}")
    return Report(cases(junit), _read(image.disk, "/results/log"), seconds)


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


def cases(junit: str) -> list[Case]:
    """What pytest's JUnit file says of each test."""
    found = []
    for element in ElementTree.fromstring(junit).iter("testcase"):
        outcome, words = "passed", ""
        for child in element:
            if child.tag in ("failure", "error", "skipped"):
                outcome = {"failure": "failed"}.get(child.tag, child.tag)
                words = child.text or child.get("message", "")
        name = f"{element.get('classname')}.{element.get('name')}"
        found.append(Case(name, outcome, float(element.get("time", 0)), words))
    return found
