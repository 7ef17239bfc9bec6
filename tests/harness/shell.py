"""Somebody who types commands of taskd's."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence

import pexpect

from harness.daemons import Daemon

__all__ = ["COMMAND", "SECONDS", "Shell", "environment"]

COMMAND = (sys.executable, "-m", "taskd")
SECONDS = 60


class Shell:
    def __init__(
        self, environment: Mapping[str, str] = os.environ, prefix: Sequence[str] = ()
    ) -> None:
        """Commands begin with `prefix`, as for another user."""
        self.environment = dict(environment)
        self._command = (*prefix, *COMMAND)

    def __call__(
        self, *arguments: object, status: int = 0, stdin: str | int = ""
    ) -> subprocess.CompletedProcess[str]:
        """Run one to its end, which is to have that status."""
        done = subprocess.run(
            [*self._command, *map(str, arguments)],
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=SECONDS,
            **({"input": stdin} if isinstance(stdin, str) else {"stdin": stdin}),  # type: ignore[call-overload]
        )
        assert done.returncode == status, f"{arguments}: {done.stdout}{done.stderr}"
        return done

    def out(self, *arguments: object, status: int = 0, stdin: str | int = "") -> str:
        """What one writes that has nothing to complain about."""
        done = self(*arguments, status=status, stdin=stdin)
        assert done.stderr == ""
        return done.stdout

    def begin(self, *arguments: object) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*self._command, *map(str, arguments)],
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def at_terminal(
        self, *arguments: object, dimensions: tuple[int, int] = (33, 99)
    ) -> pexpect.spawn[str]:
        program, *rest = self._command
        return pexpect.spawn(
            program,
            [*rest, *map(str, arguments)],
            env=self.environment,
            encoding="utf-8",
            timeout=SECONDS,
            dimensions=dimensions,
            preexec_fn=_expects_to_be_hung_up,
        )


def _expects_to_be_hung_up() -> None:
    """As a program of a terminal's does, though these tests may have been begun with nohup."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def environment(daemon: Daemon, namespace: str) -> dict[str, str]:
    """Of somebody who means that daemon and that namespace."""
    own = {"TASKD_ADDRESS": str(daemon.address), "CONTAINERD_NAMESPACE": namespace}
    return os.environ | own | {"TERM": "xterm-256color"}
