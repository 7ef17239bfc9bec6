"""Nothing that lies in a folder in which somebody starts a daemon, or a shim, is run as code."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from harness.client import Client
from harness.daemons import Taskd, client
from harness.real import need

MODULES = ("json", "base64", "socket", "taskd", "taskd_process", "sitecustomize", "wasmtime")


class Installed(Taskd):
    """Runs the installed command: with ``-m`` Python itself looks into the working folder."""

    def command(self) -> list[str]:
        return [str(Path(sys.executable).with_name("taskd")), *super().command()[3:]]


@pytest.fixture
def traps(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder; modules in it that leave a file ``taken`` when they are imported."""
    traps = folder / "traps"
    traps.mkdir()
    for name in MODULES:
        (traps / f"{name}.py").write_text(
            f"open({str(traps / 'taken')!r}, 'a').write(__name__ + '\\n')\n"
            "raise ImportError('from the working folder')\n"
        )
    monkeypatch.chdir(traps)
    return traps


@pytest.mark.parametrize("warm", [True, False])
async def test_python_that_the_daemon_starts(
    folder: Path, traps: Path, namespace: str, rootfs: Path, warm: bool
) -> None:
    need("busybox")
    settings = f"[shims]\nwarm = {str(warm).lower()}\n"
    with Installed(folder / "taskd", "--log-level", "debug", settings=settings) as daemon:
        async with client(daemon.address, namespace) as channel:
            ask = Client(channel, rootfs)
            await ask.start("one", "/bin/sleep", "1000", runtime="io.taskd.process.v1")
            assert await ask.end("one") == 137
        assert ("shims that start warm" in daemon.log.read_text()) is warm
    assert not (traps / "taken").exists(), (traps / "taken").read_text()
