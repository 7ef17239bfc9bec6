"""The command line of an OCI runtime, as runc and crun have it.

Source: go-runc's ``runc.go``, whose order of arguments this keeps; runc's ``man/``.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from taskd.errors import Unknown
from taskd.shim import Completed

__all__ = ["ROOT", "Failed", "Runtime"]

ROOT = "/run/containerd/runc"
"""Where containerd's shim keeps runc's state; a folder for each namespace."""


class Failed(Exception):
    """The runtime said no; the text is go-runc's, with all that the runtime wrote."""


@dataclass(frozen=True, slots=True)
class Runtime:
    """An OCI runtime, and the state folder and log that it is to use."""

    binary: str
    root: Path
    log: Path
    systemd_cgroup: bool = False

    def command(self, *arguments: str) -> list[str]:
        """Raises `Unknown` if there is no such program."""
        path = shutil.which(self.binary)
        if path is None:
            raise Unknown(f'exec: "{self.binary}": executable file not found in $PATH')
        return [
            path,
            *("--root", str(self.root), "--log", str(self.log), "--log-format", "json"),
            *(["--systemd-cgroup"] if self.systemd_cgroup else []),
            *arguments,
        ]

    def check(self, done: Completed) -> None:
        """Raises `Failed` if the command was not successful."""
        if done.status:
            words = (done.output + done.errors).decode(errors="replace")
            failed = f"{self.binary} did not terminate successfully: exit status {done.status}"
            raise Failed(f"{failed}: {words}")

    def last_error(self) -> str:
        """The last error in the runtime's log, or empty. Raises OSError, ValueError."""
        found = ""
        for line in self.log.read_text().splitlines():
            entry: dict[str, Any] = json.loads(line)
            if entry.get("level") == "error":
                found = entry.get("msg", "").strip()
        return found
