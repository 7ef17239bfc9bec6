"""``io.taskd.wasm.v1``: what a module may do, and how it ends. (More: test_writing_a_shim.py.)"""

from __future__ import annotations

import signal
from pathlib import Path

import anyio
import pytest

from taskd.errors import NotFound
from taskd.testing import daemon

RUNTIME = "io.taskd.wasm.v1"
COUNT = """
(module
  (import "wasi_snapshot_preview1" "args_sizes_get" (func $args (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "environ_sizes_get" (func $env (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
  (memory (export "memory") 1)
  (func (export "_start")
    (drop (call $args (i32.const 0) (i32.const 4)))
    (drop (call $env (i32.const 8) (i32.const 4)))
    (call $exit (i32.add (i32.mul (i32.const 10) (i32.load (i32.const 0)))
                         (i32.load (i32.const 8))))))
"""
CREATE = """
(module
  (import "wasi_snapshot_preview1" "path_open"
    (func $open (param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
  (memory (export "memory") 1)
  (data (i32.const 16) "new")
  (func (export "_start")
    (call $exit (call $open (i32.const 3) (i32.const 0) (i32.const 16) (i32.const 3)
                            (i32.const 1) (i64.const 64) (i64.const 0) (i32.const 0)
                            (i32.const 32)))))
"""
EXIT = """
(module
  (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
  (memory (export "memory") 1)
  (func (export "_start") (call $exit (i32.const %d))))
"""
MODULES = {
    "count.wat": COUNT,
    "create.wat": CREATE,
    "loop.wat": '(module (func (export "_start") (loop (br 0))))',
    "trap.wat": '(module (func (export "_start") unreachable))',
    "large.wat": '(module (memory 100) (func (export "_start")))',
    **{f"exit{status}.wat": EXIT % status for status in (0, 1, 125, 126, 137, 255, 256)},
    "nonsense.wat": "root:x:0:0",
}


@pytest.fixture
def rootfs(tmp_path: Path) -> Path:
    for name, text in MODULES.items():
        (tmp_path / name).write_text(text)
    return tmp_path


async def test_how_modules_end(rootfs: Path) -> None:
    limit = {"linux": {"resources": {"memory": {"limit": 1 << 20}}}}
    async with daemon() as taskd:
        for args, spec, status, words in (
            (["/count.wat"], {}, 13, ""),
            (["count.wat", "a", "b"], {}, 33, ""),
            (["/trap.wat"], {}, 1, "unreachable"),
            (["/large.wat"], {}, 0, ""),
            (["/large.wat"], limit, 1, "memory"),
            *(([f"/exit{status}.wat"], {}, status, "") for status in (0, 1, 125, 126, 137, 255)),
            (["/exit256.wat"], {}, 0, ""),  # a process has eight bits
            (["/nonsense.wat"], {}, 1, "/nonsense.wat: "),
        ):
            async with taskd.container(
                RUNTIME, args, rootfs=rootfs, env=["A=b", "C=d"], spec=spec
            ) as container:
                done = await container.run()
                assert (done.code, done.stdout) == (status, b""), (args, spec)
                assert words in done.stderr.decode()


async def test_the_root_filesystem(rootfs: Path) -> None:
    async with daemon() as taskd:
        for readonly in (True, False):
            root = {"root": {"path": str(rootfs), "readonly": readonly}}
            async with taskd.container(RUNTIME, ["/create.wat"], spec=root) as container:
                assert bool((await container.run()).code) == readonly
            assert (rootfs / "new").exists() != readonly


async def test_nothing_is_read_outside_of_it(rootfs: Path) -> None:
    inside = rootfs / "inside"
    inside.mkdir()
    (inside / "link.wat").symlink_to(rootfs / "loop.wat")
    (inside / "up").symlink_to("..")
    async with daemon() as taskd:
        for name in ("link.wat", "up/loop.wat", "../loop.wat", "/none.wat", "/"):
            async with taskd.container(RUNTIME, [name], rootfs=inside) as container:
                with pytest.raises(NotFound, match=f"module {name}: not found"):
                    await container.start()


async def test_an_interrupt_at_any_time(rootfs: Path) -> None:
    """Of the engine's own start, too."""
    async with daemon() as taskd:
        for milliseconds in range(0, 100, 5):
            async with taskd.container(RUNTIME, ["/loop.wat"], rootfs=rootfs) as container:
                await container.start()
                await anyio.sleep(milliseconds / 1000)
                await container.kill(signal.SIGINT)
                assert (await container.wait()).code == 130


async def test_signals_and_execs(rootfs: Path) -> None:
    async with daemon() as taskd:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
            async with taskd.container(RUNTIME, ["/loop.wat"], rootfs=rootfs) as container:
                await container.start()
                execed = await container.exec(["/loop.wat"])
                await container.kill(number)
                assert (await container.wait()).code == 128 + number
                assert (await execed.wait()).code == 137
