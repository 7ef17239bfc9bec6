"""`taskd-logger` as shims start it: descriptors 3, 4, and 5."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from harness.mounts import tmpfs
from harness.real import need

from taskd import logger

LOGGER = (sys.executable, "-m", "taskd.logger")


class Logger:
    def __init__(self, out: int, err: int, process: subprocess.Popen[bytes]) -> None:
        self.out, self.err, self.process = out, err, process

    def end(self) -> int:
        os.close(self.out)
        os.close(self.err)
        return self.process.wait(10)


@contextmanager
def running(path: Path, *options: str) -> Iterator[Logger]:
    pipes = [os.pipe() for _ in range(3)]
    (out, err, ready) = pipes
    script = f'exec 3<&{out[0]} 4<&{err[0]} 5>&{ready[1]}; exec "$@"'
    process = subprocess.Popen(
        ["bash", "-c", script, "-", *LOGGER, *options, "path", str(path)],
        pass_fds=[out[0], err[0], ready[1]],
    )
    for number in (out[0], err[0], ready[1]):
        os.close(number)
    try:
        # bash has let go of its own number only with its end.
        yield Logger(out[1], err[1], process)
    finally:
        process.kill()
        process.wait()
        os.close(ready[0])


def texts(path: Path, stream: str = "stdout") -> list[str]:
    documents = [json.loads(line) for line in path.read_text().splitlines()]
    return [each["log"] for each in documents if each["stream"] == stream]


def wait_for(path: Path, stream: str, expected: list[str]) -> None:
    deadline = time.monotonic() + 10
    while not path.exists() or texts(path, stream) != expected:
        assert time.monotonic() < deadline, path.exists() and path.read_text()
        time.sleep(0.02)


def test_lines_are_as_docker_has_them(tmp_path: Path) -> None:
    path = tmp_path / "a/b/c-json.log"
    with running(path) as one:
        os.write(one.out, b"one\ntwo \xff\n")
        os.write(one.err, "dreiß\n".encode())
        wait_for(path, "stdout", ["one\n", "two \ufffd\n"])
        wait_for(path, "stderr", ["dreiß\n"])
        os.write(one.out, b"prompt> ")  # is seen, though its line has no end
        wait_for(path, "stdout", ["one\n", "two \ufffd\n", "prompt> "])
        assert one.end() == 0
    first = path.read_text().splitlines()[0]
    assert first.startswith('{"log":"one\\n","stream":"stdout","time":"20')
    assert first.endswith('Z"}')


def test_a_long_line_becomes_several(tmp_path: Path) -> None:
    text = "ä" * 30_000
    path = tmp_path / "log"
    with running(path) as one:
        os.write(one.out, text.encode()[:40_001])
        os.write(one.out, text.encode()[40_001:] + b"\n")
        assert one.end() == 0
    found = texts(path)
    assert "".join(found) == text + "\n"
    assert max(len(each.encode()) for each in found) <= logger.LINE


def test_files_are_put_aside(tmp_path: Path) -> None:
    path = tmp_path / "log"
    with running(path, "max-size", "1000", "max-file", "3") as one:
        for number in range(100):
            os.write(one.out, b"line %d\n" % number)
        assert one.end() == 0
    files = [*logger.rotated(path), path]
    assert [each.name for each in files] == ["log.2", "log.1", "log"]
    assert all(each.stat().st_size <= 1000 for each in files)
    kept = [text for file in files for text in texts(file)]
    assert kept == [f"line {number}\n" for number in range(100)][-len(kept) :]
    assert len(kept) > 20


def test_a_full_disk(tmp_path: Path) -> None:
    """What fits is kept; when there is room again it goes on, and says what is missing."""
    need("mount", "umount")
    with tmpfs(tmp_path / "disk", "size=64k") as disk, running(disk / "log") as one:
        path = disk / "log"
        wait_for(path, "stdout", [])
        ballast = disk / "ballast"
        ballast.write_bytes(bytes(32_000))
        for number in range(600):
            os.write(one.out, b"line %d\n" % number)
        until(lambda: logger.settled(path))
        ballast.unlink()
        os.write(one.out, b"again\n")
        until(lambda: lines(path)[-1:] == ["again\n"])
        assert one.end() == 0
        found = lines(path)
    whole = [f"line {number}\n" for number in range(len(found) - 2)]
    assert found[:-2] == whole
    assert 100 < len(whole) < 600
    assert re.fullmatch(r"taskd-logger: \d{4,} bytes were dropped: the disk was full\n", found[-2])


@pytest.mark.parametrize("files", [1, 3])
def test_a_disk_without_room_for_another_file(tmp_path: Path, files: int) -> None:
    need("mount", "umount")
    options = ("max-size", "1000", "max-file", str(files))
    with tmpfs(tmp_path / "disk", "size=1m,nr_inodes=5") as disk:
        path = disk / "log"
        with running(path, *options) as one:
            wait_for(path, "stdout", [])
            taken = 0
            with suppress(OSError):
                while True:
                    (disk / f"ballast{taken}").touch()
                    taken += 1
            for number in range(100):
                os.write(one.out, b"line %d\n" % number)
                until(lambda: logger.settled(path))
            assert len(list(disk.glob("log*"))) == (files > 1)
            for number in range(taken):
                (disk / f"ballast{number}").unlink()
            os.write(one.out, b"again\n")
            until(lambda: path.exists() and lines(path)[-1:] == ["again\n"])
            assert one.end() == 0


def lines(path: Path) -> list[str]:
    """What can be read of it."""
    found = []
    for line in path.read_bytes().splitlines():
        with suppress(ValueError):
            found.append(json.loads(line)["log"])
    return found


def until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_two_loggers_of_one_file(tmp_path: Path) -> None:
    """The second waits for the first, if that ends soon, and says so if not."""
    path = tmp_path / "log"
    with running(path) as one:
        wait_for(path, "stdout", [])
        command = ["bash", "-c", 'exec 3</dev/null 4</dev/null 5>/dev/null; exec "$@"', "-"]
        second = [*command, *LOGGER, "path", str(path)]
        done = subprocess.run(second, stderr=subprocess.PIPE, text=True, timeout=60)
        assert done.returncode == 1
        assert done.stderr == f"{logger.NAME}: {path}: another logger writes to it\n"
        later = subprocess.Popen(second)
        assert one.end() == 0
        assert later.wait(60) == 0


def test_whether_all_has_been_written(tmp_path: Path) -> None:
    path = tmp_path / "log"
    assert logger.settled(path)
    with running(path) as one:
        os.write(one.out, b"x\n")
        wait_for(path, "stdout", ["x\n"])
        deadline = time.monotonic() + 10
        while not logger.settled(path):
            assert time.monotonic() < deadline
        os.kill(one.process.pid, 19)
        os.write(one.out, b"y\n")
        assert not logger.settled(path)
        os.kill(one.process.pid, 18)
        assert one.end() == 0
    assert logger.settled(path)
    assert texts(path) == ["x\n", "y\n"]


def test_no_path(capfd: pytest.CaptureFixture[str]) -> None:
    done = subprocess.run([*LOGGER], check=False)
    assert done.returncode == 1
    assert "usage: taskd-logger path FILE" in capfd.readouterr().err
