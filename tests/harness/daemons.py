"""Daemons in processes of their own: taskd, and containerd to compare it with."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import ClassVar, Self

from grpclib.encoding.base import CodecBase

from harness.generations import own_shim
from harness.pace import PATIENCE, SLOWER
from taskd.grpc.channel import Channel

__all__ = ["LATE_GC", "Containerd", "Daemon", "Taskd", "client"]

START_SECONDS = 60.0 * SLOWER

LATE_GC = '[gc]\nstartup_delay = "1h"\npause_threshold = 0.0000001\n'
"""Settings for a taskd that collects garbage when it is asked to, as `Containerd` does."""

_IDLE = '[shims]\nidle = "0.2s"\n'
"""Settings for one whose shims are gone soon after what has been in them, as tests expect."""


class Daemon:
    """A daemon on folders and a socket of its own, below `folder`; use it in ``with``."""

    def __init__(self, folder: Path, *, path: str = "") -> None:
        """`path`, if given, is the PATH in which it looks for programs."""
        self.folder = folder
        self.path = path or os.environ["PATH"]
        self.root = folder / "root"
        self.state = folder / "state"
        self.address = folder / "d.sock"
        self.log = folder / "log"
        self.process: subprocess.Popen[bytes] | None = None
        folder.mkdir(parents=True, exist_ok=True)

    def command(self) -> list[str]:
        raise NotImplementedError

    def environment(self) -> dict[str, str]:
        return os.environ | {"PATH": self.path}

    def start(self) -> Self:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command(), env=self.environment(), stderr=log, stdout=log
            )
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                break
            with socket.socket(socket.AF_UNIX) as probe:
                try:
                    probe.connect(str(self.address))
                except OSError:
                    time.sleep(0.02)
                else:
                    return self
        words = self.log.read_text()
        self.kill()
        raise RuntimeError(f"{self.command()[0]} did not start:\n{words}")

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def stop(self, timeout: float = 20.0) -> int:
        """SIGTERM; returns the exit status."""
        assert self.process is not None
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.kill()
            raise

    def kill(self) -> None:
        """SIGKILL."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        if self.process is not None and self.process.poll() is None:
            self.stop()

    def ctr(
        self, *arguments: str, namespace: str, check: bool = True, timeout: float = 60.0
    ) -> subprocess.CompletedProcess[str]:
        """Run containerd's own client against this daemon."""
        done = subprocess.run(
            self.ctr_command(*arguments, namespace=namespace),
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        if check and done.returncode:
            raise AssertionError(f"ctr {arguments}: {done.returncode}\n{done.stdout}{done.stderr}")
        return done

    def ctr_command(self, *arguments: str, namespace: str) -> list[str]:
        ctr = str(shutil.which("ctr", path=self.path))
        return [ctr, "--address", str(self.address), "--namespace", namespace, *arguments]


class Taskd(Daemon):
    """`settings` is the text of a configuration file."""

    own_shim: ClassVar[bool] = False
    """Its own shim runs the containers of ``io.containerd.runc.v2``, instead of containerd's."""
    engine: ClassVar[str] = ""
    """What carries HTTP/2, if it is not to be what taskd takes by itself."""

    def __init__(self, folder: Path, *options: str, path: str = "", settings: str = "") -> None:
        if self.own_shim and not path:
            path = f"{own_shim(folder / 'shims')}:{os.environ['PATH']}"
        super().__init__(folder, path=path)
        config = folder / "taskd.toml"
        if self.engine:
            settings += f'\n[grpc]\nengine = "{self.engine}"\n'
        if "[shims]" not in settings:
            settings += f"\n{_IDLE}"
        elif "\nidle = " not in settings:
            settings = settings.replace("[shims]\n", _IDLE)
        if SLOWER > 1 and "[timeouts]" not in settings:
            settings += PATIENCE
        config.write_text(settings)
        self.options = ("--config", str(config), *options)

    def command(self) -> list[str]:
        return [
            sys.executable,
            *("-m", "taskd", "serve"),
            *("--root", str(self.root)),
            *("--state", str(self.state)),
            *("--address", str(self.address)),
            *self.options,
        ]


class Containerd(Daemon):
    """A real containerd with what taskd has: no CRI, no image handling."""

    def __init__(self, folder: Path, *, path: str = "", cri: bool = False) -> None:
        """`cri` is what 2.1 needs for the controllers of sandboxes."""
        super().__init__(folder, path=path)
        self.disabled = [] if cri else ["io.containerd.grpc.v1.cri"]

    def command(self) -> list[str]:
        config = self.folder / "config.toml"
        config.write_text(
            f'version = 2\nroot = "{self.root}"\nstate = "{self.state}"\n'
            f"disabled_plugins = {json.dumps(self.disabled)}\n"
            f'[grpc]\naddress = "{self.address}"\n'
            # What is compared must not depend on when it first collects garbage.
            '[plugins."io.containerd.gc.v1.scheduler"]\n'
            'startup_delay = "1h"\n'
            # Nor, once somebody has asked for that, on how often it does so.
            "pause_threshold = 0.0000001\n" + (PATIENCE if SLOWER > 1 else "")
        )
        return [str(shutil.which("containerd", path=self.path)), "--config", str(config)]

    def environment(self) -> dict[str, str]:
        # Where it leaves checkpoints that it has unpacked.
        return super().environment() | {"XDG_RUNTIME_DIR": str(self.folder)}


def client(address: Path, namespace: str, codec: CodecBase | None = None) -> Channel:
    """A gRPC channel each of whose calls is made in `namespace`; use it in ``async with``."""
    return Channel(address, namespace=namespace, codec=codec)
