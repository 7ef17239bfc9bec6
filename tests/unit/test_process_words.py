"""What the shim for plain processes says of what it cannot do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from taskd_process.cgroup import Cgroup
from taskd_process.launch import Launch

from taskd.errors import Unknown


@pytest.mark.parametrize(
    ("file", "act"),
    [
        ("cgroup.procs", lambda cgroup: cgroup.add(1)),
        ("freezer.state", lambda cgroup: cgroup.freeze(True)),
        ("pids.max", lambda cgroup: cgroup.limit({"pids": {"limit": 5}})),
        ("memory.limit_in_bytes", lambda cgroup: cgroup.limit({"memory": {"limit": 5}})),
    ],
)
def test_a_cgroups_file_that_refuses_a_value_is_named(
    tmp_path: Path, file: str, act: Callable[[Cgroup], Any]
) -> None:
    """The system names a file that cannot be opened, and not one that cannot be written."""
    (tmp_path / file).symlink_to("/dev/full")
    cgroup = Cgroup(dict.fromkeys(("pids", "memory", "freezer"), tmp_path), unified=False)
    with pytest.raises(OSError, match="No space left on device") as caught:
        act(cgroup)
    assert caught.value.filename == str(tmp_path / file)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({"rlimits": [{"type": "RLIMIT_NOFILE", "soft": 2, "hard": 1}]}, "current limit exceeds"),
        ({"cwd": "/no/such"}, "/no/such: no such file or directory"),
        ({"oomScoreAdj": 5000}, "setting limits: invalid argument"),
        ({"user": {"uid": 2**32 - 1, "gid": 0}}, "becoming the user: invalid argument"),
    ],
)
async def test_a_process_that_cannot_be_made_ready_says_what_it_was_about(
    spec: dict[str, Any], words: str
) -> None:
    with pytest.raises(Unknown, match=words):
        await Launch.prepare({"args": ["/bin/true"], **spec}, (0, 1, 2), terminal=False)
