"""``taskd run``, ``exec``, ``start`` and ``attach``: processes at this terminal."""

from __future__ import annotations

import os
import sys
from argparse import Namespace
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from taskd import errors
from taskd.cli import terminal
from taskd.client import Client, Container, Limits, Options, Process, connect
from taskd.client.cleanup import whatever_happens
from taskd.client.client import is_path
from taskd.errors import FailedPrecondition, NotFound, TaskdError
from taskd.printable import printable

__all__ = ["attach", "execute", "failure", "open_client", "run", "start"]

NOT_EXECUTABLE, NOT_FOUND, FAILED = 126, 127, 125
"""Exit statuses of Docker's for what did not begin."""


@asynccontextmanager
async def open_client(options: Namespace) -> AsyncIterator[Client]:
    async with connect(options.address or options.daemon_address, options.namespace) as client:
        yield client


def failure(exc: TaskdError | OSError) -> int:
    """Say why a process did not begin; Docker's exit status for it."""
    text = errors.words(exc)
    print(f"taskd: {printable(text)}", file=sys.stderr)
    if not isinstance(exc, errors.Unknown):
        return FAILED
    _, said, words = text.lower().partition("exec")
    if said and "permission denied" in words:
        return NOT_EXECUTABLE
    if said and ("file not found" in words or "no such file" in words):
        return NOT_FOUND
    return FAILED


async def run(options: Namespace) -> int:
    try:
        if options.tty and not options.detach:
            terminal.require()
        async with open_client(options) as client:
            await _fetch(client, options)
            chosen = _options(options)
            # A containerd cannot, and the command does it alone.
            chosen["remove"] = options.rm and (options.detach or await client.is_taskd())
            container = await client.create(options.source, options.args, **chosen)
            if options.detach:
                return await _leave(container)
            return await _run(container, options)
    except (TaskdError, OSError) as exc:
        return failure(exc)


async def _fetch(client: Client, options: Namespace) -> None:
    """Pull the image, if that is wanted."""
    from taskd.cli.moving import Access, fetch

    if options.pull == "never" or is_path(options.source):
        return
    if options.pull == "missing":
        with suppress(NotFound):
            await client.images.get(options.source)
            return
    await fetch(client, options.source, Access(credentials=None, plain_http=False, hosts=""))


async def _leave(container: Container) -> int:
    """Start it, and let it be."""
    await _begin(container)
    print(container.id)
    return 0


async def _run(container: Container, options: Namespace) -> int:
    remove = options.rm
    try:
        await _begin(container)
        return await terminal.attached(container, stdin=options.interactive)
    except terminal.Detached:
        remove = False
        return 0
    finally:
        if remove:
            await whatever_happens(container.leave())


async def _begin(container: Container) -> None:
    """Start it; what cannot be started is not there afterwards."""
    try:
        await container.start()
    except BaseException:
        await whatever_happens(container.leave())
        raise


def _options(options: Namespace) -> Options:
    chosen: Options = {
        "env": [*_env_files(options.env_file), *map(_env, options.env)],
        "mounts": [*options.volume, *(f"tmpfs:{each}" for each in options.tmpfs)],
        "tty": options.tty,
        "stdin": options.interactive,
        "output": "log" if options.detach else "stream",
        "network": options.network,
        "read_only": options.read_only,
        "labels": dict(map(_pair, options.label)),
        "annotations": dict(map(_pair, options.annotation)),
        "limits": Limits(
            memory=options.memory,
            memory_swap=options.memory_swap,
            cpus=options.cpus,
            cpu_shares=options.cpu_shares,
            cpuset=options.cpuset_cpus,
            pids=options.pids_limit,
        ),
    }
    for name, given in (
        ("id", options.name),
        ("user", options.user),
        ("cwd", options.workdir),
        ("hostname", options.hostname),
        ("runtime", options.runtime),
        ("snapshotter", options.snapshotter),
    ):
        if given:
            chosen[name] = given  # type: ignore[literal-required]
    return chosen


def _pair(text: str) -> tuple[str, str]:
    name, _, value = text.partition("=")
    return name, value


def _env(text: str) -> str:
    """``NAME=VALUE``, or the value that ``NAME`` has here."""
    return text if "=" in text else f"{text}={os.environ.get(text, '')}"


def _env_files(files: list[Path]) -> list[str]:
    lines = [line.strip() for file in files for line in file.read_text().splitlines()]
    return [_env(line) for line in lines if line and not line.startswith("#")]


async def execute(options: Namespace) -> int:
    try:
        if options.tty and not options.detach:
            terminal.require()
        async with open_client(options) as client:
            container = await client.get(options.container)
            process = await container.exec(
                options.args,
                env=[*_env_files(options.env_file), *map(_env, options.env)],
                cwd=options.workdir,
                user=options.user,
                tty=options.tty,
                stdin=options.interactive,
                output=not options.detach,
            )
            if options.detach:
                return 0
            return await _execute(process, options)
    except (TaskdError, OSError) as exc:
        return failure(exc)


async def _execute(process: Process, options: Namespace) -> int:
    try:
        code = await terminal.attached(process, stdin=options.interactive)
    except terminal.Detached:
        return 0
    except BaseException:
        await whatever_happens(process.leave())
        raise
    await process.delete()
    return code


async def start(options: Namespace) -> int:
    async with open_client(options) as client:
        for name in options.containers:
            container = await client.get(name)
            await container.start()
            print(container.id)
    return 0


async def attach(options: Namespace) -> int:
    async with open_client(options) as client:
        container = await client.get(options.container)
        if container.tty and not options.no_stdin:
            terminal.require()
        await container.attach()
        try:
            stdin = not options.no_stdin and _reads(container)
            return await terminal.attached(container, stdin=stdin)
        except terminal.Detached:
            return 0


def _reads(process: Process) -> bool:
    try:
        return process.stdin is not None
    except FailedPrecondition:
        return False
