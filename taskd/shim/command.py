"""The command line of a shim, which is the same for all of them.

A daemon calls ``start``, which leaves a process behind that serves, and ``delete`` if that one is
killed. Sources: containerd's ``runtime/v2/README.md``, ``runtime/v2/shim/shim.go`` and ``util.go``,
``runtime/v2/runc/manager/manager_linux.go``.
"""

from __future__ import annotations

import argparse
import asyncio
import errno
import gc
import hashlib
import json
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import FrameType
from typing import NoReturn

from setproctitle import setproctitle

import taskd
from taskd import mounts, ttrpc
from taskd.codec import MalformedMessage, decode, encode
from taskd.errors import TaskdError
from taskd.proto.containerd.runc.v1 import Options
from taskd.proto.containerd.runtime.bootstrap.v1 import BootstrapResult
from taskd.proto.containerd.task.v3 import DeleteResponse
from taskd.proto.containerd.types import RuntimeInfo, RuntimeVersion
from taskd.shim import leftovers
from taskd.shim.container import Container
from taskd.shim.publisher import Publisher
from taskd.shim.reaper import Reaper
from taskd.shim.request import StartRequest
from taskd.shim.service import TaskService
from taskd.wellknown import timestamp

__all__ = ["Call", "main", "rehearse", "run"]

log = logging.getLogger("taskd.shim")

_BACKLOG = 128
_FLUSH_SECONDS = 5.0
_GRACE_SECONDS = 1.0
_LOG_FORMAT = "%(levelname)s %(message)s"
_KILLED = 128 + signal.SIGKILL


@dataclass(frozen=True, slots=True)
class Call:
    """One call of the command line, whether of a process of its own or in a warm one."""

    arguments: Sequence[str]
    stdin: Callable[[], bytes]
    answer: Callable[[bytes], None]
    """Takes what is said on standard output, and lets the caller go on."""
    forks: bool
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
    options = _parser(name).parse_args(list(call.arguments))
    if options.v:
        print(f"{name}:\n  Version:  {taskd.__version__}\n  Python:   {sys.version.split()[0]}")
        return 0
    if options.info:
        call.answer(encode(_info(name, call.stdin())))
        return 0
    if not options.namespace:
        print(f"{name}: shim namespace cannot be empty", file=sys.stderr)
        return 1
    try:
        match options.action:
            case "start":
                return _start(kind, options, call)
            case "delete":
                call.answer(encode(_delete(kind, options)))
                return 0
            case "":
                _set_up_log(options.debug)
                _ignore_ends()
                return _serve(kind, options, _bound(options.socket or _address(kind, options)))
        print(f"{name}: unknown command {options.action}", file=sys.stderr)
    except (OSError, TaskdError, ValueError) as exc:
        print(f"{name}: {exc}", file=sys.stderr)
    return 1


@cache
def _parser(name: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(name, allow_abbrev=False, prefix_chars="-")
    for flag, about in (
        ("namespace", "namespace of the container"),
        ("id", "id of the container"),
        ("address", "the daemon's gRPC socket"),
        ("bundle", "path of the bundle, if it is not the current folder"),
        ("publish-binary", "program with which to publish events; not used"),
        ("socket", "socket to serve on, without a command"),
    ):
        parser.add_argument(f"-{flag}", f"--{flag}", default="", help=about)
    for flag, about in (
        ("debug", "log more"),
        ("info", "tell about the runtime, as containerd.types.RuntimeInfo"),
        ("v", "print the version"),
    ):
        parser.add_argument(f"-{flag}", f"--{flag}", action="store_true", help=about)
    *_, last, version = name.split(".")
    parser.set_defaults(prog=f"containerd-shim-{last}-{version}")
    parser.add_argument("action", nargs="?", default="", help="start or delete")
    return parser


def rehearse(name: str) -> None:
    """Do what costs time when it is done first: see `taskd.shim.rehearsal`."""
    for _ in range(10):
        _parser(name).parse_args(["-namespace", name, "-id", name, "-address", name, "start"])
        logging.Formatter(_LOG_FORMAT)


def _print(answer: bytes) -> None:
    sys.stdout.buffer.write(answer)
    sys.stdout.buffer.flush()


def _info(name: str, request: bytes) -> RuntimeInfo:
    # The request, a RuntimeRequest, asks for a runtime's features, of which a shim knows nothing.
    return RuntimeInfo(name=name, version=RuntimeVersion(version=taskd.__version__))


# --- start ----------------------------------------------------------------------------------


def _start(kind: type[Container], options: argparse.Namespace, call: Call) -> int:
    request = StartRequest.parse(call.stdin(), options.id, options.namespace)
    group = _group(kind)
    address = _address(kind, options, group, request.socket_folder)
    answer = _bootstrap(address, request)
    listener = _listener(address)
    Path("address").write_text(address)
    if listener is None:
        call.answer(answer)  # the group's shim is there already
        return 0
    _ignore_ends()
    if call.forks and os.fork():
        call.answer(answer)
        return 0
    # Who connects is told that its peer is the process that listened last.
    listener.listen(_BACKLOG)
    kind.begin()
    os.setsid()
    setproctitle(_title(options, group))
    _set_up_log(options.debug or request.debug)
    if group:
        # The bundle of the first container is not to be in use for as long as the last one is.
        os.chdir("/")
    _join_cgroup(request)
    _adjust_oom_score()
    if request.params.containerd_ttrpc_address:
        os.environ["TTRPC_ADDRESS"] = request.params.containerd_ttrpc_address
    if not call.forks:
        call.answer(answer)
    # The one that was started has nobody to return to.
    os._exit(_serve(kind, options, listener))


def _title(options: argparse.Namespace, group: str) -> str:
    """What ``ps`` shows, for people who look for a container's shim as they do with containerd."""
    whose = f"-group {group}" if group else f"-id {options.id}"
    return f"{options.prog} -namespace {options.namespace} {whose} -address {options.address}"


def _bootstrap(address: str, request: StartRequest) -> bytes:
    """What ``start`` prints: a message or JSON if the daemon knows them, or else the address."""
    version = min(3, max(2, int(os.environ.get("MAX_SHIM_VERSION") or 2)))
    if request.takes_message:
        result = BootstrapResult(version=version, address=address, protocol="ttrpc")
        return encode(result)
    if not os.environ.get("MAX_SHIM_VERSION"):
        return address.encode()
    return json.dumps({"version": version, "address": address, "protocol": "ttrpc"}).encode()


def _group(kind: type[Container]) -> str:
    """Name of the group that the container is in, or empty."""
    spec = json.loads(Path("config.json").read_bytes())
    annotations = spec.get("annotations") or {}
    names = (annotations[each] for each in kind.groups if each in annotations)
    return next(names, os.environ.get("TASKD_SHIM_GROUP", ""))


def _address(
    kind: type[Container],
    options: argparse.Namespace,
    group: str = "",
    folder: Path | None = None,
) -> str:
    """Where the shim listens (containerd: ``CreateSocketAddress`` in util_unix.go).

    `folder` is the one that the daemon wants, if it does.
    """
    name = f"{options.address}/{options.namespace}/{group or options.id}"
    if folder is None:
        folder = Path("/run/containerd/s")
        if os.geteuid() != 0:
            base = os.environ.get("XDG_RUNTIME_DIR") or f"/tmp/taskd-{os.geteuid()}"  # noqa: S108
            folder = Path(base, "taskd-shims")
    if group:
        name += f"/{kind.__module__}.{kind.__qualname__}"
    return f"unix://{folder}/{hashlib.sha256(name.encode()).hexdigest()}"


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
    path = address.removeprefix("unix://")
    with (
        socket.socket(socket.AF_UNIX) as probe,
        suppress(ConnectionRefusedError, FileNotFoundError),
    ):
        probe.connect(path)
        return False
    with suppress(FileNotFoundError):
        Path(path).unlink()
    return True


def _bound(address: str) -> socket.socket:
    path = Path(address.removeprefix("unix://"))
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if os.geteuid() != 0 and path.parent.stat().st_uid != os.geteuid():
        raise PermissionError(f"{path.parent} is somebody else's")
    listener = socket.socket(socket.AF_UNIX)
    mask = os.umask(0o177)
    try:
        listener.bind(str(path))
    except BaseException:
        listener.close()
        raise
    finally:
        os.umask(mask)
    listener.listen(_BACKLOG)
    listener.setblocking(False)
    return listener


def _join_cgroup(request: StartRequest) -> None:
    """Enter the cgroup that runc's options name for the shim, if they do."""
    given = request.of_type("containerd.runc.v1.Options")
    if given is None:
        return
    try:
        options = decode(Options, given)
    except MalformedMessage:
        return
    if options.shim_cgroup:
        name = options.shim_cgroup.lstrip("/")
        root = Path("/sys/fs/cgroup")
        unified = (root / "cgroup.controllers").exists()
        folders = [root / name] if unified else [each / name for each in root.iterdir()]
        for folder in folders:
            if (folder / "cgroup.procs").exists():
                (folder / "cgroup.procs").write_text(str(os.getpid()))


def _adjust_oom_score() -> None:
    """Be killed before the daemon is, when memory is short (containerd: ``AdjustOOMScore``)."""
    with suppress(OSError):
        parent = int(Path(f"/proc/{os.getppid()}/oom_score_adj").read_text())
        Path("/proc/self/oom_score_adj").write_text(str(min(parent + 1, 1000)))


# --- serve ----------------------------------------------------------------------------------


def _serve(kind: type[Container], options: argparse.Namespace, listener: socket.socket) -> int:
    # Nothing of what there is now becomes garbage; looking at it would copy its pages.
    gc.freeze()
    # The process ends with it, so it is not closed.
    asyncio.new_event_loop().run_until_complete(_serving(kind, options, listener))
    return 0


async def _serving(
    kind: type[Container], options: argparse.Namespace, listener: socket.socket
) -> None:
    reaper = Reaper()
    reaper.install()
    address = os.environ.get("TTRPC_ADDRESS") or f"{options.address}.ttrpc"
    publisher = Publisher(address, options.namespace)
    service = TaskService(kind, options.namespace, reaper, publisher)
    socket_path = listener.getsockname()
    publishing = asyncio.get_running_loop().create_task(publisher.run())
    async with ttrpc.Server(service.services()) as server:
        await server.start(listener)
        log.info("serving %s", options.id)
        await service.stopped.wait()
        await publisher.drained(_FLUSH_SECONDS)
        with suppress(FileNotFoundError):
            os.unlink(socket_path)  # noqa: PTH108
        await server.aclose(grace=_GRACE_SECONDS)
    await service.aclose()
    publishing.cancel()
    await asyncio.wait([publishing])
    await publisher.aclose()


def _ignore_ends() -> None:
    """Outlive whatever ends the daemon: only the daemon ends a shim."""
    for number in (signal.SIGTERM, signal.SIGINT):
        # What it starts does not inherit a handler, as it would SIG_IGN.
        signal.signal(number, _ignore)


def _ignore(number: int, frame: FrameType | None) -> None:
    log.info("ignoring signal %d", number)


class _LogFifo(logging.Handler):
    """Writes to the bundle's FIFO; what nobody takes is dropped, for a shim must not wait."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        # With both ends open it does not matter whether a daemon reads.
        self._fd = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)

    def emit(self, record: logging.LogRecord) -> None:
        with suppress(OSError):
            os.write(self._fd, f"{self.format(record)}\n".encode())


def _set_up_log(debug: bool) -> None:
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in range(3):
        os.dup2(null, descriptor)
    os.close(null)
    root = logging.getLogger()
    root.setLevel(logging.DEBUG if debug else logging.INFO)
    logging.getLogger("asyncio").setLevel(logging.WARNING)
    with suppress(OSError):
        handler = _LogFifo(Path("log"))
        handler.setFormatter(logging.Formatter(_LOG_FORMAT))
        root.handlers = [handler]


# --- delete ---------------------------------------------------------------------------------


def _delete(kind: type[Container], options: argparse.Namespace) -> DeleteResponse:
    # containerd calls it in the bundle; the flag's path may be of a folder that is gone.
    bundle = Path.cwd().parent / options.id
    with suppress(OSError):
        kind.clean_up(options.id, options.namespace, bundle)
    mounts.unmount_below(bundle / "rootfs")
    with suppress(OSError):
        _removed_if_dead((bundle / "address").read_text())
    return DeleteResponse(
        pid=leftovers.init_pid(bundle), exit_status=_KILLED, exited_at=timestamp(time.time_ns())
    )
