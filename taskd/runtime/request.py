"""What a shim's ``start`` is told on its standard input, and how it is found out what it takes.

Shims of containerd up to 2.2 read the runtime's options; later ones read ``BootstrapParams``, which
has them among its extensions. Both messages have the same numbers and types of fields, so that
nobody is told if it gets the wrong one: containerd 2.3 takes the options' type for the container's
id, 1.6 takes the id for a type and ends, 1.7 to 2.2 go on without options.

Sources: containerd's ``runtime/v2/runc/manager/manager_linux.go`` (1.6, 1.7), ``Command`` and
``ReadRuntimeOptions`` in ``pkg/shim/util.go``, ``pkg/shim/shim.go`` (2.3) and ``compat.go`` (2.4).
"""

from __future__ import annotations

import enum
import os
from pathlib import Path
from typing import NamedTuple

import taskd
from taskd import plugins
from taskd.codec import encode
from taskd.proto.containerd.runtime.bootstrap.v1 import BootstrapParams, Extension, LogLevel
from taskd.types import TypedValue
from taskd.wellknown import to_any

__all__ = ["Form", "Forms", "StartRequest", "is_message"]

_NO_PARAMETERS = b"\x22\x01\xff"
"""A fourth field, which options do not have, so that they skip it.

As a parameter it would be text and is none: so 2.3's shims see that it is options that they read.
"""
_REFUSAL = b"built against the new API"
"""What shims of 2.4 say to options."""
_OLD = ("shim-runc-v1", "shim-runhcs-v1")
"""Shims, by their executables' names, to which containerd, too, gives nothing but options."""


class Form(enum.Enum):
    OPTIONS = enum.auto()
    """The runtime's options, or nothing: what there was before containerd 2.3."""
    PARAMETERS = enum.auto()


class StartRequest(NamedTuple):
    """What a daemon has to say to ``start``."""

    id: str
    namespace: str
    options: TypedValue | None = None
    grpc_address: str = ""
    ttrpc_address: str = ""
    publish_binary: str = ""
    debug: bool = False
    socket_folder: Path | None = None
    """Where the shim is to make its socket; its own choice if None, or if it is an older one."""

    def encode(self, form: Form) -> bytes:
        options = to_any(self.options)
        if form is Form.OPTIONS:
            return encode(options) + _NO_PARAMETERS if options is not None else b""
        return encode(
            BootstrapParams(
                instance_id=self.id,
                namespace=self.namespace,
                log_level=LogLevel.DEBUG if self.debug else LogLevel.INFO,
                containerd_version=taskd.__version__,
                containerd_grpc_address=self.grpc_address,
                containerd_ttrpc_address=self.ttrpc_address,
                containerd_binary=self.publish_binary,
                extensions=[Extension(value=options)] if options is not None else [],
                socket_dir=str(self.socket_folder) if self.socket_folder else None,
            )
        )


class Forms:
    """Which form each executable takes, as far as it has shown."""

    def __init__(self) -> None:
        self._known: dict[tuple[int, ...], Form] = {}

    def of(self, path: Path) -> Form:
        """The form to begin with: the old one if nothing is known, for only that can be refused."""
        if is_own(path):
            return Form.PARAMETERS
        return self._known.get(_identity(path), Form.OPTIONS)

    def refused(self, path: Path, form: Form, output: bytes) -> bool:
        """Whether a ``start`` that failed is to be tried once more, with parameters."""
        return form is Form.OPTIONS and _REFUSAL in output and not _is_old(path)

    def learn(self, path: Path, form: Form, answer: bytes) -> None:
        """Take note of a ``start`` that was successful."""
        if is_message(answer) and not _is_old(path):
            form = Form.PARAMETERS
        if identity := _identity(path):
            self._known[identity] = form


def is_message(answer: bytes) -> bool:
    """Whether ``start`` printed a ``BootstrapResult``, as only those do that read parameters."""
    # Field 1, a varint, comes first; no address begins with a backspace.
    return answer.startswith(b"\x08")


def is_own(path: Path) -> bool:
    """Whether it is the executable of a shim on this very SDK."""
    return path.resolve() in (plugins.executable(name).resolve() for name in plugins.installed())


def _is_old(path: Path) -> bool:
    return any(name in path.name for name in _OLD)


def _identity(path: Path) -> tuple[int, ...]:
    """Tells a file from the one that replaces it in an upgrade; empty if there is none."""
    try:
        found = os.stat(path)  # noqa: PTH116
    except OSError:
        return ()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns
