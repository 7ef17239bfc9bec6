"""``taskd stop``, ``kill``, ``rm``, ``pause``, ``unpause``, ``wait``, ``rmi``."""

from __future__ import annotations

import signal
import sys
from argparse import Namespace
from collections.abc import Awaitable, Callable

import anyio

from taskd.cli.running import open_client
from taskd.client import Client, Container
from taskd.errors import InvalidArgument, TaskdError
from taskd.printable import printable

__all__ = ["kill", "pause", "rm", "rmi", "stop", "unpause", "wait"]


async def _each(
    options: Namespace, act: Callable[[Container], Awaitable[object]], *, shown: bool = True
) -> int:
    """Do it to all that are named, whatever becomes of the others; 1 if one failed."""
    async with open_client(options) as client:

        async def one(name: str) -> None:
            await act(await client.get(name))
            if shown:
                print(name)

        return await _all(options.containers, one)


async def _all(names: list[str], act: Callable[[str], Awaitable[None]]) -> int:
    failed = 0

    async def one(name: str) -> None:
        nonlocal failed
        try:
            await act(name)
        except TaskdError as exc:
            failed = 1
            print(f"taskd: {printable(str(exc))}", file=sys.stderr)

    async with anyio.create_task_group() as group:
        for name in names:
            group.start_soon(one, name)
    return failed


async def stop(options: Namespace) -> int:
    number = signal_number(options.signal)
    return await _each(options, lambda each: each.stop(options.time, number))


async def kill(options: Namespace) -> int:
    number = signal_number(options.signal)
    return await _each(options, lambda each: each.kill(number))


async def rm(options: Namespace) -> int:
    return await _each(options, lambda each: each.delete(force=options.force))


async def pause(options: Namespace) -> int:
    return await _each(options, lambda each: each.pause())


async def unpause(options: Namespace) -> int:
    return await _each(options, lambda each: each.resume())


async def wait(options: Namespace) -> int:
    async def ended(container: Container) -> None:
        print((await container.wait()).code, flush=True)

    return await _each(options, ended, shown=False)


async def rmi(options: Namespace) -> int:
    async with open_client(options) as client:
        return await _all(options.images, lambda name: _remove(client, name))


async def _remove(client: Client, name: str) -> None:
    await client.images.remove(name, sync=True)
    print(name)


def signal_number(text: str) -> int:
    """Of ``9``, ``KILL`` or ``SIGKILL``. Raises `InvalidArgument`."""
    name = text.upper().removeprefix("SIG")
    if name.isdecimal() and 0 < int(name) < signal.NSIG:
        return int(name)
    try:
        return signal.Signals[f"SIG{name}"].value
    except KeyError:
        raise InvalidArgument(f"{text!r} is no signal", verbatim=True) from None
