"""What is garbage: all that cannot be reached from what is kept for its own sake.

Source: containerd's ``metadata/gc.go``. What refers to what is known from records (a snapshot to
its parent, an image to its content, a container to its snapshot) and from labels; a label of the
one that is referred to (``bref``) says the same the other way round.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from typing import NamedTuple

__all__ = ["Node", "garbage"]


class Node(NamedTuple):
    """`kind` is ``content``, ``snapshots/<snapshotter>``, as leases have it, or ``mounts``."""

    namespace: str
    kind: str
    key: str


_PREFIX = "containerd.io/gc"


def _named(label: str) -> str:
    """Whether a label is of that kind: anything may follow after a dot or a slash."""
    return f"(name = '{_PREFIX}.{label}' OR name GLOB '{_PREFIX}.{label}[./]*')"


def _of_snapshot(label: str) -> str:
    return f"name GLOB '{_PREFIX}.{label}.snapshot.*'"


def _snapshots(label: str) -> str:
    """The kind that such a label names: what follows a slash after it is of no meaning."""
    rest = f"substr(name, {len(f'{_PREFIX}.{label}.snapshot.') + 1})"
    return f"'snapshots/' || substr({rest}, 1, instr({rest} || '/', '/') - 1)"


# The query planner must not begin with all that refers to something, hence CROSS JOIN; nor does
# it search a recursive table by an index, hence EXCEPT.
_GARBAGE = f"""
    WITH RECURSIVE labelled (namespace, kind, key, name, value) AS (
        SELECT namespace, 'content', digest, label.key, label.value
            FROM blobs, json_each(labels) AS label WHERE label.key GLOB '{_PREFIX}.*'
        UNION ALL
        SELECT namespace, 'snapshots/' || snapshotter, snapshots.name, label.key, label.value
            FROM snapshots, json_each(labels) AS label WHERE label.key GLOB '{_PREFIX}.*'
        UNION ALL
        SELECT namespace, 'images', images.name, label.key, label.value
            FROM images, json_each(labels) AS label WHERE label.key GLOB '{_PREFIX}.*'
        UNION ALL
        SELECT namespace, 'containers', containers.id, label.key, label.value
            FROM containers, json_each(labels) AS label WHERE label.key GLOB '{_PREFIX}.*'
        UNION ALL
        SELECT namespace, 'sandboxes', sandboxes.id, label.key, label.value
            FROM sandboxes, json_each(labels) AS label WHERE label.key GLOB '{_PREFIX}.*'
        UNION ALL
        SELECT namespace, 'mounts', activations.name, label.key, label.value
            FROM activations, json_each(labels) AS label WHERE label.key GLOB '{_PREFIX}.bref.*'
    ),
    refers (namespace, kind, key, to_kind, to_key, by_label) AS MATERIALIZED (
        SELECT namespace, kind, key, 'content', value, 1 FROM labelled
            WHERE {_named("ref.content")}
        UNION ALL
        SELECT namespace, kind, key, {_snapshots("ref")}, value, 1 FROM labelled
            WHERE {_of_snapshot("ref")}
        UNION ALL
        SELECT namespace, kind, key, 'mounts', value, 1 FROM labelled
            WHERE {_named("ref.mount")}
        UNION ALL
        SELECT namespace, 'content', value, kind, key, 1 FROM labelled
            WHERE {_named("bref.content")}
        UNION ALL
        SELECT namespace, {_snapshots("bref")}, value, kind, key, 1 FROM labelled
            WHERE {_of_snapshot("bref")}
        UNION ALL
        SELECT namespace, 'images', value, kind, key, 1 FROM labelled
            WHERE {_named("bref.image")}
        UNION ALL
        SELECT namespace, 'containers', value, kind, key, 1 FROM labelled
            WHERE {_named("bref.container")}
        UNION ALL
        SELECT namespace, 'images', name, 'content', digest, 0 FROM images
        UNION ALL
        SELECT namespace, 'containers', id, 'snapshots/' || snapshotter, snapshot_key, 0
            FROM containers WHERE snapshotter <> ''
        UNION ALL
        SELECT child.namespace, 'snapshots/' || child.snapshotter, child.name,
                'snapshots/' || above.snapshotter, above.name, 0
            FROM snapshots AS child JOIN snapshots AS above ON above.id = child.parent
    ),
    marked (namespace, kind, key, flat) AS (
        SELECT namespace, 'images', name, 0 FROM images
        UNION
        SELECT namespace, 'containers', id, 0 FROM containers
        UNION
        SELECT namespace, 'sandboxes', id, 0 FROM sandboxes
        UNION
        SELECT resource.namespace, resource.type, resource.id,
                json_extract(lease.labels, '$."{_PREFIX}.flat"') IS NOT NULL
            FROM lease_resources AS resource JOIN leases AS lease
            ON lease.namespace = resource.namespace AND lease.id = resource.lease
        UNION
        SELECT activation.namespace, 'mounts', activation.name, 0
            FROM activations AS activation JOIN leases AS lease
            ON lease.namespace = activation.namespace AND lease.id = activation.lease
        UNION
        SELECT namespace, 'content', expected, 0 FROM ingests WHERE expected <> ''
        UNION
        SELECT namespace, kind, key, 0 FROM labelled WHERE name = '{_PREFIX}.root'
        UNION
        SELECT refers.namespace, refers.to_kind, refers.to_key, marked.flat
            FROM marked
            CROSS JOIN refers ON refers.namespace = marked.namespace
            AND refers.kind = marked.kind AND refers.key = marked.key
            WHERE NOT (marked.flat AND refers.by_label)
    )
    SELECT namespace, 'content', digest FROM blobs
    UNION ALL
    SELECT namespace, 'snapshots/' || snapshotter, name FROM snapshots
    UNION ALL
    SELECT namespace, 'mounts', name FROM activations
    EXCEPT
    SELECT namespace, kind, key FROM marked
"""  # noqa: S608 - constants only


def garbage(connection: sqlite3.Connection) -> Sequence[Node]:
    """What may go, as a part of a transaction."""
    return [Node(*row) for row in connection.execute(_GARBAGE)]
