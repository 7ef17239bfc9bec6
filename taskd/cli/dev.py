"""``taskd shim dev``: a daemon for somebody who writes a shim, and all that is to be seen of it."""

from __future__ import annotations

import logging
import os
import re
import signal
import sys
import tempfile
import tomllib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from subprocess import PIPE

import anyio

from taskd.cli.trace import Shown, timed, trace
from taskd.config import Config, ShimsConfig
from taskd.errors import InvalidArgument, words
from taskd.plugins import GROUP
from taskd.printable import printable
from taskd.testing.daemon import served
from taskd.testing.reaper import reaper

__all__ = ["Blocks", "Found", "dev", "find"]

_LOOK_SECONDS = 0.3
"""Between two looks at what has changed."""
_QUIET_SECONDS = 0.3
"""After which a traceback that a shim writes has come to its end."""
_EXECUTABLE = re.compile(r"containerd-shim-[a-z0-9-]+-v[0-9]+")
_PROJECT = "pyproject.toml"
_RENAMED = re.compile("ImportError: cannot import name|ModuleNotFoundError: No module named")
_RECORD = re.compile(r"(DEBUG|INFO|WARNING|ERROR|CRITICAL) ")
_LAUNCHER = """#!{python}
import sys
sys.path[:1] = {path!r}
from taskd.shim import run
sys.dont_write_bytecode = True  # what changes twice in a second would not be read again
from {module} import {root}
run({attribute}, {runtime!r})
"""


@dataclass(frozen=True)
class Found:
    """A shim in a folder: as an entry point of a distribution, or as an executable."""

    runtime: str
    """As clients give it: a name, or the path of the executable."""
    executable: str
    """Its name, or its path if it is there."""
    text: str = ""
    """What it is to be if it is not."""


async def dev(folder: Path) -> None:
    """Run a daemon that knows the shims in `folder` until SIGINT or SIGTERM; print what happens.

    Raises `InvalidArgument` if there is none.
    """
    shims = find(folder)
    with (
        tempfile.TemporaryDirectory(prefix="taskd-dev-") as name,
        reaper(Path(name)),
        _searched(folder),
        _shown() as blocks,
    ):
        programs = _executables(shims, Path(name))
        config = Config(
            root=Path(name, "root"),
            state=Path(name, "state"),
            # Each container imports what is there then, and not in the middle of its life.
            shims=ShimsConfig(warm=False, adopt=False),
            runtimes={shim.runtime: str(programs[shim.runtime]) for shim in shims if shim.text},
        )
        async with served(config), anyio.create_task_group() as group:
            for shim in shims:
                print(f"taskd: {shim.runtime}, from {folder}")
            print(f"taskd: export TASKD_ADDRESS={config.socket}", flush=True)
            group.start_soon(_wait_for_end, group.cancel_scope)
            group.start_soon(_watch, folder, Path(name), programs)
            group.start_soon(_end_blocks, blocks)
            await trace(config.socket, "", "", Shown())


def find(folder: Path) -> list[Found]:
    """The shims in a folder. Raises `InvalidArgument` if there is none, or one that cannot be."""
    try:
        document = tomllib.loads((folder / _PROJECT).read_text())
    except FileNotFoundError:
        document = {}
    except OSError as exc:
        raise InvalidArgument(words(exc), verbatim=True) from exc
    except ValueError as exc:
        raise InvalidArgument(f"{folder}/pyproject.toml: {exc}", verbatim=True) from exc
    try:
        entries = document.get("project", {}).get("entry-points", {}).get(GROUP, {})
        found = [_launcher(folder, runtime, place) for runtime, place in entries.items()]
    except (AttributeError, ValueError):
        raise InvalidArgument(
            f"{folder}/pyproject.toml: its entry points {GROUP} are not like "
            '"io.example.thing.v1" = "module:Class"',
            verbatim=True,
        ) from None
    if folder.is_dir():
        for path in sorted(folder.iterdir()):
            if _EXECUTABLE.fullmatch(path.name) and os.access(path, os.X_OK):
                found.append(Found(str(path), str(path)))
    if not found:
        raise InvalidArgument(
            f"{folder} has no shim: neither a pyproject.toml with entry points {GROUP} nor an "
            "executable containerd-shim-NAME-vN",
            verbatim=True,
        )
    return found


def _launcher(folder: Path, runtime: str, place: str) -> Found:
    """An executable that imports the shim from where it is written, installed or not."""
    module, attribute = place.split(":")
    *_, name, version = runtime.split(".")
    text = _LAUNCHER.format(
        python=sys.executable,
        path=[str(folder), str(folder / "src")],
        module=module,
        root=attribute.partition(".")[0],
        attribute=attribute,
        runtime=runtime,
    )
    return Found(runtime, f"containerd-shim-{name}-{version}", text)


def _executables(shims: Iterable[Found], folder: Path) -> dict[str, Path]:
    """Where the executable of each runtime is; in `folder` are those that were not there."""
    programs = {}
    for shim in shims:
        path = folder / shim.executable  # which is the executable if that is absolute
        if shim.text:
            path.write_text(shim.text)
            path.chmod(0o755)
        programs[shim.runtime] = path
    return programs


@contextmanager
def _searched(folder: Path) -> Iterator[None]:
    """Executables in the folder are found by the names of their runtimes."""
    before = os.environ["PATH"]
    os.environ["PATH"] = f"{folder}:{before}"
    try:
        yield
    finally:
        os.environ["PATH"] = before


async def _wait_for_end(scope: anyio.CancelScope) -> None:
    with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async for _ in signals:
            scope.cancel()


# --- changes ----------------------------------------------------------------------------------


async def _watch(folder: Path, place: Path, programs: Mapping[str, Path]) -> None:
    """Say what has changed, and whether the shims can be loaded as they are now."""
    there = await anyio.to_thread.run_sync(_files, folder)
    await _load(programs.values())
    while True:
        await anyio.sleep(_LOOK_SECONDS)
        before, there = there, await anyio.to_thread.run_sync(_files, folder)
        changed = sorted(
            name for name in before.keys() | there.keys() if before.get(name) != there.get(name)
        )
        if changed:
            _say(f"changed: {', '.join(changed)}; new containers have it")
            if _PROJECT in changed:
                _find_again(folder, place, programs)
            await _load(programs.values())


def _find_again(folder: Path, place: Path, programs: Mapping[str, Path]) -> None:
    """Have the shims be what the project says now; what that is not possible for, say."""
    try:
        there = {shim.runtime: shim for shim in find(folder)}
    except InvalidArgument as exc:
        _say(f"the shims are still those from before: {exc}")
        return
    _executables([shim for shim in there.values() if shim.runtime in programs], place)
    for runtime in there.keys() - programs.keys():
        _say(f"{runtime} is new: it is served after a restart of taskd shim dev")
    for runtime in programs.keys() - there.keys():
        _say(f"{runtime} is not there any more: it is served until a restart of taskd shim dev")


def _files(folder: Path) -> dict[str, tuple[int, int]]:
    """When each file was written, and its size; not those of tools and environments."""
    found = {}
    for parent, folders, names in os.walk(folder):
        folders[:] = [
            name
            for name in folders
            if not name.startswith((".", "__pycache__"))
            and not Path(parent, name, "pyvenv.cfg").exists()
        ]
        for name in names:
            path = Path(parent, name)
            with suppress(OSError):  # an editor's, and gone by now
                if not name.startswith(".") and not name.endswith(("~", ".pyc")):
                    state = path.stat()
                    found[str(path.relative_to(folder))] = state.st_mtime_ns, state.st_size
    return found


async def _load(programs: Collection[Path]) -> None:
    """Have each shim tell its version, for which it has to be imported."""
    for program in programs:
        done = await anyio.run_process([str(program), "-v"], stdout=PIPE, stderr=PIPE, check=False)
        if done.returncode:
            lines = done.stderr.decode(errors="replace").rstrip().splitlines()
            if lines and _RENAMED.match(lines[-1]):
                lines.append(f"What it is called now is to be said in {_PROJECT}, too.")
            _say_block([f"{program.name} cannot be loaded", *lines])


# --- what shims write -------------------------------------------------------------------------


@dataclass
class Blocks:
    """Puts together what belongs together of what shims write: tracebacks come line by line."""

    _open: dict[str, list[str]] = field(default_factory=dict)
    _grown: set[str] = field(default_factory=set)

    def take(self, name: str, text: str) -> Iterator[list[str]]:
        """What is complete now that the shim `name` has written one more line."""
        if _RECORD.match(text):
            yield from self._end(name)
        self._open.setdefault(name, []).append(text)
        self._grown.add(name)

    def settled(self) -> Iterator[list[str]]:
        """What has not grown since this was last asked is complete, too."""
        for name in self._open.keys() - self._grown:
            yield from self._end(name)
        self._grown.clear()

    def _end(self, name: str) -> Iterator[list[str]]:
        if lines := self._open.pop(name, []):
            yield [f"shim {name}: {lines[0]}", *lines[1:]]


class _Handler(logging.Handler):
    """What the daemon logs: shims' lines go together; calls that failed the trace has."""

    def __init__(self, blocks: Blocks) -> None:
        super().__init__()
        self._blocks = blocks

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        shim = re.fullmatch(r"shim (\S+): (.*)", text, re.DOTALL)
        if shim is not None:
            for block in self._blocks.take(shim[1], shim[2]):
                _say_block(block)
        elif record.levelno >= logging.ERROR:
            _say(f"{record.levelname} {text}")


@contextmanager
def _shown() -> Iterator[Blocks]:
    """Have what is logged shown."""
    blocks = Blocks()
    root, handler = logging.getLogger(), _Handler(blocks)
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    try:
        yield blocks
    finally:
        root.setLevel(level)
        root.removeHandler(handler)


async def _end_blocks(blocks: Blocks) -> None:
    """What nothing follows is complete as well."""
    while True:
        await anyio.sleep(_QUIET_SECONDS)
        for block in blocks.settled():
            _say_block(block)


def _say_block(lines: Sequence[str]) -> None:
    _say(lines[0])
    for each in lines[1:]:
        print(f"    {printable(each)}")
    sys.stdout.flush()


def _say(text: str) -> None:
    """A line among those of the trace."""
    print(timed(datetime.now().astimezone(), "", printable(text)), flush=True)
