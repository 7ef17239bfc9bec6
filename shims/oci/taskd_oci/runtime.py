"""The command line of an OCI runtime, as runc and crun have it.

Source: go-runc's ``runc.go``, whose order of arguments this keeps; runc's ``man/``.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from taskd.errors import Unknown

if TYPE_CHECKING:
    from taskd.shim import Completed

__all__ = ["ROOT", "Failed", "Runtime"]

ROOT = "/run/containerd/runc"
"""Where containerd's shim keeps runc's state; a folder for each namespace."""


class Failed(Exception):
    """The runtime said no; the text is go-runc's, with all that the runtime wrote."""


class Runtime(NamedTuple):
    """An OCI runtime, and the state folder and log that it is to use."""

    binary: str
    root: Path
    log: Path
    systemd_cgroup: bool = False

    def command(self, *arguments: str) -> list[str]:
        """Raises `Unknown` if there is no such program."""
        import shutil

        path = shutil.which(self.binary)
        if path is None:
            raise Unknown(f'exec: "{self.binary}": executable file not found in $PATH')
        return [path, *self._arguments(*arguments)]

    def remove(self, container: str) -> None:
        """Kill and delete a container, in a process that serves nobody. Raises OSError."""
        command = [self.binary, *self._arguments("delete", "--force", container)]
        # `subprocess` takes longer to import than runc takes for this.
        silence = [(os.POSIX_SPAWN_OPEN, fd, os.devnull, os.O_RDWR, 0) for fd in range(3)]
        os.waitpid(os.posix_spawnp(self.binary, command, os.environ, file_actions=silence), 0)

    def _arguments(self, *arguments: str) -> list[str]:
        return [
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
