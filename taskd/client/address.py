"""Where a daemon's socket is, and which namespace is meant."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path

from taskd import identifiers
from taskd.errors import InvalidArgument, Unavailable

__all__ = ["find", "namespace"]


def find(address: Path | str | None = None, environ: Mapping[str, str] = os.environ) -> Path:
    """The socket at `address`, or the first usual one on which somebody listens.

    They are ``TASKD_ADDRESS``, ``CONTAINERD_ADDRESS``, and where taskd and containerd serve by
    themselves. What is named is taken as it is. Raises `Unavailable`, which says what was tried,
    and `InvalidArgument` for what is no path.
    """
    if address is not None:
        return _path(str(address))
    for name in ("TASKD_ADDRESS", "CONTAINERD_ADDRESS"):
        if given := environ.get(name):
            return _path(given)
    tried = []
    for path in _usual(environ):
        with socket.socket(socket.AF_UNIX) as probe:
            probe.settimeout(1)
            try:
                probe.connect(str(path))
            except OSError as exc:
                tried.append(f"{path} ({(exc.strerror or str(exc)).lower()})")
            else:
                return path
    raise Unavailable(
        f"no daemon found: neither TASKD_ADDRESS nor CONTAINERD_ADDRESS is set, and nobody "
        f"listens on {', '.join(tried)}; start one with `taskd serve`",
        verbatim=True,
    )


def _path(text: str) -> Path:
    scheme, separator, rest = text.partition("://")
    if separator and scheme != "unix":
        raise InvalidArgument(f"address {text}: only unix sockets are spoken to", verbatim=True)
    return Path(rest if separator else text).absolute()


def _usual(environ: Mapping[str, str]) -> Iterator[Path]:
    if (runtime := environ.get("XDG_RUNTIME_DIR")) and os.geteuid() != 0:
        yield Path(runtime, "taskd/taskd.sock")
    yield Path("/run/taskd/taskd.sock")
    yield Path("/run/containerd/containerd.sock")


def namespace(given: str | None = None, environ: Mapping[str, str] = os.environ) -> str:
    """The one given, or ``CONTAINERD_NAMESPACE``, as ctr and nerdctl have it, or ``default``.

    Raises `InvalidArgument` for what cannot be the name of one.
    """
    name = given or environ.get("CONTAINERD_NAMESPACE") or "default"
    try:
        identifiers.validate(name)
    except InvalidArgument as exc:
        raise exc.within("namespace") from None
    return name
