"""Whether containers of a daemon survive their shims."""

from __future__ import annotations

import errno
from collections.abc import Callable

import anyio
import pytest

from taskd import pidfd
from taskd.config import Config, ShimsConfig
from taskd.daemon import _survival
from taskd.runtime.survival import Survival

SURVIVING = Config(shims=ShimsConfig(adopt=True))


def _raises() -> bool:
    raise FileNotFoundError(errno.ENOENT, "No such file or directory")


@pytest.mark.parametrize(
    ("tells", "why"),
    [
        (lambda: False, "this kernel does not tell others of exits"),
        (_raises, "whether this kernel tells others of exits cannot be found out: No such file"),
    ],
    ids=["does not tell", "cannot be asked"],
)
async def test_where_the_kernel_does_not_tell_of_exits(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    tells: Callable[[], bool],
    why: str,
) -> None:
    """One line says so; nobody has to have asked for anything else."""
    monkeypatch.setattr(pidfd, "tells_exits", tells)
    caplog.set_level("INFO")
    async with anyio.create_task_group() as group:
        found = _survival(SURVIVING, group)
    assert isinstance(found, str)
    assert found.startswith(why)
    assert caplog.messages == [f"containers end with their shim: {found}"]


async def test_whoever_does_not_want_it(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    async with anyio.create_task_group() as group:
        found = _survival(Config(shims=ShimsConfig(adopt=False)), group)
    assert found == "[shims] adopt is off"
    assert caplog.messages == []


async def test_where_it_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pidfd, "tells_exits", lambda: True)
    async with anyio.create_task_group() as group:
        assert isinstance(_survival(SURVIVING, group), Survival)
