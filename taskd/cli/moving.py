"""``taskd pull``, ``push``, ``load``, ``save``, ``tag``, ``cp``: what goes in and out."""

from __future__ import annotations

import getpass
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypedDict

from taskd.cli.running import open_client
from taskd.client import Client
from taskd.client.images import normalised
from taskd.client.transfer import Credentials, Progress
from taskd.errors import InvalidArgument
from taskd.printable import printable

__all__ = ["Access", "access", "cp", "fetch", "load", "pull", "push", "save", "tag"]

_DIGEST = 12
"""Characters of a digest that are shown."""


class Access(TypedDict):
    """How a registry is to be asked."""

    credentials: Credentials | None
    plain_http: bool
    hosts: str


def access(options: Namespace) -> Access:
    credentials = None
    if options.user:
        name, colon, password = options.user.partition(":")
        credentials = name, password if colon else getpass.getpass(f"password of {name}: ")
    return Access(
        credentials=credentials, plain_http=options.plain_http, hosts=options.hosts_dir or ""
    )


async def pull(options: Namespace) -> int:
    async with open_client(options) as client:
        for name in options.images:
            await fetch(client, name, access(options), quiet=options.quiet)
            print(normalised(name))
    return 0


async def fetch(client: Client, name: str, how: Access, *, quiet: bool = False) -> None:
    """Pull an image, and show how far it has come."""
    with _progress(quiet=quiet) as told:
        await client.images.pull(name, progress=told, **how)


async def push(options: Namespace) -> int:
    async with open_client(options) as client:
        with _progress(quiet=options.quiet) as told:
            reference = options.reference or normalised(options.image)
            await client.images.push(options.image, reference, progress=told, **access(options))
        print(reference)
    return 0


@contextmanager
def _progress(*, quiet: bool) -> Iterator[Callable[[Progress], object] | None]:
    """What is told of each blob: bars on a terminal, and a line for its end elsewhere."""
    if quiet:
        yield None
        return
    if not sys.stderr.isatty():
        yield _tell
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, TaskID, TextColumn, TransferSpeedColumn
    from rich.progress import Progress as Bars

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
    )
    with Bars(*columns, console=Console(stderr=True)) as bars:
        shown: dict[str, TaskID] = {}

        def advance(step: Progress) -> None:
            if not step.total:
                return
            if step.name not in shown:
                shown[step.name] = bars.add_task(_short(step.name), total=step.total)
            bars.update(shown[step.name], completed=step.progress, total=step.total)

        yield advance


def _tell(step: Progress) -> None:
    if step.event in ("complete", "done", "extracted", "saved"):
        print(f"{step.event}: {_short(step.name)}", file=sys.stderr, flush=True)


def _short(name: str) -> str:
    kind, _, digest = name.partition("-sha256:")
    return printable(f"{kind} {digest[:_DIGEST]}" if digest else name)


async def load(options: Namespace) -> int:
    async with open_client(options) as client:
        for image in await client.images.import_(options.input, options.name):
            print(image.name)
    return 0


async def save(options: Namespace) -> int:
    async with open_client(options) as client:
        await client.images.export(options.output, *options.images)
    return 0


async def tag(options: Namespace) -> int:
    async with open_client(options) as client:
        source = await client.images.get(options.source)
        assert source.target is not None
        await client.images.put(normalised(options.target), source.target, source.labels)
    return 0


async def cp(options: Namespace) -> int:
    there, source = _place(options.source)
    others, target = _place(options.target)
    if bool(there) == bool(others):
        raise InvalidArgument("one of the two is CONTAINER:PATH, the other a path", verbatim=True)
    async with open_client(options) as client:
        container = await client.get(there or others)
        if there:
            await container.copy_out(source, Path(target))
        else:
            await container.copy_in(Path(source), target)
    return 0


def _place(text: str) -> tuple[str, str]:
    """The container and the path in it; no container for a path of this machine's."""
    name, colon, path = text.partition(":")
    return (name, path) if colon and "/" not in name else ("", text)
