"""A shim's executable: where it is, how it is called, what it answers.

Sources: containerd's ``runtime/v2/shim/util.go`` (command line and environment),
``runtime/v2/manager.go`` (look-up), ``core/runtime/v2/shim.go`` (the answer's three forms).
"""

from __future__ import annotations

import json
import os
import shutil
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import taskd
from taskd import plugins, shim_sockets, slots
from taskd.codec import MalformedMessage, decode
from taskd.errors import TaskdError, Unimplemented, Unknown
from taskd.printable import printable
from taskd.proto.containerd.runtime.bootstrap.v1 import BootstrapResult
from taskd.proto.containerd.task.v2 import DeleteResponse
from taskd.runtime import info, spawn
from taskd.runtime.bundle import Bundle
from taskd.runtime.request import Form, Forms, StartRequest, is_message, is_own
from taskd.runtime.types import CreateOptions, Exit
from taskd.runtime.warm import Warm
from taskd.types import TypedValue
from taskd.wellknown import from_any, nanoseconds

__all__ = [
    "NEWEST_VERSION",
    "Bootstrap",
    "Daemon",
    "ShimBinary",
    "parse_bootstrap",
    "resolve",
    "resolve_program",
    "usual_socket",
    "version",
]

NEWEST_VERSION = 3
"""The newest bootstrap version, which is that of the task API the shim serves."""
_SHOWN = 200
"""Characters of a shim's answer that an error quotes."""


class Daemon(NamedTuple):
    """What shims are told of the daemon."""

    address: str
    """Its gRPC socket."""
    ttrpc_address: str
    """Its ttrpc socket, where shims send their events."""
    publish_binary: str
    """What an older shim executes to publish an event: ``taskd``, with containerd's arguments."""
    debug: bool = False
    store: str = ""
    """Where shims have their descriptors kept, if they are to."""


@dataclass(frozen=True, slots=True)
class Bootstrap:
    """Where a running shim listens and what it speaks there."""

    address: str
    protocol: str = "ttrpc"
    version: int = 2
    group: int = field(default=0, compare=False)
    """The process group of ``start``, in which the shim may still be; 0 if that is not known."""

    @property
    def socket(self) -> Path | None:
        """Its place in the file system, if it has one."""
        path = self.address.removeprefix("unix://")
        return Path(path) if path.startswith("/") else None

    def to_json(self) -> str:
        """The form in which containerd 1.7 and later keep it in ``bootstrap.json``."""
        return json.dumps(
            {"version": self.version, "address": self.address, "protocol": self.protocol}
        )

    @classmethod
    def from_json(cls, text: bytes) -> Bootstrap:
        """Raises ValueError, whatever the document is."""
        try:
            document = json.loads(text)
            values = document.get("address", ""), document.get("protocol", ""), document["version"]
        except (AttributeError, TypeError, KeyError, RecursionError) as exc:
            raise ValueError("no bootstrap parameters") from exc
        match values:
            case str(address), str(protocol), int(version) if is_address(address):
                return cls(address, protocol, version)
        raise ValueError("no bootstrap parameters")


def is_address(text: str) -> bool:
    """Whether a socket's address can read so: without control characters and what is no text.

    But for the NUL with which the name of an abstract socket begins.
    """
    name = text.removeprefix("unix://").removeprefix("\0")
    return name.isprintable() or not any(
        unicodedata.category(each) in ("Cc", "Cs") for each in name
    )


async def version(path: Path) -> str:
    """Version of taskd that a shim on its SDK is of; empty if it does not tell.

    Raises `Unknown` if it cannot be run.
    """
    if is_own(path):
        return taskd.__version__
    try:
        done = await spawn.run([str(path), "-v"], cwd=Path("/"), env=os.environ)
    except OSError as exc:
        raise Unknown(f"fork/exec {path}: {(exc.strerror or str(exc)).lower()}") from exc
    if done.returncode:
        words = done.stderr.decode(errors="replace").strip()
        raise Unknown(f"{path} -v: {words}: {info.exit_text(done.returncode)}")
    for line in done.stdout.decode(errors="replace").splitlines():
        name, _, text = line.strip().partition(":")
        if name == "Version":
            return text.strip()
    return ""


def usual_socket(daemon_address: str, bundle: Bundle) -> Path:
    """Where a shim made with containerd's library listens, unless it shares another one's socket.

    Source: ``SocketAddress`` in containerd's ``runtime/v2/shim/util_unix.go``.
    """
    name = f"{daemon_address}/{bundle.namespace}/{bundle.id}"
    return shim_sockets.path(shim_sockets.folder(bundle.path), name)


def parse_bootstrap(answer: bytes) -> Bootstrap:
    """Understand what a shim's ``start`` printed.

    A bare address (containerd 1.6), JSON (1.7, 2.x) or a ``BootstrapResult`` (2.3). Raises
    `Unimplemented` for a version newer than we speak, `Unknown` for what is no address.
    """
    text = answer.strip()
    if not text:
        raise Unknown("the shim printed no address")
    bootstrap = _from_json(text) or _from_message(answer) or Bootstrap(_decoded(text))
    if bootstrap.version > NEWEST_VERSION:
        raise Unimplemented(f"unsupported shim version ({bootstrap.version})")
    if not bootstrap.address:
        raise Unknown("the shim printed no address")
    if not is_address(bootstrap.address):
        raise Unknown(f"the shim printed no address: {printable(bootstrap.address[:_SHOWN])}")
    return bootstrap


def _decoded(text: bytes) -> str:
    try:
        return text.decode()
    except UnicodeDecodeError:
        raise Unknown(f"the shim printed what is no text: {text[:_SHOWN]!r}") from None


def _from_json(text: bytes) -> Bootstrap | None:
    try:
        bootstrap = Bootstrap.from_json(text)
        return bootstrap if bootstrap.version >= 2 else None
    except ValueError:
        return None


def _from_message(answer: bytes) -> Bootstrap | None:
    if not is_message(answer):
        return None
    try:
        message = decode(BootstrapResult, answer)
    except MalformedMessage:
        return None
    return Bootstrap(message.address, message.protocol, message.version)


def resolve(runtime: str) -> Path:
    """Find the executable of `runtime`, a name such as ``io.containerd.runc.v2`` or a path.

    Raises `Unknown` if the name is malformed or there is no such executable.
    """
    if not runtime:
        raise Unknown("no runtime name")
    if runtime.startswith("/"):
        path = Path(runtime)
        if not path.exists():
            raise Unknown(f"invalid custom binary path: stat {path}: no such file or directory")
        return path
    if not runtime.startswith("io.containerd.") and runtime in plugins.installed():
        return plugins.executable(runtime)
    parts = runtime.split(".")
    if len(parts) < 2 or not parts[0] or "/" in runtime:
        raise Unknown(
            f"invalid runtime name {runtime}, correct runtime name should be either format like "
            "`io.containerd.runc.v2` or a full path to the binary"
        )
    return resolve_program(runtime, f"containerd-shim-{parts[-2]}-{parts[-1]}")


def resolve_program(runtime: str, name: str) -> Path:
    """Find the program `name` of `runtime` on PATH. Raises `Unknown` if it is not there."""
    found = shutil.which(name)
    if found is None:
        raise Unknown(f'runtime "{runtime}" binary not installed "{name}": file does not exist')
    return Path(found).absolute()


@dataclass(frozen=True, slots=True)
class ShimBinary:
    """One shim executable, called for one bundle."""

    path: Path
    bundle: Bundle
    daemon: Daemon
    warm: Warm | None = None
    """What starts shims in Python."""
    forms: Forms = field(default_factory=Forms)
    """What is known of what executables read."""

    @property
    def deletes_after_shutdown(self) -> bool:
        """``delete`` is run even after a shim that has ended well, as containerd does.

        A shim on taskd's SDK leaves nothing for it to do.
        """
        return not self._is_warm()

    async def start(self, options: CreateOptions, group: str = "") -> Bootstrap:
        """Run ``start``, which leaves the shim running and prints where it listens.

        Shims on taskd's SDK have one process for all of a `group`.

        Raises `Unknown` with the shim's own words if it fails.
        """
        request = StartRequest(
            self.bundle.id,
            self.bundle.namespace,
            options.options,
            self.daemon.address,
            self.daemon.ttrpc_address,
            self.daemon.publish_binary,
            self.daemon.debug,
        )
        form = self.forms.of(self.path)
        done = await self._leave("start", request.encode(form), group)
        if done.returncode and self.forms.refused(self.path, form, done.stdout):
            form = Form.PARAMETERS
            done = await self._leave("start", request.encode(form), group)
        bootstrap = _left(done)
        self.forms.learn(self.path, form, done.stdout)
        return bootstrap

    async def adopt(self, bundles: Iterable[Bundle], group: str = "") -> Bootstrap:
        """Run ``adopt``, which leaves a shim running that goes on where one has died.

        It is taskd's own: only who has written a record of a container into its bundle knows it.
        Raises `Unknown` with the shim's own words if it fails.
        """
        given = {"bundles": [str(bundle.path) for bundle in bundles]}
        return _left(await self._leave("adopt", json.dumps(given).encode(), group))

    async def _leave(self, action: str, given: bytes, group: str) -> spawn.Completed:
        """Have a process left behind, of that group."""
        flags = ["-id", self.bundle.id, *(["-debug"] if self.daemon.debug else []), action]
        more = {"TASKD_SHIM_GROUP": group} if group else {}
        return await self._run(flags, more, stdin=given, merge=True)

    async def features(self, options: TypedValue | None) -> TypedValue | None:
        """What the runtime with these `options` can do, as ``-info`` tells it, if it does.

        Raises `Unknown` with the shim's own words if it fails.
        """
        try:
            told = await info.ask(self.path, options, self._ask)
        except TaskdError as exc:
            raise exc.within("runtime info") from None
        return from_any(told.features)

    async def _ask(self, command: Sequence[str], given: bytes) -> spawn.Completed:
        return await self._call(list(command), stdin=given)

    async def delete(self) -> Exit:
        """Run ``delete``, which cleans up after a shim that can no longer be asked.

        Returns the exit that the shim reports. Raises `Unknown` with its own words if it fails.
        """
        flags = ["-id", self.bundle.id, "-bundle", str(self.bundle.path), "delete"]
        # It has a deadline, and takes no longer without the helper than that takes to begin.
        done = await self._run(flags, waits=False)
        if done.returncode:
            words = done.stderr.decode(errors="replace").strip()
            raise Unknown(f"{words}: {info.exit_text(done.returncode)}")
        try:
            response = decode(DeleteResponse, done.stdout)
        except MalformedMessage as exc:
            raise Unknown(f"the shim's answer to delete: {exc}") from exc
        return Exit(response.pid, response.exit_status, nanoseconds(response.exited_at))

    async def _run(
        self,
        flags: list[str],
        more: Mapping[str, str] | None = None,
        *,
        stdin: bytes = b"",
        merge: bool = False,
        waits: bool = True,
    ) -> spawn.Completed:
        command = [
            str(self.path),
            *("-namespace", self.bundle.namespace),
            *("-address", self.daemon.address),
            *("-publish-binary", self.daemon.publish_binary),
            *flags,
        ]
        return await self._call(command, more, stdin=stdin, merge=merge, waits=waits)

    async def _call(
        self,
        command: list[str],
        more: Mapping[str, str] | None = None,
        *,
        stdin: bytes = b"",
        merge: bool = False,
        waits: bool = True,
    ) -> spawn.Completed:
        """`more` is for its environment; `waits` for the helper, if it has not begun."""
        cwd, more = self.bundle.path, {**self._environment(), **(more or {})}
        try:
            warm = self.warm
            if warm is not None and (
                await warm.takes(self.path) if waits else warm.knows(self.path)
            ):
                # It may be gone just now, in the middle of a call, too, which can be made again.
                with suppress(ConnectionError):
                    return await warm.run(command, cwd=cwd, env=more, stdin=stdin, merge=merge)
            env = os.environ | more
            return await spawn.run(command, cwd=cwd, env=env, stdin=stdin, merge=merge)
        except OSError as exc:
            reason = (exc.strerror or str(exc)).lower()
            raise Unknown(f": fork/exec {self.path}: {reason}") from exc  # it printed nothing

    def _is_warm(self) -> bool:
        return self.warm is not None and self.warm.knows(self.path)

    def _environment(self) -> dict[str, str]:
        return {
            "GOMAXPROCS": "2",
            "MAX_SHIM_VERSION": "2",
            "TTRPC_ADDRESS": self.daemon.ttrpc_address,
            "GRPC_ADDRESS": self.daemon.address,
            "NAMESPACE": self.bundle.namespace,
            **({slots.ADDRESS: self.daemon.store} if self.daemon.store else {}),
        }


def _left(done: spawn.Completed) -> Bootstrap:
    """What has been left behind, as the command tells. Raises `Unknown` with its words."""
    try:
        if done.returncode:
            words = done.stdout.decode(errors="replace")
            raise Unknown(f"{words}: {info.exit_text(done.returncode)}")
        return replace(parse_bootstrap(done.stdout), group=done.group)
    except TaskdError:
        spawn.kill_group(done.group)
        raise
