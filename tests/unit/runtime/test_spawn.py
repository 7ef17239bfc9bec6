from __future__ import annotations

import os
import time
from pathlib import Path

import anyio
import pytest

from taskd import procfs
from taskd.errors import ResourceExhausted
from taskd.runtime import spawn


async def sh(script: str, folder: Path, **options: object) -> spawn.Completed:
    environment = {"PATH": os.environ["PATH"]}
    return await spawn.run(["sh", "-c", script], cwd=folder, env=environment, **options)  # type: ignore[arg-type]


async def test_output_and_status(tmp_path: Path) -> None:
    done = await sh("echo out; echo err >&2; exit 3", tmp_path)
    assert done == spawn.Completed(3, b"out\n", b"err\n")


async def test_merged_output_is_in_order(tmp_path: Path) -> None:
    done = await sh("echo 1; echo 2 >&2; echo 3", tmp_path, merge=True)
    assert done == spawn.Completed(0, b"1\n2\n3\n", b"")


async def test_much_input_and_output(tmp_path: Path) -> None:
    data = os.urandom(1 << 20)
    assert (await sh("cat", tmp_path, stdin=data)).stdout == data


@pytest.mark.parametrize("script", ["yes & wait", "yes >&2", "head -c 20m /dev/zero"])
async def test_output_without_end(tmp_path: Path, script: str) -> None:
    with anyio.fail_after(20), pytest.raises(ResourceExhausted, match="printed more than"):
        await sh(f"echo $$ > pid; {script}", tmp_path)
    group = int((tmp_path / "pid").read_text())
    with anyio.fail_after(5):
        while any(each.group == group and each.state != "Z" for each in procfs.processes()):
            await anyio.sleep(0.01)


async def test_a_daemon_left_behind_does_not_hold_it_up(tmp_path: Path) -> None:
    begin = time.monotonic()
    done = await sh("sleep 5 & echo $!", tmp_path)
    assert time.monotonic() - begin < 4
    os.kill(int(done.stdout), 9)


async def test_cancelling_kills_the_whole_group(tmp_path: Path) -> None:
    with anyio.move_on_after(0.5) as scope:
        await sh("sleep 1000 & echo $! > pid; wait", tmp_path)
    assert scope.cancelled_caught
    pid = int((tmp_path / "pid").read_text())
    with anyio.fail_after(5):
        while Path(f"/proc/{pid}").exists():
            if "Z (zombie)" in Path(f"/proc/{pid}/status").read_text():
                break
            await anyio.sleep(0.01)


async def test_nothing_stays_open(tmp_path: Path) -> None:
    def open_files() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    await sh("true", tmp_path)
    before = open_files()
    for _ in range(20):
        await sh("true", tmp_path)
    with pytest.raises(OSError, match="No such file"):
        await spawn.run(["/no/such"], cwd=tmp_path, env={})
    assert open_files() == before
