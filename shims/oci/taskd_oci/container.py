"""A container of an OCI runtime.

Sources: containerd's ``pkg/process/init.go``, ``exec.go``, ``utils.go`` and
``runtime/v2/runc/container.go``, v1.7.24, whose errors these are, word by word.

What only a process that serves has need of is imported where it is used: see `taskd.shim.command`.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from functools import cached_property
from pathlib import Path

from taskd.errors import NotFound, TaskdError, Unknown
from taskd.shim import Container, Sandbox
from taskd_oci.runtime import Failed, Runtime, default_root, runtime_features

TYPE_CHECKING = False  # as of `typing`, which a shim's `delete` does without
if TYPE_CHECKING:
    from typing import Any, ClassVar

    import betterproto2

    from taskd.procfs import Stat
    from taskd.proto.containerd.runc.v1 import Options
    from taskd.shim import Completed, Pipes, Process
    from taskd.types import TypedValue

__all__ = ["Oci"]

_OPTIONS = "containerd.runc.v1.Options"
_SETTINGS = "options.json"
_CALL_SECONDS = 0.01
"""Between two looks at whether a call of the runtime has ended."""
_GONE = ("os: process already finished", "container not running", "no such process")


class Oci(Container):
    """One container of runc, crun, or whatever ``BinaryName`` names."""

    groups: ClassVar[Sequence[str]] = (
        "io.containerd.runc.v2.group",
        "io.kubernetes.cri.sandbox-id",
        *Container.groups,
    )
    # A pod's namespaces are its specification's affair: as with containerd 1.7's shim, there is
    # nothing to a sandbox but the process.
    sandboxes = Sandbox

    @classmethod
    def begin(cls) -> None:
        from taskd import moves

        moves.expect()

    @classmethod
    def features(cls, options: TypedValue | None) -> Mapping[str, Any] | None:
        return runtime_features(_settings(options).binary_name or "runc")

    @cached_property
    def settings(self) -> Options:
        """Raises `Unknown` for options of another type."""
        return _settings(self.options)

    @cached_property
    def runtime(self) -> Runtime:
        settings = self.settings
        return Runtime(
            settings.binary_name or "runc",
            Path(settings.root or default_root(), self.namespace),
            self.bundle / "log.json",
            settings.systemd_cgroup,
        )

    @property
    def pipes(self) -> Pipes:
        """CRIU takes no FIFO from outside a container.

        And what a runtime that fails says on its standard error, which is the process's, is not
        the container's output.
        """
        from taskd.shim import Pipes

        return Pipes(self.settings.io_uid, self.settings.io_gid)

    # --- lifecycle ------------------------------------------------------------------------

    async def create(self, init: Process) -> int:
        runtime = self.runtime
        (self.bundle / _SETTINGS).write_text(
            json.dumps({"binary": runtime.binary, "root": str(runtime.root)})
        )
        if self.checkpoint:
            return 0
        pid_file = self.bundle / "init.pid"
        options = ["--no-pivot"] if self.settings.no_pivot_root else []
        options += ["--no-new-keyring"] if self.settings.no_new_keyring else []
        command = ["create", "--bundle", str(self.bundle), "--pid-file", str(pid_file), *options]
        await self._begin(command, [self.id], init, "OCI runtime create failed")
        return int(pid_file.read_text())

    async def start(self, init: Process) -> int:
        if self.checkpoint:
            return await self._restore(init)
        await self._call("OCI runtime start failed", "start", self.id)
        return init.pid

    async def _restore(self, init: Process) -> int:
        pid_file = self.bundle / "init.pid"
        work = self.settings.criu_work_path or str(self.bundle / "work")
        command = [
            *("restore", "--image-path", self.checkpoint, "--work-path", work),
            *("--detach", "--pid-file", str(pid_file), "--no-subreaper"),
            *(["--no-pivot"] if self.settings.no_pivot_root else []),
            *("--bundle", str(self.bundle)),
        ]
        await self._begin(command, [self.id], init, "OCI runtime restore failed")
        return int(pid_file.read_text())

    async def exec(self, process: Process) -> int:
        pid_file, spec = self._pid_file(process), self.bundle / f"exec.{process.id}.json"
        spec.touch(0o600)  # its environment is nobody else's affair
        spec.write_text(json.dumps(process.spec))
        command = ["exec", "--process", str(spec), "--detach", "--pid-file", str(pid_file)]
        try:
            await self._begin(command, [self.id], process, "OCI runtime exec failed")
            return int(pid_file.read_text())
        except BaseException:
            # A runtime that was ended, or a terminal that was not sent, may leave it running.
            with suppress(OSError, ValueError):
                os.kill(int(pid_file.read_text()), signal.SIGKILL)
            raise
        finally:
            pid_file.unlink(missing_ok=True)
            spec.unlink(missing_ok=True)

    async def adopt(self, execs: Sequence[Process]) -> None:
        processes = (self.init, *execs)
        if self.init.doing == "checkpoint":
            await self._give_up_checkpoint()
        if any(each.doing for each in processes):
            await self._calls_end()
        for process in processes:
            if process.doing != "start":
                continue
            if process is not self.init:
                with suppress(OSError, ValueError):
                    process.pid = int(self._pid_file(process).read_text())
                    self._pid_file(process).unlink()
                    process.begun()
            elif self.checkpoint:
                raise Unknown("it was being restored")
            elif await self._state() != "created":
                process.begun()

    async def _state(self) -> str:
        try:
            found: str = json.loads((await self._run("state", self.id)).output)["status"]
        except (Failed, ValueError, KeyError) as exc:
            raise Unknown(f"OCI runtime state failed: {exc}") from exc
        return found

    async def _give_up_checkpoint(self) -> None:
        """End one that a shim has begun which has died: nobody takes it, and it may end all this.

        Without the runtime, CRIU lets the container go on, and ends.
        """
        import asyncio

        from taskd import procfs

        helpers = []
        for pid, words in self.runtime.calls():
            if b"checkpoint" in words:
                helpers += [each for each in procfs.processes() if each.parent == pid]
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        while any(map(_lives, helpers)):  # noqa: ASYNC110
            await asyncio.sleep(_CALL_SECONDS)

    async def _calls_end(self) -> None:
        """Wait until the runtime has come to an end with what a shim that has died had it do."""
        import asyncio

        while any(self.runtime.calls()):  # noqa: ASYNC110
            await asyncio.sleep(_CALL_SECONDS)

    def _pid_file(self, process: Process) -> Path:
        # Not a name that something else in the bundle has, whatever the client calls it.
        return self.bundle / f"exec.{process.id}.pid"

    async def ended(self) -> None:
        namespaces = (self.spec.get("linux") or {}).get("namespaces") or ()
        if not any(each.get("type") == "pid" and not each.get("path") for each in namespaces):
            # With a pid namespace of its own the kernel has done it.
            await self._call("OCI runtime killall failed", "kill", "--all", self.id, "9")

    async def delete(self) -> None:
        try:
            await self._run("delete", self.id)
        except Failed as exc:
            # It has gone by itself: runc deletes what it has checkpointed.
            if "does not exist" not in str(exc):
                raise self._explained("failed to delete task", exc) from exc

    async def abandon(self) -> None:
        # Not one of the same name that was there before.
        if (self.bundle / "init.pid").exists():
            await self._run("delete", "--force", self.id)

    async def kill(self, process: Process, signal: int, everyone: bool) -> None:
        if process is not self.init:
            await self._kill_exec(process, signal)
            return
        try:
            await self._run("kill", *(["--all"] if everyone else []), self.id, str(signal))
        except Failed as exc:
            raise _kill_error(str(exc)) from exc

    async def _kill_exec(self, process: Process, signal: int) -> None:
        try:
            os.kill(process.pid, signal)
        except OSError as exc:
            error = _kill_error((exc.strerror or "").lower())
            raise error.within("exec kill error") from exc

    # --- the rest -------------------------------------------------------------------------

    async def pause(self) -> None:
        await self._call("OCI runtime pause failed", "pause", self.id)

    async def resume(self) -> None:
        await self._call("OCI runtime resume failed", "resume", self.id)

    async def pids(self) -> list[int]:
        try:
            done = await self._run("ps", "--format", "json", self.id)
        except Failed as exc:
            raise Unknown(str(exc)) from exc
        return json.loads(done.output) or []

    async def stats(self) -> betterproto2.Message:
        try:
            return self.cgroup.stats()
        except OSError:
            raise NotFound("cgroup does not exist") from None

    async def update(self, resources: Mapping[str, Any], annotations: Mapping[str, str]) -> None:
        given = json.dumps(resources).encode()
        try:
            await self._run("update", "--resources=-", self.id, stdin=given)
        except Failed as exc:
            raise Unknown(str(exc)) from exc

    async def checkpoint_to(self, path: str, options: TypedValue | None) -> None:
        import shutil

        from taskd.codec import decode
        from taskd.proto.containerd.runc.v1 import CheckpointOptions

        given = decode(CheckpointOptions, options.value) if options else CheckpointOptions()
        work = given.work_path or str(self.bundle / "work" / "criu-work")
        flags = [
            *("--image-path", path, "--work-path", work),
            *(["--tcp-established"] if given.open_tcp else []),
            *(["--ext-unix-sk"] if given.external_unix_sockets else []),
            *(["--shell-job"] if given.terminal else []),
            *(["--file-locks"] if given.file_locks else []),
            *(each for name in given.empty_namespaces for each in ("--empty-ns", name)),
            *([] if given.exit else ["--leave-running"]),
        ]
        try:
            await self._run("checkpoint", *flags, self.id)
        except Failed as exc:
            dump = self.bundle / "criu-dump.log"
            with suppress(OSError):
                shutil.copyfile(Path(work, "dump.log"), dump)
            raise Unknown(f"{str(exc).splitlines()[0]} path= {dump}") from exc
        finally:
            if not given.work_path:
                shutil.rmtree(work, ignore_errors=True)

    @classmethod
    def clean_up(cls, id: str, namespace: str, bundle: Path) -> None:  # noqa: A002
        try:
            settings = json.loads((bundle / _SETTINGS).read_bytes())
        except (OSError, ValueError):
            settings = {"binary": "runc", "root": str(default_root() / namespace)}
        runtime = Runtime(settings["binary"], Path(settings["root"]), bundle / "log.json")
        # What a shim that was killed had it do goes on, and may make what is not there yet.
        runtime.kill_calls()
        # Without a pid it was being made, if it was not refused since there is one of that id.
        if (bundle / "init.pid").exists() or not runtime.is_elsewhere(id, bundle):
            runtime.remove(id)

    # --- calling the runtime --------------------------------------------------------------

    async def _begin(
        self, command: Sequence[str], last: Sequence[str], process: Process, doing: str
    ) -> None:
        """Run what leaves `process` behind, with its streams or a terminal."""
        try:
            if process.stdio.terminal:
                async with self._terminal(process) as flags:
                    await self._run(*command, *flags, *last)
            else:
                stdio = process.descriptors
                done = await self.run(self.runtime.command(*command, *last), stdio=stdio)
                self.runtime.check(done)
        except Failed as exc:
            raise self._explained(doing, exc) from exc
        except Unknown as exc:
            raise self._explained(doing, exc) from exc

    @asynccontextmanager
    async def _terminal(self, process: Process) -> AsyncIterator[list[str]]:
        async with self.console_socket() as socket:
            yield ["--console-socket", str(socket.path)]
            process.attach(await socket.receive())

    async def _call(self, doing: str, *arguments: str) -> None:
        try:
            await self._run(*arguments)
        except Failed as exc:
            raise self._explained(doing, exc) from exc

    async def _run(self, *arguments: str, stdin: bytes = b"") -> Completed:
        done = await self.run(self.runtime.command(*arguments), stdin=stdin)
        self.runtime.check(done)
        return done

    def _explained(self, doing: str, failed: Exception) -> Unknown:
        """What containerd's shim would say: the runtime's log knows best (``runtimeError``)."""
        try:
            words = self.runtime.last_error()
        except (OSError, ValueError) as exc:
            if isinstance(exc, OSError):
                exc = OSError(f"open {exc.filename}: {(exc.strerror or '').lower()}")
            words = f"unable to retrieve OCI runtime error ({exc}): {failed}"
        return Unknown(f"{doing}: {words or failed}")


def _settings(options: TypedValue | None) -> Options:
    from taskd.codec import MalformedMessage, decode
    from taskd.proto.containerd.runc.v1 import Options

    if options is None or not options.value:
        return Options()
    name = options.type_url.rpartition("/")[2]
    if name != _OPTIONS:
        raise Unknown(f"type with url {name}: not found")
    try:
        return decode(Options, options.value)
    except MalformedMessage as exc:
        raise Unknown(f"the runtime's options: {exc}") from exc


def _lives(known: Stat) -> bool:
    from taskd import procfs

    try:
        now = procfs.stat(known.pid)
    except OSError:
        return False
    return now.started == known.started and now.state != "Z"


def _kill_error(words: str) -> TaskdError:
    if any(each in words.lower() for each in _GONE):
        return NotFound("process already finished")
    if "does not exist" in words:
        return NotFound("no such container")
    return Unknown(f"unknown error after kill: {words}")
