"""The command line of OCI runtimes, and where they keep their state."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from taskd_oci.runtime import default_root


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
