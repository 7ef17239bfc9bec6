"""``taskd ps``, ``inspect``, ``logs``, ``stats``, ``images``: what there is."""

from __future__ import annotations

import json
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import anyio

from taskd import procfs
from taskd.cli.running import open_client
from taskd.cli.table import ago, show, sized
from taskd.client import Client, Container, Stats
from taskd.client.sampling import command_of, status_of
from taskd.errors import InvalidArgument
from taskd.plain import plain, rfc3339
from taskd.proto.containerd.v1.types import Status
from taskd.wellknown import nanoseconds

__all__ = ["images", "inspect", "logs", "ps", "stats"]

_NS = 10**9
_STATS_SECONDS = 1.0
_STATUSES = ("created", "exited", "paused", "running", "unknown")
_COMMAND = 24
"""Characters of a command that are shown, unless it is to be shown whole."""


async def ps(options: Namespace) -> int:
    passes = [_filter(each) for each in options.filter]
    async with open_client(options) as client:
        found = [
            each
            for each in await client.list()
            if (options.all or passes or status_of(each) not in ("exited", "created"))
            and all(wanted(each) for wanted in passes)
        ]
    found.sort(key=lambda each: nanoseconds(each.record.created_at), reverse=True)
    if options.quiet:
        print("\n".join(each.id for each in found), end="\n" if found else "")
    elif options.json:
        for each in found:
            print(json.dumps(_summary(each)))
    else:
        columns = ("CONTAINER ID", "IMAGE", "COMMAND", "CREATED", "STATUS", "PID", "RUNTIME")
        show(columns, [_row(each, options.no_trunc) for each in found], whole=options.no_trunc)
    return 0


def _row(container: Container, whole: bool) -> Sequence[str]:
    command = command_of(container)
    if not whole and len(command) > _COMMAND:
        command = f"{command[: _COMMAND - 1]}…"
    created = (time.time_ns() - nanoseconds(container.record.created_at)) / _NS
    pid = str(container.pid) if status_of(container) in ("running", "paused") else ""
    words, image = _words(container), container.source
    return container.id, image, command, f"{ago(created)} ago", words, pid, container.runtime


def _summary(container: Container) -> dict[str, Any]:
    task = container.task
    ended = task is not None and task.status == Status.STOPPED
    return {
        "id": container.id,
        "image": container.source,
        "command": container.spec.get("process", {}).get("args", []),
        "created": rfc3339(nanoseconds(container.record.created_at)),
        "status": status_of(container),
        "exit_code": task.exit_status if task is not None and ended else None,
        "pid": container.pid if not ended else 0,
        "runtime": container.runtime,
        "labels": dict(container.labels),
    }


def _words(container: Container) -> str:
    task, status = container.task, status_of(container)
    if status == "exited" and task is not None:
        since = (time.time_ns() - nanoseconds(task.exited_at)) / _NS
        return f"Exited ({task.exit_status}) {ago(since)} ago"
    if status in ("running", "paused"):
        up = _up(container.pid)
        words = "Up" if up is None else f"Up {ago(up)}"
        return words if status == "running" else f"Paused ({words})"
    return status.capitalize()


def _up(pid: int) -> float | None:
    """Seconds since a process began, if it is one of this machine."""
    with suppress(OSError, ValueError):
        return procfs.age(pid)
    return None


def _filter(text: str) -> Callable[[Container], bool]:
    """Docker's ``-f``. Raises `InvalidArgument`."""
    key, equals, value = text.partition("=")
    name, has_value, wanted = value.partition("=")
    filters: dict[str, Callable[[Container], bool]] = {
        "id": lambda each: each.id.startswith(value),
        "name": lambda each: value in each.id,
        "status": lambda each: status_of(each) == value,
        "ancestor": lambda each: each.image == value,
        "exited": lambda each: status_of(each) == "exited" and _exit(each) == value,
        "label": lambda each: (
            name in each.labels and (not has_value or each.labels[name] == wanted)
        ),
    }
    if key == "status" and value not in _STATUSES:
        raise InvalidArgument(f"-f {text}: it is one of {', '.join(_STATUSES)}", verbatim=True)
    if not equals or key not in filters:
        raise InvalidArgument(
            f"-f {text}: it is one of {', '.join(f'{each}=' for each in sorted(filters))}",
            verbatim=True,
        )
    return filters[key]


def _exit(container: Container) -> str:
    return str(container.task.exit_status) if container.task is not None else ""


async def inspect(options: Namespace) -> int:
    async with open_client(options) as client:
        found = [_whole(await client.get(name)) for name in options.containers]
    print(json.dumps(found, indent=4))
    return 0


def _whole(container: Container) -> Mapping[str, Any]:
    document = _summary(container)
    record = plain(container.record, opened=True)
    document["snapshot"] = {
        key: record[key] for key in ("snapshotter", "snapshot_key") if key in record
    }
    document["task"] = plain(container.task) if container.task is not None else None
    document["options"] = (record.get("runtime") or {}).get("options")
    document["spec"] = container.spec
    return document


async def logs(options: Namespace) -> int:
    from taskd.cli.events import moment

    since = moment(options.since) if options.since else None
    async with open_client(options) as client:
        container = await client.get(options.container)
        async for entry in container.logs(follow=options.follow, tail=options.tail, since=since):
            stream = sys.stderr if entry.stream == "stderr" else sys.stdout
            stamp = f"{rfc3339(entry.at)} " if options.timestamps else ""
            stream.write(stamp + entry.text)
            if options.follow:
                stream.flush()
    return 0


async def stats(options: Namespace) -> int:
    async with open_client(options) as client:
        before: dict[str, Stats] = {}
        if not options.json:
            # Processor time is a difference.
            before = await _measured(client, options.containers)
            await anyio.sleep(_STATS_SECONDS)
        while True:
            found = await _measured(client, options.containers)
            _show_stats(before, found, as_json=options.json, again=not options.no_stream)
            if options.no_stream:
                return 0
            before = found
            await anyio.sleep(_STATS_SECONDS)


async def _measured(client: Client, names: Sequence[str]) -> dict[str, Stats]:
    """By id, of all that run, or of those that are named. Raises `NotFound`."""
    wanted = {(await client.get(name)).id for name in names}
    found = {each.id: each for each in await client.stats()}
    return {name: found[name] for name in found if not wanted or name in wanted}


def _show_stats(
    before: Mapping[str, Stats], found: Mapping[str, Stats], *, as_json: bool, again: bool
) -> None:
    ordered = sorted(found.values(), key=lambda each: each.id)
    if as_json:
        for each in ordered:
            values = {name: getattr(each, name) for name in Stats.__slots__}
            print(json.dumps(values), flush=True)
        return
    if again and sys.stdout.isatty():
        print("\x1b[H\x1b[J", end="")
    columns = ("CONTAINER ID", "CPU %", "MEM USAGE / LIMIT", "PIDS", "BLOCK I/O")
    show(columns, [_stats_row(before.get(each.id), each) for each in ordered])
    sys.stdout.flush()


def _stats_row(before: Stats | None, now: Stats) -> Sequence[str]:
    share = "--"
    if before is not None and now.at > before.at:
        share = f"{100 * (now.cpu - before.cpu) / (now.at - before.at):.2f}%"
    limit = "--" if now.memory_limit is None else sized(now.memory_limit)
    pids = str(now.pids) if now.pids_limit is None else f"{now.pids}/{now.pids_limit}"
    disk = f"{sized(now.read)} / {sized(now.written)}"
    return now.id, share, f"{sized(now.memory)} / {limit}", pids, disk


async def images(options: Namespace) -> int:
    async with open_client(options) as client:
        found = sorted(await client.images.list(), key=lambda each: each.name)
    if options.quiet:
        for each in found:
            print(each.name)
    elif options.json:
        for each in found:
            print(json.dumps(plain(each)))
    else:
        rows = []
        for each in found:
            target = each.target
            created = (time.time_ns() - nanoseconds(each.created_at)) / _NS
            digest = target.digest.partition(":")[2][:12] if target else ""
            rows.append((each.name, digest, f"{ago(created)} ago"))
        show(("IMAGE", "DIGEST", "CREATED"), rows)
    return 0
