"""What SQLite knows of activations. Functions that take a connection are parts of a transaction."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from taskd.activations.types import Activation, Active
from taskd.metadata import labels as labels_
from taskd.metadata.database import Row
from taskd.types import Mount

__all__ = ["Record", "all_of", "find", "finish", "insert", "remove"]

Select = Callable[[str, Sequence[str]], Iterable[Row]]
"""Runs a SELECT."""

_SELECT = "SELECT id, namespace, name, labels, lease, done FROM activations"


@dataclass(frozen=True, slots=True)
class Record:
    """`number` is the name of its folder."""

    number: int
    namespace: str
    activation: Activation
    whole: bool
    """It has been made as far as it is to be."""


def find(select: Select, namespace: str, name: str) -> Record | None:
    for row in select(f"{_SELECT} WHERE namespace = ? AND name = ?", (namespace, name)):
        return _record(row)
    return None


def all_of(select: Select, namespace: str) -> Sequence[Record]:
    """Of a namespace, or of all of them if it is empty; by name."""
    rows = select(f"{_SELECT} WHERE ?1 IN ('', namespace) ORDER BY name", (namespace,))
    return [_record(row) for row in rows]


def _record(row: Row) -> Record:
    number, namespace, name, labels, _, done = row
    loaded = labels_.load(labels)
    if not done:
        return Record(number, namespace, Activation(name, labels=loaded), whole=False)
    document = json.loads(done)
    active = tuple(
        Active(_mount(each["mount"]), each["point"], each["at"]) for each in document["active"]
    )
    system = tuple(_mount(each) for each in document["system"])
    return Record(number, namespace, Activation(name, active, system, loaded), whole=True)


def insert(
    connection: sqlite3.Connection, namespace: str, name: str, labels: str, lease: str | None
) -> int:
    """The number of one that is about to be made."""
    cursor = connection.execute(
        "INSERT INTO activations (namespace, name, labels, lease, done) VALUES (?, ?, ?, ?, '')",
        (namespace, name, labels, lease or ""),
    )
    assert cursor.lastrowid is not None
    return cursor.lastrowid


def finish(
    connection: sqlite3.Connection,
    number: int,
    active: Iterable[Active],
    system: Iterable[Mount],
) -> None:
    done = {
        "active": [asdict(each) for each in active],
        "system": [asdict(each) for each in system],
    }
    connection.execute("UPDATE activations SET done = ? WHERE id = ?", (json.dumps(done), number))


def remove(connection: sqlite3.Connection, numbers: Sequence[int]) -> None:
    connection.executemany("DELETE FROM activations WHERE id = ?", [(each,) for each in numbers])


def _mount(document: dict[str, Any]) -> Mount:
    return Mount(**{**document, "options": tuple(document["options"])})
