"""The command line of OCI runtimes, and where they keep their state."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Sequence
from pathlib import Path

import pytest
from taskd_oci.container import Oci
from taskd_oci.runtime import default_root

from taskd.shim import Process, Stdio
from taskd.shim.reaper import Reaper


@pytest.mark.parametrize(
    ("uid", "runtime_folder", "root"),
    [
        (0, None, "/run/containerd/runc"),
        # As root by `sudo` or `su`, which may leave the user's.
        (0, "/run/user/1000", "/run/containerd/runc"),
        (1000, "/some/where", "/some/where/containerd/runc"),
        (1000, None, "/run/user/1000/containerd/runc"),
        (1000, "", "/run/user/1000/containerd/runc"),
    ],
)
def test_a_user_has_a_folder_for_state(
    monkeypatch: pytest.MonkeyPatch, uid: int, runtime_folder: str | None, root: str
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: uid)
    if runtime_folder is None:
        monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    else:
        monkeypatch.setenv("XDG_RUNTIME_DIR", runtime_folder)
    assert default_root() == Path(root)


async def test_nobody_else_reads_the_environment_of_an_exec(tmp_path: Path) -> None:
    class Looking(Oci):
        """Looks at what the runtime is given, and says that there is a process."""

        async def _begin(
            self, command: Sequence[str], last: Sequence[str], process: Process, doing: str
        ) -> None:
            given = Path(command[command.index("--process") + 1])
            assert json.loads(given.read_text()) == process.spec
            assert stat.S_IMODE(given.stat().st_mode) == 0o600
            Path(command[command.index("--pid-file") + 1]).write_text("7")

    container = Looking("one", "testing", tmp_path, Reaper(), None, "")
    assert await container.exec(Process("two", {"env": ["KEY=secret"]}, Stdio())) == 7
    assert list(tmp_path.iterdir()) == []
