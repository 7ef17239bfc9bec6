"""The shim that is checked: its executable, called as a daemon calls it.

Source: containerd's ``runtime/v2/shim/util.go`` (command line and environment) and
``runtime/v2/binary.go`` (who calls it where).
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from taskd.check import container
from taskd.check.programs import SLEEP, SPAWN, Own, Program
from taskd.codec import encode
from taskd.errors import InvalidArgument, Unknown
from taskd.proto.containerd.runc.v1 import Options
from taskd.proto.google.protobuf import Any
from taskd.runtime import binary, spawn
from taskd.runtime.request import Forms
from taskd.types import TypedValue
from taskd.wellknown import pack, to_any

__all__ = ["Subject", "find", "runtime_options"]


@dataclass(frozen=True)
class Subject:
    """A shim's executable, and how its containers are to be made."""

    path: Path
    options: Options | None = field(default_factory=Options)
    """The runtime's options, of containerd's type; None for a shim that takes others."""
    rootfs: Path = Path("/")
    """Root filesystem of the containers, which get it read-only."""
    programs: Own | None = None
    """What its containers run in place of ``/bin/sh``."""
    debug: bool = False
    """Whether shims are to log more."""
    timeout: float = 30.0
    """Seconds that one check may take."""
    forms: Forms = field(default_factory=Forms, compare=False)
    """What it has shown that it reads when it is started."""

    @property
    def root(self) -> str:
        """The root filesystem in a specification: its mount in the bundle, if there is one."""
        return "rootfs" if container.rootfs_mounts(self.rootfs) else str(self.rootfs)

    def command(self, wanted: Program | Sequence[str]) -> list[str]:
        """What a container is to run. Raises `NotApplicable` for a program that there is not."""
        return wanted.command(self.programs) if isinstance(wanted, Program) else list(wanted)

    def several(self, processes: int) -> Program:
        """What has so many processes beside its own, where that can be had."""
        alone = self.programs is not None and SPAWN.name not in self.programs
        return SLEEP if alone else SPAWN(processes)

    @property
    def any_options(self) -> Any | None:
        return to_any(self.typed_options)

    async def run(
        self, arguments: Sequence[str], *, cwd: Path, env: Mapping[str, str], stdin: bytes = b""
    ) -> spawn.Completed:
        """Run the executable to its end. Raises OSError if it cannot be started."""
        inherited = {name: os.environ[name] for name in os.environ if name not in _NOT_INHERITED}
        return await spawn.run(
            [str(self.path), *arguments], cwd=cwd, env=inherited | dict(env), stdin=stdin
        )

    @property
    def typed_options(self) -> TypedValue | None:
        return pack(self.options) if self.options is not None else None

    def options_input(self) -> bytes:
        """The options alone, as daemons before containerd 2.3 write them."""
        options = self.any_options
        return encode(options) if options is not None else b""


_NOT_INHERITED = ("MAX_SHIM_VERSION", "TTRPC_ADDRESS", "GRPC_ADDRESS", "NAMESPACE")


def find(name: str) -> Path:
    """The executable of that path, of that name on PATH, or of the runtime of that name.

    Raises `InvalidArgument`.
    """
    if "/" in name:
        path = Path(name).absolute()
        if not os.access(path, os.X_OK) or path.is_dir():
            raise InvalidArgument(f"{name} is no executable", verbatim=True)
        return path
    on_path = shutil.which(name)
    if on_path is not None:
        return Path(on_path).absolute()
    try:
        return binary.resolve(name)
    except Unknown as exc:
        raise InvalidArgument(str(exc), verbatim=True) from exc


def runtime_options(given: Sequence[str]) -> Options:
    """Options of the form ``BinaryName=crun``, named as in containerd's configuration file.

    Raises `InvalidArgument` for one that there is not.
    """
    options = Options()
    names = {name.replace("_", ""): name for name in vars(options) if not name.startswith("_")}
    for each in given:
        key, equals, text = each.partition("=")
        name = names.get(key.lower().replace("_", ""))
        if name is None or not equals:
            raise InvalidArgument(f"no option of containerd.runc.v1.Options: {each}", verbatim=True)
        try:
            setattr(options, name, _parsed(text, type(getattr(options, name))))
        except ValueError:
            raise InvalidArgument(f"option {key}: {text}", verbatim=True) from None
    return options


def _parsed(text: str, kind: type) -> str | int | bool:
    if kind is bool:
        if text.lower() not in ("true", "false"):
            raise ValueError(text)
        return text.lower() == "true"
    return int(text) if kind is int else text
