"""What the journal knows of each process: which steps of its life have been told.

A step may reach taskd twice: from the shim, which sends an event again when nobody has confirmed
it, and from taskd's own calls to that shim. The first one counts. This outlives the daemon, and the
events themselves, which retention may take while a process still runs.

A step may also come too late: a shim that was killed can have left an event in its socket. Once the
end of a task is settled there is nobody to tell the rest, so that of processes unknown by then
nothing is let in.
"""

from __future__ import annotations

import sqlite3
from typing import NamedTuple

from taskd.events.envelope import Envelope
from taskd.proto.containerd.events import (
    TaskCreate,
    TaskDelete,
    TaskExecStarted,
    TaskExit,
    TaskStart,
)
from taskd.wellknown import nanoseconds, unpack

__all__ = [
    "SCHEMA",
    "Process",
    "forgetting",
    "processes",
    "record",
    "retirement",
    "settlement",
    "tasks",
]

SCHEMA = """
    CREATE TABLE processes (
        namespace TEXT NOT NULL,
        container TEXT NOT NULL,
        process TEXT NOT NULL,             -- exec id; empty for the init process
        pid INTEGER NOT NULL,
        created INTEGER NOT NULL DEFAULT 0,  -- when it was recorded; 0: not told
        started INTEGER NOT NULL DEFAULT 0,
        exited INTEGER NOT NULL DEFAULT 0,
        deleted INTEGER NOT NULL DEFAULT 0,
        exit_status INTEGER NOT NULL DEFAULT 0,
        exited_at TEXT NOT NULL DEFAULT '0',  -- nanoseconds, which may be too many for INTEGER
        PRIMARY KEY (namespace, container, process, pid)
    ) WITHOUT ROWID;
"""

KEPT = 600 * 10**9
"""Nanoseconds that a deleted process stays known. A shim gives up sending an event after 15 s."""

_NOBODY = -1
"""Pid of the process that stands for a task of which nothing was told when it ended."""


class Process(NamedTuple):
    """A process of a task that is not deleted, by what has been told of it."""

    id: str
    """Exec id; empty for the init process."""
    pid: int
    created: bool
    started: bool
    exited: bool
    exit_status: int
    exited_at: int


def record(
    connection: sqlite3.Connection, envelope: Envelope, now: int, *, first_hand: bool
) -> bool | None:
    """Note the step of a process's life that an event tells of, at `now`, ns since the epoch.

    None: the event is not of that kind. False: it has been told before, or comes too late.

    `first_hand` events are taskd's own: of such a birth, a process that has been removed already
    under the same pid was another one.
    """
    message = unpack(envelope.event) if envelope.event else None
    process, status, exited_at = "", 0, 0
    match message:
        case TaskCreate():
            step = "created"
        case TaskStart():
            step = "started"
        case TaskExecStarted():
            step, process = "started", message.exec_id
        case TaskExit():
            step, process = "exited", message.id
            status, exited_at = message.exit_status, nanoseconds(message.exited_at)
        case TaskDelete():
            step, process = "deleted", message.id
            status, exited_at = message.exit_status, nanoseconds(message.exited_at)
        case _:
            return None
    if process and process == message.container_id and step != "started":
        process = _named_as_container(connection, envelope.namespace, process, message.pid)
    key = (envelope.namespace, message.container_id, process, message.pid)
    if first_hand and step in ("created", "started"):
        connection.execute(
            "DELETE FROM processes WHERE (namespace, container, process, pid) = (?, ?, ?, ?) "
            "AND deleted",
            key,
        )
    if not first_hand and _is_late(connection, key, envelope.timestamp):
        return False
    done = connection.execute(
        "INSERT INTO processes"  # noqa: S608 - the columns are ours
        f" (namespace, container, process, pid, {step}, exit_status, exited_at)"
        " VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET"
        f" {step} = excluded.{step}, exit_status = excluded.exit_status,"
        f" exited_at = excluded.exited_at WHERE {step} = 0",
        (*key, now, status, str(exited_at)),
    )
    if done.rowcount and step == "deleted" and not process:
        connection.execute(
            "UPDATE processes SET deleted = ?"
            " WHERE namespace = ? AND container = ? AND deleted = 0",
            (now, envelope.namespace, message.container_id),
        )
    return done.rowcount > 0


def _named_as_container(
    connection: sqlite3.Connection, namespace: str, container: str, pid: int
) -> str:
    """Which process an event means that names it by its container's id.

    It is the init process, unless an exec has that id and this pid.
    """
    found = connection.execute(
        "SELECT process FROM processes WHERE (namespace, container, pid) = (?, ?, ?)"
        " AND process IN ('', container) ORDER BY deleted > 0, exited > 0, process DESC LIMIT 1",
        (namespace, container, pid),
    ).fetchone()
    return str(found[0]) if found else ""


def _is_late(connection: sqlite3.Connection, key: tuple[str, str, str, int], happened: int) -> bool:
    """Whether a process is unknown, and its task had ended when something `happened` to it."""
    ended = connection.execute(
        "SELECT 1 FROM processes WHERE namespace = ? AND container = ? AND process = ''"
        " AND deleted > ? LIMIT 1",
        (*key[:2], happened),
    )
    if ended.fetchone() is None:
        return False
    known = connection.execute(
        "SELECT 1 FROM processes WHERE (namespace, container, process, pid) = (?, ?, ?, ?)", key
    )
    return known.fetchone() is None


def processes(connection: sqlite3.Connection, namespace: str, container: str) -> list[Process]:
    """The processes of a task that is not deleted; the init process, if it is known, first."""
    rows = connection.execute(
        "SELECT process, pid, created > 0, started > 0, exited > 0, exit_status, exited_at"
        " FROM processes WHERE namespace = ? AND container = ? AND deleted = 0"
        " ORDER BY process, pid",
        (namespace, container),
    )
    return [
        Process(id, pid, bool(created), bool(started), bool(exited), status, int(exited_at))
        for id, pid, created, started, exited, status, exited_at in rows  # noqa: A001
    ]


def tasks(connection: sqlite3.Connection) -> list[tuple[str, str]]:
    """Namespace and container of every task that was created and is not deleted."""
    rows = connection.execute(
        "SELECT DISTINCT namespace, container FROM processes"
        " WHERE process = '' AND created AND NOT deleted"
    )
    return rows.fetchall()


def retirement(
    namespace: str, container: str, exec_id: str, now: int
) -> tuple[str, tuple[object, ...]]:
    """The statement that an exec has been removed, and its values."""
    return (
        "UPDATE processes SET deleted = ?"
        " WHERE namespace = ? AND container = ? AND process = ? AND deleted = 0",
        (now, namespace, container, exec_id),
    )


def settlement(namespace: str, container: str, now: int) -> tuple[str, tuple[object, ...]]:
    """The statement that a task has ended of which nothing was told, and its values."""
    return (
        "INSERT INTO processes (namespace, container, process, pid, deleted)"
        " VALUES (?, ?, '', ?, ?)"
        " ON CONFLICT DO UPDATE SET deleted = excluded.deleted",
        (namespace, container, _NOBODY, now),
    )


def forgetting(now: int) -> tuple[str, tuple[object, ...]]:
    """The statement that removes what is known of tasks deleted long before `now`, and its values.

    `now` is in nanoseconds since the epoch.
    """
    return (
        "DELETE FROM processes WHERE (deleted OR NOT created) AND max(started, exited, deleted) < ?"
        " AND (deleted OR (namespace, container) NOT IN"
        " (SELECT namespace, container FROM processes WHERE created AND NOT deleted))",
        (now - KEPT,),
    )
