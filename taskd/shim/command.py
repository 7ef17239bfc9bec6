"""The command line of a shim, which is the same for all of them.

A daemon calls ``start``, which leaves a process behind that serves, and ``delete`` if that one is
killed. It waits for both, for ``delete`` five seconds at most, and calls as many at once as there
were containers in the process that was killed. So what only a process that serves has need of is in
`taskd.shim.serving`, and nothing here imports it, nor asyncio, before it does serve.
Sources: containerd's ``runtime/v2/README.md``, ``runtime/v2/shim/shim.go`` and ``util.go``,
``runtime/v2/runc/manager/manager_linux.go``.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType

import taskd
from taskd import mounts
from taskd.errors import TaskdError
from taskd.shim import leftovers, sandboxed
from taskd.shim.flags import Flags, usage
from taskd.wire import VARINT, bytes_field, tag, varint

TYPE_CHECKING = False  # as of `typing`, which a shim's `delete` does without
if TYPE_CHECKING:
    import socket
    from typing import NoReturn

    from taskd.shim.container import Container
    from taskd.shim.request import StartRequest

__all__ = ["BACKLOG", "FEATURES", "Call", "main", "run"]

BACKLOG = 128
"""Connections that may wait to be accepted."""
FEATURES = "types.containerd.io/opencontainers/runtime-spec/1/features/Features"
"""Name of what a runtime's features are sent as, in JSON."""
_NEWEST = 3
_CONTROLLER = "io.containerd.sandbox.controller.v1.shim"
"""The folder of the sandboxes' bundles, in containerd 2.x."""
_READY = b"\0"
_KILLED = 128 + signal.SIGKILL


class Call:
    """One call of the command line, whether of a process of its own or in a warm one."""

    def __init__(
        self,
        arguments: Sequence[str],
        stdin: Callable[[], bytes],
        answer: Callable[[bytes], None],
        forks: bool,
    ) -> None:
        self.arguments = arguments
        self.stdin = stdin
        self.answer = answer
        """Takes what is said on standard output, and lets the caller go on."""
        self.forks = forks
        """Whether this process is to return from ``start``, and another one to serve."""


def run(kind: type[Container], name: str) -> NoReturn:
    """Be the shim `name` (``io.example.thing.v1``) whose containers are of `kind`.

    The whole of a shim's executable.
    """
    call = Call(sys.argv[1:], sys.stdin.buffer.read, _print, forks=True)
    status = main(kind, name, call)
    # A daemon waits for the end of each of these processes, and to take the interpreter down would
    # be a fifth of their time.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def main(kind: type[Container], name: str, call: Call) -> int:
    """Do what the command line asks; the process's exit status."""
    # The daemon's service manager is not ours, nor that of a runtime that we start.
    os.environ.pop("NOTIFY_SOCKET", None)
    try:
        flags = Flags(name, call.arguments)
    except ValueError as exc:
        print(f"{name}: {exc}\n{usage(name)}", end="", file=sys.stderr)
        return 2
    if flags.help:
        print(usage(name), end="")
        return 0
    if flags.version:
        print(f"{name}:\n  Version:  {taskd.__version__}\n  Python:   {sys.version.split()[0]}")
        return 0
    if not flags.namespace and not flags.info:
        print(f"{name}: shim namespace cannot be empty", file=sys.stderr)
        return 1
    try:
        if flags.info:
            call.answer(_info(kind, name, call.stdin()))
            return 0
        match flags.action:
            case "start":
                return _start(kind, flags, call)
            case "adopt":
                return _adopt(kind, flags, call)
            case "delete":
                call.answer(_delete(kind, flags))
                return 0
            case "":
                from taskd import inherited

                inherited.take()
                _ignore_ends()
                _be_silent()
                listener = _bound(flags.socket or _address(kind, flags))
                return _serve(kind, flags, listener, Path("log"))
        print(f"{name}: unknown command {flags.action}", file=sys.stderr)
    except (OSError, TaskdError, ValueError) as exc:
        # A daemon puts it into a line of its own.
        print(f"{name}: {exc}", end="", file=sys.stderr)
    return 1


def _print(answer: bytes) -> None:
    sys.stdout.buffer.write(answer)
    sys.stdout.buffer.flush()


def _info(kind: type[Container], name: str, request: bytes) -> bytes:
    """What there is to know before a container is made, from the runtime's options, or nothing."""
    from taskd.codec import decode, encode
    from taskd.proto.containerd.types import RuntimeInfo, RuntimeVersion
    from taskd.proto.google.protobuf import Any
    from taskd.wellknown import from_any

    options = decode(Any, request) if request else None
    features = kind.features(from_any(options))
    return encode(
        RuntimeInfo(
            name=name,
            version=RuntimeVersion(version=taskd.__version__, revision=taskd.__revision__),
            options=options,
            features=None
            if features is None
            else Any(type_url=FEATURES, value=json.dumps(features).encode()),
        )
    )


# --- start ----------------------------------------------------------------------------------


def _start(kind: type[Container], flags: Flags, call: Call) -> int:
    from taskd.shim.request import StartRequest

    request = StartRequest.parse(call.stdin(), flags.id, flags.namespace)
    group = _group(kind)
    address = _address(kind, flags, group, request.socket_folder)
    answer = _bootstrap(address, request)
    listener = _listener(address)
    Path("address").write_text(address)
    if "TASKD_SHIM_GROUP" in os.environ:
        # For a daemon that puts containers into this process without asking again.
        Path("groups").write_text("\n".join(kind.groups))
        if not kind.survives():
            Path("mortal").touch()
    if listener is None:
        call.answer(answer)  # the group's shim is there already
        return 0
    flags.debug |= request.debug
    return _leave(kind, flags, call, group, listener, request, answer)


def _adopt(kind: type[Container], flags: Flags, call: Call) -> int:
    """Leave a process behind that serves the containers of one that has died, where it did.

    taskd calls it in one of their bundles; the paths of all are what it says.
    """
    from taskd.shim import record
    from taskd.shim.request import StartRequest

    bundles = [Path(each) for each in json.loads(call.stdin())["bundles"]]
    address = Path("address").read_text()
    if (listener := _listener(address)) is None:
        raise FileExistsError(f"somebody listens on {address}")
    request = StartRequest()
    with suppress(record.Torn):
        if given := record.options(Path.cwd()):
            request = StartRequest(((given.type_url, given.value),))
    answer = _bootstrap(address, request)
    return _leave(kind, flags, call, _group(kind), listener, request, answer, bundles)


def _leave(
    kind: type[Container],
    flags: Flags,
    call: Call,
    group: str,
    listener: socket.socket,
    request: StartRequest,
    answer: bytes,
    bundles: Sequence[Path] = (),
) -> int:
    """Leave a process behind that serves on `listener`, and answer the caller."""
    address: str = listener.getsockname()
    log = Path("log").absolute()
    _ignore_ends()
    if call.forks:
        told, tell = os.pipe()
        if os.fork():
            os.close(tell)
            with os.fdopen(told, "rb") as report:
                words = report.read()
            if words != _READY:
                raise ChildProcessError(words.decode(errors="replace") or "the shim ended at once")
            call.answer(answer)
            return 0
        os.close(told)
    try:
        _settle(kind, flags, group, listener, request)
    except BaseException as exc:
        Path(address).unlink(missing_ok=True)
        if not call.forks:
            raise
        os.write(tell, str(exc).encode(errors="backslashreplace"))
        os._exit(1)
    _be_silent()
    if call.forks:
        os.write(tell, _READY)
        os.close(tell)
    else:
        call.answer(answer)
    # The one that was started has nobody to return to.
    os._exit(_serve(kind, flags, listener, log, bundles))


def _settle(
    kind: type[Container],
    flags: Flags,
    group: str,
    listener: socket.socket,
    request: StartRequest,
) -> None:
    """Become the process that serves, where it is to be. Raises OSError, TaskdError."""
    from setproctitle import setproctitle

    from taskd import inherited
    from taskd.shim import placement

    inherited.take()
    # Who connects is told that its peer is the process that listened last.
    listener.listen(BACKLOG)
    placement.join_cgroup(request)
    kind.begin()
    os.setsid()
    setproctitle(_title(flags, group))
    if group:
        # The bundle of the first container is not to be in use for as long as the last one is.
        os.chdir("/")
    placement.adjust_oom_score()
    if request.ttrpc_address:
        os.environ["TTRPC_ADDRESS"] = request.ttrpc_address


def _be_silent() -> None:
    """Let go of the caller's streams, which it reads to their end."""
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in range(3):
        os.dup2(null, descriptor)
    os.close(null)


def _title(flags: Flags, group: str) -> str:
    """What ``ps`` shows, for people who look for a container's shim as they do with containerd."""
    whose = f"-group {group}" if group else f"-id {flags.id}"
    return f"{flags.program} -namespace {flags.namespace} {whose} -address {flags.address}"


def _bootstrap(address: str, request: StartRequest) -> bytes:
    """What ``start`` prints: a message or JSON if the daemon knows them, or else the address."""
    version = _version()
    if request.takes_message:
        # ``BootstrapResult``.
        texts = bytes_field(2, address.encode()) + bytes_field(3, b"ttrpc")
        return _numbers(version) + texts
    if not os.environ.get("MAX_SHIM_VERSION"):
        return address.encode()
    return json.dumps({"version": version, "address": address, "protocol": "ttrpc"}).encode()


def _version() -> int:
    """The newest version of the task API that both sides speak.

    containerd 2.x says 2 whatever it speaks, and lets only a shim that answers 3 have a sandbox's
    containers. That it is no older one is seen from where the sandbox's bundle is.
    """
    if Path.cwd().parent.parent.name == _CONTROLLER:
        return _NEWEST
    return min(_NEWEST, max(2, int(os.environ.get("MAX_SHIM_VERSION") or 2)))


def _group(kind: type[Container]) -> str:
    """Name of the group that the container is in, or empty."""
    try:
        spec = json.loads(Path("config.json").read_bytes())
    except FileNotFoundError:
        if kind.sandboxes is None:
            raise
        spec = {}  # a sandbox may do without
    annotations = spec.get("annotations") or {}
    names = (annotations[each] for each in kind.groups if each in annotations)
    return next(names, os.environ.get("TASKD_SHIM_GROUP", ""))


def _address(
    kind: type[Container],
    flags: Flags,
    group: str = "",
    folder: Path | None = None,
) -> str:
    """Where the shim listens (containerd: ``CreateSocketAddress`` in util_unix.go).

    `folder` is the one that the daemon wants, if it does.
    """
    from taskd import shim_sockets

    name = f"{flags.address}/{flags.namespace}/{group or flags.id}"
    if group:
        name += f"/{kind.__module__}.{kind.__qualname__}"
    return f"unix://{shim_sockets.path(folder or shim_sockets.folder(Path.cwd()), name)}"


def _listener(address: str) -> socket.socket | None:
    """A socket that listens at `address`; None if somebody else does already."""
    try:
        return _bound(address)
    except OSError as exc:
        if exc.errno != errno.EADDRINUSE:
            raise
    if _removed_if_dead(address):
        return _bound(address)
    return None


def _removed_if_dead(address: str) -> bool:
    """Remove the socket of somebody who has been killed; False if somebody listens."""
    path = Path(address.removeprefix("unix://"))
    if not path.exists():
        return True
    import socket

    with (
        socket.socket(socket.AF_UNIX) as probe,
        suppress(ConnectionRefusedError, FileNotFoundError),
    ):
        probe.connect(str(path))
        return False
    path.unlink(missing_ok=True)
    return True


def _bound(address: str) -> socket.socket:
    import socket

    from taskd import shim_sockets

    path = Path(address.removeprefix("unix://"))
    shim_sockets.make(path.parent)
    listener = socket.socket(socket.AF_UNIX)
    mask = os.umask(0o177)
    try:
        listener.bind(str(path))
    except BaseException:
        listener.close()
        raise
    finally:
        os.umask(mask)
    listener.listen(BACKLOG)
    listener.setblocking(False)
    return listener


def _ignore_ends() -> None:
    """Outlive whatever ends the daemon: only the daemon ends a shim."""
    for number in (signal.SIGTERM, signal.SIGINT):
        # What it starts does not inherit a handler, as it would SIG_IGN.
        signal.signal(number, _ignore)


def _ignore(number: int, frame: FrameType | None) -> None:
    import logging

    logging.getLogger(__name__).info("ignoring signal %d", number)


def _serve(
    kind: type[Container],
    flags: Flags,
    listener: socket.socket,
    log: Path,
    bundles: Sequence[Path] = (),
) -> int:
    from taskd.shim.serving import serve

    serve(kind, flags, listener, log, bundles)
    return 0


# --- delete ---------------------------------------------------------------------------------


def _delete(kind: type[Container], flags: Flags) -> bytes:
    # containerd calls it in the bundle; the flag's path may be of a folder that is gone.
    bundle = Path.cwd().parent / flags.id
    contained = sandboxed.containers(bundle)
    for each in (bundle,) if contained is None else contained:
        with suppress(OSError):
            kind.clean_up(each.name, flags.namespace, each)
        mounts.unmount_below(each / "rootfs")
    if contained is not None and kind.sandboxes is not None:
        with suppress(OSError):
            kind.sandboxes.clean_up(flags.id, flags.namespace, bundle)
        mounts.unmount_below(bundle / "rootfs")
    with suppress(OSError):
        _removed_if_dead((bundle / "address").read_text())
    status, at = leftovers.exit_of(bundle) or (_KILLED, time.time_ns())
    return _exit(leftovers.init_pid(bundle), status, at)


def _exit(pid: int, status: int, at: int) -> bytes:
    """``containerd.task.v3.DeleteResponse``, without the modules of its messages."""
    seconds, nanos = divmod(at, 10**9)
    when = _numbers(seconds, nanos)
    return _numbers(pid, status) + bytes_field(3, when)


def _numbers(*values: int) -> bytes:
    """The first fields of a message."""
    return b"".join(
        varint(tag(number, VARINT)) + varint(value) for number, value in enumerate(values, 1)
    )
