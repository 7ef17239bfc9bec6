"""``taskd shim``: for people who write shims."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from taskd.cli.parsers import Add
from taskd.errors import InvalidArgument

if TYPE_CHECKING:
    from anyio import CancelScope

    from taskd.check import Result

__all__ = ["add"]


def add(add_parser: Add, run: Callable[..., object]) -> None:
    """Add ``shim`` and what can be done with one; `run` runs a coroutine."""
    add_parser("shim", "for people who write shims", partial(_add, run))


def _add(run: Callable[..., object], shim: argparse.ArgumentParser) -> None:
    actions = shim.add_subparsers(required=True, metavar="ACTION")
    _add_new(actions)
    _add_dev(actions, run)
    _add_check(actions)


def _add_new(actions: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    new = actions.add_parser("new", help="write a plugin that can be installed, with its tests")
    new.set_defaults(command=_new)
    new.add_argument("name", metavar="NAME", help="of the runtime: io.example.thing.v1")
    new.add_argument("--folder", type=Path, metavar="DIR", help="where; shim-thing by default")


def _new(options: argparse.Namespace) -> None:
    from taskd.cli.plugin import new

    print(f"written: {new(options.name, options.folder)}")


def _add_dev(
    actions: argparse._SubParsersAction[argparse.ArgumentParser], run: Callable[..., object]
) -> None:
    dev = actions.add_parser(
        "dev",
        help="try a shim while it is written",
        description="Run a daemon in a folder of its own that has the shim in DIR, and show what "
        "it is asked and what it writes. After a change new containers have the new code, and "
        "those that run go on. With Ctrl-C all ends that runs in the daemon.",
    )

    def _dev(options: argparse.Namespace) -> None:
        from taskd.cli.dev import dev

        run(dev, options.folder.absolute())

    dev.set_defaults(command=_dev)
    dev.add_argument(
        "folder",
        type=Path,
        metavar="DIR",
        help="with the shim's pyproject.toml, or an executable containerd-shim-NAME-vN",
    )


def _add_check(actions: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    check = actions.add_parser(
        "check",
        help="check that a shim keeps to the protocol",
        description="Check that a shim keeps to the protocol. Needs no daemon; for containers of "
        "runc's kind it needs root. The exit status is 1 if a check failed.",
    )
    check.set_defaults(command=_check, parser=check)
    check.add_argument(
        "binary",
        nargs="?",
        metavar="BINARY",
        help="path or name of its executable, or name of its runtime",
    )
    check.add_argument("words", nargs="*", metavar="WORD", help="only checks with this in a name")
    check.add_argument("--junit", type=Path, metavar="FILE", help="write JUnit's XML as well")
    check.add_argument("--list", action="store_true", help="only tell which checks there are")
    check.add_argument(
        "--rootfs",
        type=Path,
        default=Path("/"),
        metavar="DIR",
        help="root filesystem of the containers, with /bin/sh and coreutils; the host's by default",
    )
    check.add_argument(
        "--program",
        action="append",
        default=[],
        metavar="NAME=PATH",
        help="file in the root filesystem that does what the program of this name does, for a "
        "runtime that cannot run /bin/sh",
    )
    check.add_argument(
        "--option",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="option of containerd.runc.v1.Options, such as BinaryName=crun",
    )
    check.add_argument(
        "--no-options",
        action="store_true",
        help="give the shim no options, for one that does not take containerd.runc.v1.Options",
    )
    check.add_argument(
        "--timeout", type=float, default=30.0, metavar="SECONDS", help="for one check"
    )
    check.add_argument("--debug", action="store_true", help="have shims log more")
    check.add_argument("--at-once", type=int, default=4, metavar="N", help="checks at a time")


def _check(options: argparse.Namespace) -> int:
    import logging
    import time

    import anyio

    from taskd import check
    from taskd.check import report

    selected = check.select(options.words)
    if not selected:
        options.parser.error(f"no check has {' or '.join(options.words)} in its name")
    if options.list:
        print(report.listing(selected))
        return 0
    if options.binary is None:
        options.parser.error("which shim?")
    try:
        rootfs = options.rootfs.absolute()
        if options.junit is not None:
            _check_writable(options.junit)
        subject = check.Subject(
            path=check.find(options.binary),
            options=None if options.no_options else check.runtime_options(options.option),
            rootfs=rootfs,
            programs=check.own_programs(options.program, rootfs),
            debug=options.debug,
            timeout=options.timeout,
        )
    except InvalidArgument as exc:
        options.parser.error(str(exc))
    logging.disable()  # what is to be said of broken connections the report says
    began = time.monotonic()
    progress = _Progress(len(selected) + 1)
    results = anyio.run(
        _until_told_to_end,
        partial(check.run, subject, selected, at_once=options.at_once, tell=progress.tell),
    )
    progress.end()
    if results is None:
        return 1
    print(report.table(subject.path, results, time.monotonic() - began))
    if options.junit is not None:
        report.write_junit(options.junit, subject.path, results)
    return int(any(result.outcome is check.Outcome.FAILED for result in results))


def _check_writable(file: Path) -> None:
    """Raise `InvalidArgument` if it cannot be written: better now than after some minutes."""
    place = file if file.exists() else file.absolute().parent
    if file.is_dir() or not place.exists() or not os.access(place, os.W_OK):
        why = "is a folder" if file.is_dir() else "cannot be written"
        raise InvalidArgument(f"--junit {file}: {why}", verbatim=True)


async def _until_told_to_end(
    work: Callable[[], Awaitable[list[Result]]],
) -> list[Result] | None:
    """What `work` returns; None if SIGTERM came first, and all that it had begun is undone."""
    import signal

    import anyio

    results = None

    async def wait_for_signal(scope: CancelScope) -> None:
        with anyio.open_signal_receiver(signal.SIGTERM) as signals:
            async for _ in signals:
                scope.cancel()

    async with anyio.create_task_group() as group:
        group.start_soon(wait_for_signal, group.cancel_scope)
        results = await work()
        group.cancel_scope.cancel()
    return results


class _Progress:
    """A line on a terminal that says how far it is."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._done = 0
        self._shown = sys.stderr.isatty()

    def tell(self, result: Result) -> None:
        self._done += 1
        if self._shown:
            line = f"{self._done}/{self._total} {result.check.theme}: {result.check.name}"
            print(f"\r\x1b[K{line[:78]}", end="", file=sys.stderr, flush=True)

    def end(self) -> None:
        if self._shown:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
