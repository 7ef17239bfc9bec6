"""The command line of an OCI runtime, as runc and crun have it.

Source: go-runc's ``runc.go``, whose order of arguments this keeps; runc's ``man/``.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from taskd.errors import Unknown

TYPE_CHECKING = False  # as of `typing`, which a shim's `delete` does without
if TYPE_CHECKING:
    from typing import Any

    from taskd.shim import Completed

__all__ = ["Failed", "Runtime", "default_root", "runtime_features"]

_LOOKS = 200
_LOOK_SECONDS = 0.01
"""Between two looks at whether what was killed has ended."""
_REMOVALS = 20
_REMOVAL_SECONDS = 0.1


def default_root() -> Path:
    """Where containerd's shim keeps runc's state; a folder for each namespace.

    For a user that is not root it is below the user's runtime folder (XDG), as runc's own is.
    """
    folder = "/run"
    if os.geteuid() != 0:
        folder = os.environ.get("XDG_RUNTIME_DIR") or f"/run/user/{os.geteuid()}"
    return Path(folder, "containerd/runc")


class Failed(Exception):
    """The runtime said no; the text is go-runc's, with all that the runtime wrote."""


class Runtime:
    """An OCI runtime, and the state folder and log that it is to use."""

    def __init__(self, binary: str, root: Path, log: Path, systemd_cgroup: bool = False) -> None:
        self.binary = binary
        self.root = root
        self.log = log
        self.systemd_cgroup = systemd_cgroup

    def command(self, *arguments: str) -> list[str]:
        """Raises `Unknown` if there is no such program."""
        import shutil

        path = shutil.which(self.binary)
        if path is None:
            raise Unknown(f'exec: "{self.binary}": executable file not found in $PATH')
        return [path, *self._arguments(*arguments)]

    def remove(self, container: str) -> None:
        """Kill and delete a container, in a process that serves nobody. Raises OSError.

        While what a call that was killed has left in the container's cgroup is still dying, the
        runtime cannot, and says no.
        """
        for _ in range(_REMOVALS):
            self._call_alone(None, "delete", "--force", container)
            if not (self.root / container).exists():
                break
            time.sleep(_REMOVAL_SECONDS)

    def _call_alone(self, output: int | None, *arguments: str) -> None:
        """Call the runtime where there is nothing else to do meanwhile. Raises OSError."""
        command = [self.binary, *self._arguments(*arguments)]
        # `subprocess` takes longer to import than runc takes for this.
        actions: list[tuple[Any, ...]] = [
            (os.POSIX_SPAWN_OPEN, fd, os.devnull, os.O_RDWR, 0) for fd in range(3)
        ]
        if output is not None:
            actions[1] = (os.POSIX_SPAWN_DUP2, output, 1)
        os.waitpid(os.posix_spawnp(self.binary, command, os.environ, file_actions=actions), 0)

    def _arguments(self, *arguments: str) -> list[str]:
        return [
            *("--root", str(self.root), "--log", str(self.log), "--log-format", "json"),
            *(["--systemd-cgroup"] if self.systemd_cgroup else []),
            *arguments,
        ]

    def kill_calls(self) -> None:
        """Kill the calls of the runtime for this bundle that are under way, and see them end."""
        for _ in range(_LOOKS):
            found = [pid for pid, _ in self.calls()]
            for pid in found:
                with suppress(OSError):
                    os.kill(pid, signal.SIGKILL)
            if not found:
                break
            time.sleep(_LOOK_SECONDS)

    def calls(self) -> Iterator[tuple[int, list[bytes]]]:
        """The calls of the runtime for this bundle that are under way: pids, and command lines."""
        mark = b"\0--log\0%b\0" % bytes(self.log)
        for name in filter(str.isdecimal, os.listdir("/proc")):  # noqa: PTH208
            # For each process there is, in each of many calls of ``delete``: no object more.
            with suppress(OSError), open(f"/proc/{name}/cmdline", "rb", 0) as file:  # noqa: PTH123
                if mark in (words := file.read()):
                    yield int(name), words.split(b"\0")

    def is_elsewhere(self, id: str, bundle: Path) -> bool:  # noqa: A002
        """Whether the container of that id has another bundle. Raises OSError."""
        with open(os.memfd_create("state"), "rb") as output:  # noqa: PTH123
            self._call_alone(output.fileno(), "state", id)
            output.seek(0)
            with suppress(ValueError, KeyError, TypeError):
                theirs = str(json.load(output)["bundle"])
                return os.path.realpath(theirs) != os.path.realpath(bundle)
        return False

    def check(self, done: Completed) -> None:
        """Raises `Failed` if the command was not successful."""
        if done.status:
            words = (done.output + done.errors).decode(errors="replace")
            failed = f"{self.binary} did not terminate successfully: exit status {done.status}"
            raise Failed(f"{failed}: {words}")

    def last_error(self) -> str:
        """The last error in the runtime's log, or empty. Raises OSError, ValueError."""
        found = ""
        for entry in _values(self.log.read_bytes().decode(errors="replace")):
            if isinstance(entry, dict) and entry.get("level") == "error":
                found = str(entry.get("msg") or "").strip()
        return found


def runtime_features(binary: str) -> dict[str, Any] | None:
    """What a runtime can do; None if it is too old to say so. Raises `Unknown` if it is not there.

    Source: containerd's ``cmd/containerd-shim-runc-v2/manager/manager_linux.go`` (2.x), ``Info``.
    """
    import shutil
    import subprocess

    path = shutil.which(binary)
    if path is None:
        words = "executable file not found in $PATH"
        raise Unknown(f'failed to look up the path of "{binary}": {words}')
    done = subprocess.run([path, "features"], stdin=subprocess.DEVNULL, capture_output=True)
    try:
        found = json.loads(done.stdout) if done.returncode == 0 else None
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def _values(text: str) -> Iterator[Any]:
    """The JSON values in a row that `text` is; crun (1.28) has them on several lines each.

    Raises ValueError.
    """
    decoder, end = json.JSONDecoder(), 0
    while (begin := _after_space(text, end)) < len(text):
        value, end = decoder.raw_decode(text, begin)
        yield value


def _after_space(text: str, place: int) -> int:
    # Not a copy of what is left: calls that fail again and again make a log long.
    while text[place : place + 1] in (" ", "\t", "\r", "\n"):
        place += 1
    return place
