"""docs/writing-a-shim.md: what it says is so, block by block."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from contextlib import suppress
from itertools import takewhile
from pathlib import Path

import pytest
from harness import venv
from harness.documents import Command, File, blocks, pattern
from harness.real import need

from taskd import pidfd

ROOT = Path(__file__).parents[2]
DOCUMENT = ROOT / "docs/writing-a-shim.md"
SECONDS = 900
SURVIVING = "taskd serve --root s/root "
"""With which the last part begins."""


def script(steps: list[File | Command]) -> str:
    """What a shell does in the reader's stead. Each command ends with its status, between NULs."""
    lines = ["shopt -s expand_aliases; set -m"]  # as one has it that somebody types into
    following = [*steps[1:], None]
    for step, after in zip(steps, following, strict=True):
        if isinstance(step, Command):
            lines += [step.line, r"_s=$?; printf '\0%d\0' $_s"]
            asked = isinstance(after, Command) and after.line == "echo $?"
            lines += ["(exit $_s)" if asked else "[ $_s = 0 ] || exit"]
        elif not (ROOT / step.path).exists():
            lines += [f"mkdir -p $(dirname {step.path}); cat > {step.path} <<'@@@'"]
            lines += [f"{step.text}@@@"]
    return "\n".join(lines) + "\n"


def test_the_example_is_small_and_shown_as_it_is() -> None:
    shown = [
        step for step in blocks(DOCUMENT) if isinstance(step, File) and (ROOT / step.path).exists()
    ]
    assert [file.path for file in shown] == ["shims/wasm/taskd_wasm/__init__.py"]
    assert shown[0].text == (ROOT / shown[0].path).read_text()
    assert len(shown[0].text.splitlines()) <= 40


@pytest.mark.timeout(SECONDS + 30)
def test_all_that_a_reader_does(folder: Path) -> None:
    need("containerd", "ctr")
    steps = list(blocks(DOCUMENT))
    if not pidfd.tells_exits():
        # Containers end with their shim on this kernel, as the document says.
        steps = list(takewhile(lambda step: SURVIVING not in getattr(step, "line", ""), steps))
    commands = [step for step in steps if isinstance(step, Command)]
    # What the document has pip fetch is there already; it still does the rest of its work.
    venv.make(folder / "venv")
    environment = os.environ | venv.SETTINGS | {"TASKD": str(ROOT)}
    try:
        with (folder / "output").open("wb") as output:
            shell = subprocess.run(
                ["bash", "-c", script(steps)],
                cwd=folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                timeout=SECONDS,
                check=False,
            )
    finally:
        left = end_all_of(folder)
        for log in ("output", "taskd.log"):
            print(f"--- {log}\n{text(folder / log)}")
    said = text(folder / "output").split("\0")
    for command, output, _ in zip(commands, said[::2], said[1::2], strict=False):
        if command.shown:
            assert re.fullmatch(pattern(command.shown), output), (command, output)
    assert shell.returncode == 0, f"{commands[len(said) // 2 - 1]} failed"
    assert len(said) == 2 * len(commands) + 1
    assert left == []


def text(path: Path) -> str:
    return path.read_bytes().decode(errors="replace") if path.exists() else ""


def end_all_of(folder: Path) -> list[str]:
    """Kill the processes that have to do with `folder`; their command lines."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            line = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            cwd = (process / "cwd").readlink()
            if str(folder) in line or cwd.is_relative_to(folder):
                os.kill(int(process.name), signal.SIGKILL)
                found.append(line)
    return found
