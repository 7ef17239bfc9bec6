"""Labels of containers that are taskd's own, which its client sets."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

__all__ = ["LOG", "REMOVE", "log_of"]

LOG = "io.taskd.client/log"
"""The file that what it writes is kept in."""

REMOVE = "io.taskd/remove"
"""With any value: it is removed once its task has ended."""


def log_of(labels: Mapping[str, str], namespace: str, container_id: str) -> Path | None:
    """The file that `LOG` names, or None.

    It is read, and removed, with the rights of whoever does it, and clients such as ctr give a
    container its image's labels (`WithImageConfigLabels` in containerd's
    ``client/container_opts.go``). So a file counts only where taskd's client keeps the output of
    this container: ``taskd-logs/NAMESPACE/ID-…/ID-json.log``.
    """
    path = Path(labels.get(LOG, ""))
    match path.parts:
        case (*_, "taskd-logs", space, folder, name) if (
            path.is_absolute()
            and space == namespace
            and folder.startswith(f"{container_id}-")
            and name == f"{container_id}-json.log"
        ):
            return path
    return None
