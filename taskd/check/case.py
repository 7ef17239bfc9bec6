"""What one check has to itself: a namespace, a folder, an event receiver, and shims.

It plays the daemon: it makes bundles, starts shims with containerd's flags and environment,
connects to them, and runs their ``delete``.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
import uuid
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import anyio
import betterproto2

from taskd import errors
from taskd.check import container, traces
from taskd.check.programs import SLEEP, Program
from taskd.check.receiver import Receiver
from taskd.check.registry import Difference, Failed, NotApplicable
from taskd.check.shim import CALL_SECONDS, Shim, Task, default_stderr, until
from taskd.check.stdio import Input, Output
from taskd.check.subject import Subject
from taskd.codec import MalformedMessage, decode
from taskd.mounts import mounts_below
from taskd.proto.containerd.task.v2 import ConnectRequest, DeleteResponse
from taskd.proto.google.protobuf import Timestamp
from taskd.runtime.binary import Bootstrap, parse_bootstrap
from taskd.runtime.bundle import Bundle
from taskd.runtime.connection import Connection, connect
from taskd.runtime.request import Form, StartRequest
from taskd.runtime.spawn import Completed
from taskd.ttrpc import ConnectionClosed
from taskd.wellknown import nanoseconds

__all__ = ["Case"]

_CALLS_KEPT = 12
_LOG_LINES_KEPT = 20
_LOG_KEPT = 1 << 16
_RUNC_STATE = "/run/containerd/runc"
_LEFT_SECONDS = 5.0
_PUBLISH_BINARY = shutil.which("true") or "/bin/true"


class Case:
    """Made by `open`, ended by `finish` or `abandon`."""

    def __init__(self, subject: Subject, folder: Path) -> None:
        self.subject = subject
        self.folder = folder
        self.namespace = f"check-{uuid.uuid4().hex[:10]}"
        self.receiver = Receiver(folder / "events.sock")
        self.shims: list[Shim] = []
        self.bundles: dict[str, Bundle] = {}
        self.container: Task
        """The one that was made last."""
        self.calls: deque[str] = deque(maxlen=_CALLS_KEPT)
        """What was called last, and what came."""
        self.differences: list[Difference] = []
        self.environment: dict[str, str] = {}
        """What its shims have in theirs besides."""
        self.had_container: set[str] = set()
        """Ids of the containers that there are, or were."""
        self.orphaned_sockets: set[str] = set()
        """Of shims that were killed: containerd's leave it to the next ``start`` to remove them."""
        self._sockets: set[str] = set()
        self._log = bytearray()
        self._descriptors: list[int] = []
        self._closing: list[Input | Output] = []
        root = subject.options.root if subject.options is not None else ""
        self._traces = traces.Whereabouts(
            self.namespace,
            folder,
            folder / "tmp",
            Path(root or _RUNC_STATE, self.namespace),
            frozenset(traces.all_pids()),
        )

    @classmethod
    async def open(cls, subject: Subject) -> Case:
        case = cls(subject, Path(tempfile.mkdtemp(prefix="taskd-check-")))
        for name in ("tmp", "io"):
            (case.folder / name).mkdir()
        await case.receiver.start()
        return case

    async def begin(self) -> None:
        """Forget what the check before this one has noted down and opened."""
        self.calls.clear()
        self.differences.clear()
        for stream in self._closing:
            await stream.aclose()
            stream.path.unlink(missing_ok=True)
        self._closing.clear()

    # --- what is noted down ---------------------------------------------------------------

    def describe(self, method: str, request: betterproto2.Message) -> str:
        return f"{method}({_fields(request, hidden=('options', 'rootfs', 'spec', 'bundle'))})"

    def brief(self, answer: betterproto2.Message) -> str:
        return _fields(answer) or "OK"

    def note(self, called: str, came: str) -> None:
        self.calls.append(f"{called} -> {came}" if came else called)

    def known(self, difference: Difference) -> None:
        """The shim does what one generation of containerd's shims is known to do."""
        if difference not in self.differences:
            self.differences.append(difference)

    def equal(self, called: str, expected: object, came: object) -> None:
        """Raises `Failed` unless both are the same."""
        if expected != came:
            raise Failed(called, str(expected), str(came))

    def true(self, condition: object, called: str, expected: str, came: str) -> None:
        """Raises `Failed` unless the condition is true."""
        if not condition:
            raise Failed(called, expected, came)

    def log(self) -> list[str]:
        """The last lines of all shims' logs."""
        return self.whole_log().splitlines()[-_LOG_LINES_KEPT:]

    def whole_log(self) -> str:
        return self._log.decode(errors="replace")

    def _read_log(self, descriptor: int) -> None:
        with suppress(BlockingIOError):
            self._log += os.read(descriptor, 1 << 16)
        del self._log[:-_LOG_KEPT]

    # --- the daemon's part ----------------------------------------------------------------

    def bundle(
        self,
        id: str = "one",  # noqa: A002
        command: Program | Sequence[str] = SLEEP,
        *,
        terminal: bool = False,
        env: Mapping[str, str] | None = None,
        **rest: Any,
    ) -> Bundle:
        """Make a bundle, with a FIFO for the shim's log; `rest` goes to `container.spec`."""
        process = container.process(
            self.subject.command(command), self.namespace, terminal=terminal, env=env
        )
        document = container.spec(process, self._cgroup(id), self.subject.root, **rest)
        bundle = Bundle.create(
            self.folder / "state", self.folder / "root", self.namespace, id, document
        )
        os.mkfifo(bundle.log, 0o700)
        descriptor = os.open(bundle.log, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        asyncio.get_running_loop().add_reader(descriptor, self._read_log, descriptor)
        self._descriptors.append(descriptor)
        self.bundles[id] = bundle
        return bundle

    def _cgroup(self, id: str) -> str:  # noqa: A002
        options = self.subject.options
        if options is not None and options.systemd_cgroup:
            return f"system.slice:taskd:{self.namespace}-{id}"
        return f"/{self.namespace}-{id}"

    async def run(
        self,
        bundle: Bundle,
        *flags: str,
        max_version: str = "2",
        stdin: bytes = b"",
        namespace: str | None = None,
    ) -> Completed:
        """Run the shim's executable in a bundle."""
        address = str(self.folder / "daemon.sock")
        name = self.namespace if namespace is None else namespace
        arguments = [
            *("-namespace", name, "-address", address),
            *("-publish-binary", _PUBLISH_BINARY),
            *flags,
        ]
        env = {
            "GOMAXPROCS": "2",
            "TTRPC_ADDRESS": str(self.receiver.path),
            "GRPC_ADDRESS": address,
            "NAMESPACE": name,
            "TMPDIR": str(self._traces.temporary),
            **({"MAX_SHIM_VERSION": max_version} if max_version else {}),
            **self.environment,
        }
        called = f"the command {' '.join((self.subject.path.name, *flags))}"
        try:
            with anyio.fail_after(CALL_SECONDS):
                done = await self.subject.run(arguments, cwd=bundle.path, env=env, stdin=stdin)
        except TimeoutError:
            raise Failed(called, "its end", f"none within {CALL_SECONDS:g} s") from None
        words = (done.stdout + done.stderr).decode(errors="replace").strip()
        self.note(called, f"exit status {done.returncode}, {words[:300]}")
        return done

    async def start(self, bundle: Bundle, given: bytes, *, max_version: str = "2") -> Completed:
        """Run ``start`` with that on its standard input."""
        debug = ["-debug"] if self.subject.debug else []
        return await self.run(
            bundle, "-id", bundle.id, *debug, "start", max_version=max_version, stdin=given
        )

    def start_input(self, bundle: Bundle, form: Form) -> bytes:
        """What a daemon that knows all forms has to say, in one of them."""
        return StartRequest(
            bundle.id,
            self.namespace,
            self.subject.typed_options,
            str(self.folder / "daemon.sock"),
            str(self.receiver.path),
            _PUBLISH_BINARY,
            self.subject.debug,
        ).encode(form)

    async def answer_to_start(
        self, bundle: Bundle, *, max_version: str = "2", form: Form | None = None
    ) -> Bootstrap:
        """Run ``start`` as taskd does; in `form` first, if it is given."""
        path, forms = self.subject.path, self.subject.forms
        form = form or forms.of(path)
        given = self.start_input(bundle, form)
        done = await self.start(bundle, given, max_version=max_version)
        if done.returncode and forms.refused(path, form, done.stdout + done.stderr):
            form = Form.PARAMETERS
            given = self.start_input(bundle, form)
            done = await self.start(bundle, given, max_version=max_version)
        bootstrap = self.bootstrap(done)
        forms.learn(path, form, done.stdout)
        return bootstrap

    def bootstrap(self, done: Completed) -> Bootstrap:
        """What a ``start`` that has to have been successful says."""
        words = (done.stdout + done.stderr).decode(errors="replace").strip()
        self.true(done.returncode == 0, "start", "exit status 0", f"{done.returncode}: {words}")
        try:
            bootstrap = parse_bootstrap(done.stdout)
        except errors.TaskdError as exc:
            raise Failed("start", "an address", f"{exc}: {words}") from exc
        self._sockets.add(bootstrap.address.removeprefix("unix://"))
        return bootstrap

    async def start_shim(
        self, bundle: Bundle, *, max_version: str = "2", form: Form | None = None
    ) -> Shim:
        """Run ``start``, and connect."""
        bootstrap = await self.answer_to_start(bundle, max_version=max_version, form=form)
        return await self.shim_at(bundle, bootstrap)

    async def shim_at(self, bundle: Bundle, bootstrap: Bootstrap) -> Shim:
        """Connect to a shim that was started, unless we are connected."""
        for shim in self.shims:
            if shim.bootstrap.address == bootstrap.address and shim.alive:
                return shim
        shim = Shim(self, bundle, bootstrap, await self.connect(bootstrap))
        answer = await shim.call("Connect", ConnectRequest(id=bundle.id))
        shim.pid = answer.shim_pid
        self.true(traces.alive(shim.pid), "Connect", "the shim's pid", str(shim.pid))
        self.shims.append(shim)
        return shim

    async def connect(self, bootstrap: Bootstrap) -> Connection:
        try:
            return await connect(bootstrap, timeout=CALL_SECONDS)
        except errors.TaskdError as exc:
            raise Failed(f"connecting to {bootstrap.address}", "a connection", str(exc)) from exc

    async def clean_up(self, bundle: Bundle) -> DeleteResponse:
        """Run ``delete``, as after a shim that is gone; what it answers."""
        done = await self.run(bundle, "-id", bundle.id, "-bundle", str(bundle.path), "delete")
        words = done.stderr.decode(errors="replace").strip()
        self.true(done.returncode == 0, "delete", "exit status 0", f"{done.returncode}: {words}")
        try:
            return decode(DeleteResponse, done.stdout)
        except MalformedMessage as exc:
            raise Failed("delete", "a DeleteResponse", f"{exc}: {done.stdout!r}") from exc

    def kill(self, pid: int, number: int) -> None:
        """Signal a process, if it is one of this case's."""
        if any(pid == each for each, _ in traces.processes(self._traces)):
            os.kill(pid, number)

    # --- containers -----------------------------------------------------------------------

    async def task(self, *arguments: Any, **options: Any) -> Task:
        """A container that is still to be created, in a shim of its own or of its group."""
        bundle = self.bundle(*arguments, **options)
        self.container = Task(await self.start_shim(bundle), bundle)
        return self.container

    async def created(
        self,
        command: Program | Sequence[str] = SLEEP,
        *,
        id: str = "one",  # noqa: A002
        stdin: str = "",
        stdout: str = "",
        stderr: str = "",
        terminal: bool = False,
        **options: Any,
    ) -> Task:
        task = await self.task(id, command, terminal=terminal, **options)
        stderr = stderr or default_stderr(stdout, terminal)
        await task.create(stdin=stdin, stdout=stdout, stderr=stderr, terminal=terminal)
        return task

    async def created_with_process(self) -> Task:
        """Raises `NotApplicable` if there is no process before Start."""
        task = await self.created()
        if not task.pid:
            raise NotApplicable("there is no process before Start")
        return task

    async def running(self, *arguments: Any, **options: Any) -> Task:
        task = await self.created(*arguments, **options)
        await task.start()
        return task

    async def stopped(self, *arguments: Any, **options: Any) -> Task:
        task = await self.running(*arguments, **options)
        await task.kill()
        await task.wait()
        return task

    def output(self, name: str = "out") -> Output:
        """The client's end of a standard output."""
        output = Output(self.folder / "io" / name)
        self._closing.append(output)
        return output

    def input(self, name: str = "in") -> Input:
        """The client's end of a standard input."""
        source = Input(self.folder / "io" / name)
        self._closing.append(source)
        return source

    def mounts(self) -> list[str]:
        """What is mounted in its folder."""
        return [str(each) for each in mounts_below(self.folder)]

    def processes(self) -> list[tuple[int, str]]:
        """Pid and command line of all that runs here, shims included."""
        return list(traces.processes(self._traces))

    # --- the end --------------------------------------------------------------------------

    async def finish(self) -> list[str]:
        """End what still runs, as a daemon does; what is left then, which is swept up.

        Raises what the shim answers to that.
        """
        ended_well = False
        for shim in self.shims:
            if shim.alive:
                ended_well = True
                for id in sorted(shim.containers):  # noqa: A001
                    await self._end(Task(shim, self.bundles[id]))
                with suppress(ConnectionClosed):
                    await shim.shut_down()
                self.true(await shim.ends(), "Shutdown", "the end of the shim", "none")
        # That delete is harmless after Shutdown is a check of its own; here it would take time.
        for bundle in self.bundles.values() if not ended_well else ():
            if bundle.id in self.had_container:
                await self.clean_up(bundle)
        left = await self.left()
        await self.abandon()
        return left

    async def left(self) -> list[str]:
        """What is still there of processes, mounts, sockets and files, after a moment."""
        found: list[str] = []

        def nothing() -> bool:
            found[:] = traces.find(self._traces, self._sockets - self.orphaned_sockets)
            return not found

        await until(nothing, _LEFT_SECONDS, every=0.05)
        return found

    async def abandon(self) -> None:
        """End and remove everything."""
        with anyio.CancelScope(shield=True):
            for stream in self._closing:
                await stream.aclose()
            for shim in self.shims:
                await shim.connection.aclose()
            await anyio.to_thread.run_sync(traces.sweep, self._traces, self._sockets)
            await self.receiver.stop()
            for descriptor in self._descriptors:
                asyncio.get_running_loop().remove_reader(descriptor)
                os.close(descriptor)
            self._descriptors.clear()
            shutil.rmtree(self.folder, ignore_errors=True)

    async def _end(self, task: Task) -> None:
        with suppress(errors.TaskdError):  # it may be paused, or have ended
            await task.shim.connection.call(
                task.shim.service, "Resume", b"\n" + bytes([len(task.id)]) + task.id.encode()
            )
        try:
            with suppress(errors.NotFound):
                await task.kill()
            await task.wait()
        except errors.FailedPrecondition:
            pass  # there is no process before Start
        await task.delete()


def _fields(message: betterproto2.Message, hidden: Sequence[str] = ()) -> str:
    """The fields of a message that are set, for people."""
    shown = []
    for name, value in vars(message).items():
        if name.startswith("_") or name in hidden or not value:
            continue
        if isinstance(value, Timestamp):
            value = "no time" if nanoseconds(value) < 0 else f"{nanoseconds(value) / 1e9:.3f}"
        shown.append(f"{name}={value}" if isinstance(value, int) else f"{name}={value!s}")
    return ", ".join(shown)
