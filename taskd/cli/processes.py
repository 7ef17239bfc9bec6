"""``taskd shims``: the processes of shims, what they hold and cost; and fresh ones instead."""

from __future__ import annotations

import json
import math
import os
import signal
import time
from argparse import Namespace
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from taskd import procfs
from taskd.cli.running import open_client
from taskd.cli.table import ago, show, sized
from taskd.client import Client
from taskd.errors import FailedPrecondition, NotFound
from taskd.printable import printable
from taskd.proto.taskd.v1 import (
    ListShimsRequest,
    RenewShimsRequest,
    RenewShimsResponse,
    Shim,
    ShimsStub,
    State,
)

__all__ = ["kill", "renew", "shims"]

_TENANTS = 3
"""Names that are shown, unless all of them are to be."""


async def shims(options: Namespace) -> int:
    async with open_client(options) as client:
        found = sorted(await _list(client), key=lambda each: each.pid)
    if options.json:
        for each in found:
            print(json.dumps(_summary(each)))
        return 0
    rows = []
    for each in found:
        about = _summary(each)
        names = about["tenants"]
        shown = names if options.no_trunc else names[:_TENANTS]
        more = [f"+{len(names) - len(shown)}"] if len(shown) < len(names) else []
        rows.append(
            (
                str(each.pid or "?"),
                Path(each.binary).name,
                about["state"] + (" (pool)" if each.pooled else ""),
                "--" if about["memory"] is None else sized(about["memory"]),
                "--" if about["age"] is None else ago(about["age"]),
                each.version or "--",
                " ".join([*shown, *more]),
            )
        )
    headings = ("PID", "SHIM", "STATE", "MEMORY", "AGE", "VERSION", "TENANTS")
    show(headings, rows, whole=options.no_trunc)
    return 0


async def renew(options: Namespace) -> int:
    """Tell of each when it is done; 1 if one that was named has been left as it was."""
    async with open_client(options) as client:
        known = await _list(client)
        namespace = client.namespace
        named = [_named(each, known, namespace) for each in getattr(options, "shims", ())]
        request = RenewShimsRequest(addresses=[each.address for each in named])
        failed = 0
        if not known and not options.json:
            print("no shim runs: there is nothing to renew")
        async for answer in ShimsStub(client.channel).renew(request):
            assert answer.shim is not None
            if options.json:
                print(json.dumps(_outcome(answer)), flush=True)
            else:
                print(_words(answer), flush=True)
            failed |= bool(answer.reason) and bool(named)
    return failed


def _named(name: str, known: Sequence[Shim], namespace: str) -> Shim:
    """The process of that pid, or in which that task lives."""
    for shim in known:
        if shim.pid and str(shim.pid) == name:
            return shim
    whole = name if "/" in name else f"{namespace}/{name}"
    for shim in known:
        if any(f"{each.namespace}/{each.id}" == whole for each in shim.tenants):
            return shim
    raise NotFound(f"shim with pid {name}" if name.isdecimal() else f"shim of task {name}")


def _outcome(answer: RenewShimsResponse) -> dict[str, Any]:
    shim = answer.shim
    assert shim is not None
    return {
        "pid": shim.pid,
        "renewed": not answer.reason,
        "reason": answer.reason,
        "new_pid": answer.pid,
        "tenants": _tenants(shim),
    }


def _words(answer: RenewShimsResponse) -> str:
    shim = answer.shim
    assert shim is not None
    names = " ".join(_tenants(shim))
    name = printable(f"{shim.pid or '?'} {names}".rstrip())
    if answer.reason:
        return f"{name}: left as it is: {printable(answer.reason)}"
    return f"{name}: {answer.pid} goes on" if answer.pid else f"{name}: ended, as it was empty"


async def kill(options: Namespace) -> int:
    """SIGKILL for those that are named by their pids, if they are shims of this daemon's."""
    async with open_client(options) as client:
        # Held before it is looked for: so it cannot be another one that has got its number.
        held = [_held(pid) for pid in options.pids]
        try:
            known = {each.pid for each in await _list(client)}
            for pid, descriptor in zip(options.pids, held, strict=True):
                if pid not in known or descriptor < 0:
                    raise NotFound(f"shim with pid {pid}")
                signal.pidfd_send_signal(descriptor, signal.SIGKILL)
                print(pid)
        finally:
            for descriptor in held:
                if descriptor >= 0:
                    os.close(descriptor)
    return 0


def _held(pid: int) -> int:
    try:
        return os.pidfd_open(pid)
    except ProcessLookupError:
        return -1


async def _list(client: Client) -> list[Shim]:
    if not await client.is_taskd():
        raise FailedPrecondition(
            f"the daemon at {client.address} does not show its shims: it is no taskd", verbatim=True
        )
    found: list[Shim] = (await ShimsStub(client.channel).list(ListShimsRequest())).shims
    return found


def _summary(shim: Shim) -> dict[str, Any]:
    """What the daemon knows of it, and what this machine does."""
    memory = age = None
    if shim.pid:
        with suppress(OSError, ValueError):
            age = min(procfs.age(shim.pid), _listening(shim.address))
            memory = _memory(shim.pid)
    return {
        "pid": shim.pid,
        "binary": shim.binary,
        "state": (State(shim.state).name or "").lower(),
        "pooled": shim.pooled,
        "memory": memory,
        "age": age,
        "address": shim.address,
        "version": shim.version,
        "tenants": _tenants(shim),
    }


def _listening(address: str) -> float:
    """Seconds since its socket was made: a fork may have waited long to become this shim."""
    with suppress(OSError):
        made = Path(address.removeprefix("unix://")).stat().st_mtime
        return max(0.0, time.time() - made)
    return math.inf


def _tenants(shim: Shim) -> list[str]:
    return [f"{each.namespace}/{each.id}" for each in shim.tenants]


def _memory(pid: int) -> int | None:
    """Its share of the memory that it has, in bytes: what is shared is divided (PSS)."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    return None
