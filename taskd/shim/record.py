"""What a shim must know of a container, on disk in its bundle, for one that goes on with it.

It is written before a call is answered, in one step, and a file that is not whole is not taken.
What the daemon keeps for it besides, descriptors, is in `taskd.shim.keeper`.
"""

from __future__ import annotations

import base64
import json
import os
import zlib
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from taskd.shim.leftovers import RECORD
from taskd.shim.process import Process, Status
from taskd.shim.sandbox import Sandbox, Wanted
from taskd.shim.stdio import Stdio
from taskd.types import TypedValue

__all__ = [
    "ProcessRecord",
    "Record",
    "SandboxRecord",
    "Torn",
    "forget",
    "options",
    "read",
    "read_sandbox",
    "write",
]

_FORM = 1
"""Another one is not understood: a later version's, which this one is not to go on with."""


class Torn(Exception):
    """There is no record, or it is not whole, or of another form."""


@dataclass(frozen=True, slots=True)
class ProcessRecord:
    id: str
    """The exec's id; empty for the init process."""
    spec: dict[str, Any]
    """Of an exec; the init process's is in the bundle."""
    stdio: Stdio
    pid: int
    started: int
    """When, as the kernel counts: tells it from another that has its pid."""
    status: Status
    doing: str
    """What was under way: it is not known whether that came about."""
    copied: bool
    """Its streams go through the shim: without what was kept of them they are lost."""
    exit_status: int
    exited_at: int

    @classmethod
    def of(cls, process: Process) -> ProcessRecord:
        return cls(
            process.id,
            dict(process.spec) if process.id else {},
            process.stdio,
            process.pid,
            process.started,
            process.status,
            process.doing,
            process.copied,
            process.exit_status,
            process.exited_at,
        )

    def restored(self, spec: Mapping[str, Any]) -> Process:
        """The process, as another shim had it."""
        process = Process(self.id, spec, self.stdio)
        process.pid, process.started = self.pid, self.started
        process.status, process.doing = self.status, self.doing
        process.exit_status, process.exited_at = self.exit_status, self.exited_at
        return process


@dataclass(frozen=True, slots=True)
class SandboxRecord:
    id: str
    options: TypedValue | None
    netns: str
    annotations: dict[str, str]
    pid: int
    own: bool
    """That pid is the shim's."""
    created_at: int
    begun: bool
    ending: bool
    ended: bool
    exit_status: int
    exited_at: int

    @classmethod
    def of(cls, sandbox: Sandbox) -> SandboxRecord:
        wanted = sandbox.wanted
        return cls(
            sandbox.id,
            wanted.options,
            wanted.netns,
            dict(wanted.annotations),
            sandbox.pid,
            sandbox.pid == os.getpid(),
            sandbox.created_at,
            sandbox.begun,
            sandbox.ending,
            sandbox.ended.is_set(),
            sandbox.exit_status,
            sandbox.exited_at,
        )

    @property
    def wanted(self) -> Wanted:
        return Wanted(self.options, self.netns, self.annotations)

    def restore(self, sandbox: Sandbox) -> None:
        """Have it be as another shim had it."""
        sandbox.pid = os.getpid() if self.own else self.pid
        sandbox.created_at = self.created_at
        sandbox.begun, sandbox.ending = self.begun, self.ending
        sandbox.exit_status, sandbox.exited_at = self.exit_status, self.exited_at
        if self.ended:
            sandbox.ended.set()


@dataclass(frozen=True, slots=True)
class Record:
    id: str
    namespace: str
    options: TypedValue | None
    checkpoint: str
    mounted: bool
    """The root filesystem was mounted for it."""
    processes: tuple[ProcessRecord, ...]
    """The init process first."""


def write(bundle: Path, record: Record | SandboxRecord) -> None:
    """Replace what there was. Raises OSError; then there is none."""
    text = json.dumps({"form": _FORM, **_members(record)}).encode()
    made = bundle / f".{RECORD}"
    try:
        made.touch(0o600)  # the processes' environments are nobody else's affair
        made.write_bytes(b"%08x\n%s" % (zlib.crc32(text), text))
        made.replace(bundle / RECORD)
    except OSError:
        # What is there is no longer true.
        forget(bundle)
        raise


def _members(value: Any) -> dict[str, Any]:
    """`asdict` would copy what does not change."""
    return {name: _plain(getattr(value, name)) for name in value.__slots__}


def _plain(value: Any) -> Any:
    """What JSON has for a member of a record. It would take a `TypedValue` for a list."""
    match value:
        case TypedValue():
            return [value.type_url, base64.b64encode(value.value).decode()]
        case Stdio():
            return _members(value)
        case tuple():
            return [_members(each) for each in value]
    return value


def forget(bundle: Path) -> None:
    """See to it that nobody goes on with the container."""
    with suppress(OSError):
        (bundle / RECORD).unlink(missing_ok=True)


def read(bundle: Path) -> Record:
    """Of a container. Raises `Torn`."""
    document = _read(bundle)
    try:
        document["processes"] = tuple(_processes(document["processes"]))
        return Record(**document)
    except (ValueError, TypeError, KeyError) as exc:
        raise Torn(f"there is no record: {exc}") from exc


def read_sandbox(bundle: Path) -> SandboxRecord:
    """Raises `Torn`."""
    document = _read(bundle)
    try:
        return SandboxRecord(**document)
    except TypeError as exc:
        raise Torn(f"there is no record: {exc}") from exc


def options(bundle: Path) -> TypedValue | None:
    """Of the runtime, whatever the bundle is one of. Raises `Torn`."""
    found: TypedValue | None = _read(bundle)["options"]
    return found


def _read(bundle: Path) -> dict[str, Any]:
    try:
        mark, _, text = (bundle / RECORD).read_bytes().partition(b"\n")
        if int(mark, 16) != zlib.crc32(text):
            raise Torn("the record is not whole")
        document: dict[str, Any] = json.loads(text)
        if (form := document.pop("form")) != _FORM:
            raise Torn(f"the record is of form {form}")
        if (given := document["options"]) is not None:
            document["options"] = TypedValue(given[0], base64.b64decode(given[1]))
    except (OSError, ValueError, TypeError, KeyError) as exc:
        raise Torn(f"there is no record: {exc}") from exc
    return document


def _processes(found: Iterable[dict[str, Any]]) -> Iterable[ProcessRecord]:
    for each in found:
        yield ProcessRecord(
            **{**each, "stdio": Stdio(**each["stdio"]), "status": Status(each["status"])}
        )
