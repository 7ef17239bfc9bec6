"""What taskd's client leaves for the daemon: labels of containers, and folders of their streams."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

__all__ = ["LOG", "REMOVE", "STREAMS", "is_to_go", "log_of"]

LOG = "io.taskd.client/log"
"""The file that what it writes is kept in."""

REMOVE = "io.taskd/remove"
"""With the container's id as value: it is removed once its task has ended."""

STREAMS = "taskd-io-"
"""What the name of a folder with a container's FIFOs begins with."""


def is_to_go(labels: Mapping[str, str], container_id: str) -> bool:
    """Whether `REMOVE` is there for this container, and not for all that have an image's labels."""
    return labels.get(REMOVE) == container_id


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
