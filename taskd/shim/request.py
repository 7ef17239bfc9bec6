"""What a daemon tells a shim on the standard input of ``start``, in either of its two forms.

Up to containerd 2.2 it is the runtime's options, or nothing; from 2.3 on it is ``BootstrapParams``,
among whose extensions the options are. As both messages have the same numbers and types of fields,
the one is easily taken for the other: parameters are only those that name the very container that
the command line names. Source: containerd's ``pkg/shim/compat.go`` (2.4).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from taskd.codec import MalformedMessage, decode
from taskd.proto.containerd.runtime.bootstrap.v1 import BootstrapParams, LogLevel
from taskd.proto.google.protobuf import Any

__all__ = ["StartRequest"]


@dataclass(frozen=True, slots=True)
class StartRequest:
    options: tuple[Any, ...] = ()
    """The runtime's options, of whatever type."""
    params: BootstrapParams = field(default_factory=BootstrapParams)
    """Empty if the daemon is older than they are."""

    @classmethod
    def parse(cls, given: bytes, id: str, namespace: str) -> StartRequest:  # noqa: A002
        """Understand what was read for the container of that id and namespace.

        What is neither form counts as nothing, as it does for containerd 1.7.
        """
        try:
            params = decode(BootstrapParams, given)
        except MalformedMessage:
            params = BootstrapParams()
        if given and (params.instance_id, params.namespace) == (id, namespace):
            found = (extension.value for extension in params.extensions)
            return cls(tuple(value for value in found if value is not None), params)
        try:
            options = decode(Any, given)
        except MalformedMessage:
            return cls()
        return cls((options,) if options.type_url else ())

    @property
    def takes_message(self) -> bool:
        """Whether the daemon reads a ``BootstrapResult`` in answer."""
        return bool(self.params.instance_id)

    @property
    def debug(self) -> bool:
        return self.params.log_level <= LogLevel.DEBUG

    @property
    def socket_folder(self) -> Path | None:
        """Where the daemon wants the shim's socket, if it says so."""
        return Path(self.params.socket_dir) if self.params.socket_dir else None

    def of_type(self, name: str) -> bytes | None:
        """The options of the message type `name`, serialised."""
        found = (each.value for each in self.options if each.type_url.rpartition("/")[2] == name)
        return next(found, None)
