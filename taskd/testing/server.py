"""A daemon in a process of its own, which a test may kill."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from taskd.errors import FailedPrecondition
from taskd.testing.reaper import reaper

__all__ = ["Server", "launched"]

START_SECONDS = 60.0
STOP_SECONDS = 30.0


@contextmanager
def launched() -> Iterator[Server]:
    """One on a temporary folder, which may not serve yet; whatever ends us, nothing stays of it."""
    with tempfile.TemporaryDirectory(prefix="taskd-") as name, reaper(Path(name)):
        server = Server(Path(name))
        server.launch()
        try:
            yield server
        finally:
            server.stop()


class Server:
    """``taskd serve`` on `folder`, in which it has everything: ``root``, ``state`` and ``log``.

    It does not end with the test by itself: see `taskd.testing.reaper`.
    """

    def __init__(self, folder: Path, options: tuple[str, ...] = ()) -> None:
        self.folder = folder
        self.address = folder / "state/taskd.sock"
        self.log = folder / "log"
        self._options = options
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        """None as long as there is none."""
        return self._process.pid if self._process else None

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Return once it serves. Raises `FailedPrecondition`, with its words, if it does not."""
        self.launch()
        self.wait_until_it_serves()

    def launch(self) -> None:
        """Start it, and do not wait for it."""
        command = [sys.executable, "-m", "taskd", "serve"]
        command += ["--root", str(self.folder / "root"), "--state", str(self.folder / "state")]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [*command, *self._options],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.folder,
                # What is typed at the test is not meant for it.
                start_new_session=True,
                env=os.environ | {"PYTHONUNBUFFERED": "1"},
            )

    def wait_until_it_serves(self) -> None:
        """Raises `FailedPrecondition`, with its words, if it does not."""
        assert self._process is not None
        deadline = time.monotonic() + START_SECONDS
        while self._process.poll() is None and time.monotonic() < deadline:
            with socket.socket(socket.AF_UNIX) as probe:
                try:
                    probe.connect(str(self.address))
                except OSError:
                    time.sleep(0.01)
                else:
                    return
        self.crash()
        words = self.log.read_text(errors="replace")
        raise FailedPrecondition(f"taskd did not start:\n{words}", verbatim=True)

    def stop(self) -> None:
        """End it, and leave its containers running."""
        self._end(signal.SIGTERM)

    def crash(self) -> None:
        """Kill it, in the middle of whatever it does; its containers go on."""
        self._end(signal.SIGKILL)

    def restart(self) -> None:
        """Have it there again, with all that it had."""
        self.stop()
        self.start()

    def _end(self, number: int) -> None:
        if self._process is None:
            return
        self._process.send_signal(number)
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None
