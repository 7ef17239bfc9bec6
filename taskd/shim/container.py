"""What a shim's author writes: a subclass of `Container`.

The SDK around it keeps the state of each process, refuses what cannot be done in it, and tells the
daemon what happens; a container only does what it is told.

What only a process that serves has need of is imported where it is used: see `taskd.shim.command`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path

from taskd.errors import NotFound, Unimplemented, Unknown, words
from taskd.shim import leftovers
from taskd.shim.document import document

TYPE_CHECKING = False  # as of `typing`, which a shim's `delete` does without
if TYPE_CHECKING:
    import asyncio
    from typing import Any, ClassVar

    import betterproto2

    from taskd import cgroups
    from taskd.shim.process import Process
    from taskd.shim.reaper import Completed, Ended, Reaper
    from taskd.shim.sandbox import Sandbox
    from taskd.shim.stdio import Pipes
    from taskd.types import TypedValue

__all__ = ["Container"]


class Container:
    """One container. A subclass says what its runtime does; `start` is the least it has to say.

    A method that is not overridden answers UNIMPLEMENTED, unless it says otherwise. What a method
    raises is the answer to the call: one of `taskd.errors`, or else UNKNOWN with the exception's
    text.
    """

    groups: ClassVar[Sequence[str]] = ("io.taskd.shim.group",)
    """Annotations of the specification that name a group: its containers share a shim process."""
    sandboxes: ClassVar[type[Sandbox] | None] = None
    """What its shim's sandboxes are; None for a shim without any."""

    def __init__(
        self,
        id: str,  # noqa: A002
        namespace: str,
        bundle: Path,
        reaper: Reaper,
        options: TypedValue | None = None,
        checkpoint: str = "",
    ) -> None:
        self.id = id
        self.namespace = namespace
        self.bundle = bundle
        """Folder with ``config.json``, ``rootfs`` (mounted), and ``work``, which is on disk."""
        self.options = options
        """The runtime's own options, as the client sent them."""
        self.checkpoint = checkpoint
        """Folder of a checkpoint to restore, or empty."""
        self.reaper = reaper
        self.init: Process
        self.sandbox: Sandbox | None = None
        """The one that it is in, if any."""

    @cached_property
    def spec(self) -> dict[str, Any]:
        """The OCI runtime specification. Raises `Unknown` if it is none."""
        try:
            text = (self.bundle / "config.json").read_bytes()
        except OSError as exc:
            raise Unknown(f"reading the specification: {words(exc)}") from exc
        return document(text, "the specification")

    @property
    def rootfs(self) -> Path:
        """The root filesystem, as the specification's ``root.path`` has it."""
        return Path(self.bundle, (self.spec.get("root") or {}).get("path", "rootfs"))

    @property
    def pipes(self) -> Pipes | None:
        """Whether processes get pipes of the shim's, instead of the client's FIFOs and files."""
        return None

    # --- what an author writes ------------------------------------------------------------

    @classmethod
    def begin(cls) -> None:
        """A process has begun that will serve containers. By default nothing."""

    @classmethod
    def features(cls, options: TypedValue | None) -> Mapping[str, Any] | None:
        """What the runtime can do: "Features" of the OCI specification (features.md).

        Asked for in a process of its own, before a container is made of a specification that not
        every runtime understands. By default nothing is known.
        """
        return None

    async def create(self, init: Process) -> int:
        """Prepare the container; the pid of its init process if there is one already, or 0.

        By default there is nothing to prepare.
        """
        return 0

    async def start(self, init: Process) -> int:
        """Start the container's own process; returns its pid."""
        raise Unimplemented("start")

    async def exec(self, process: Process) -> int:
        """Start one more process in the container; returns its pid."""
        raise Unimplemented("exec")

    async def kill(self, process: Process, signal: int, everyone: bool) -> None:
        """Send `signal` to a process, or to all of the container's. The process has not ended.

        By default: to the process, or its process group.
        """
        try:
            (os.killpg if everyone else os.kill)(process.pid, signal)
        except ProcessLookupError:
            raise NotFound("process already finished") from None

    async def delete(self) -> None:
        """Remove what the runtime has of a container that has stopped. By default nothing."""

    async def abandon(self) -> None:
        """Remove what a `create` that failed has left. By default: kill what `spawn` started."""
        leftovers.kill(self.bundle)

    async def ended(self) -> None:
        """The init process has ended: end what else runs. By default: kill what `spawn` started.

        Its exit is told to the daemon after those of all execs.
        """
        leftovers.kill(self.bundle)

    async def pause(self) -> None:
        raise Unimplemented("pause")

    async def resume(self) -> None:
        raise Unimplemented("resume")

    async def pids(self) -> list[int]:
        """Pids of all processes in the container."""
        raise Unimplemented("pids")

    async def stats(self) -> betterproto2.Message:
        """Usage of resources, in one of containerd's metric messages: see `taskd.cgroups`."""
        raise Unimplemented("stats")

    async def update(self, resources: Mapping[str, Any], annotations: Mapping[str, str]) -> None:
        """Set limits: ``linux.resources`` of the OCI specification."""
        raise Unimplemented("update")

    async def checkpoint_to(self, path: str, options: TypedValue | None) -> None:
        """Write a checkpoint into the folder `path`."""
        raise Unimplemented("checkpoint")

    async def adopt(self, execs: Sequence[Process]) -> None:
        """Go on with a container whose shim has died, in another process than it was made in.

        `init` and `execs` are as they were: each with its pid, if it had one, and with what had
        been kept (`Process.take`). Where `Process.doing` is "start", it is not known whether it was
        started: if it was, this is to say so (`Process.begun`, with its pid). What is raised says
        why the container cannot be gone on with: it is cleaned up after, as by default if it was
        about to be started.
        """
        if self.init.doing == "start":
            raise Unknown("it was being started")
        leftovers.kill_strangers(self.bundle, {process.pid for process in (self.init, *execs)})

    @classmethod
    def survives(cls) -> bool:
        """Whether its containers may go on in another process: if they are processes, or `adopt`
        is overridden.
        """
        return cls.end is Container.end or cls.adopt is not Container.adopt

    @classmethod
    def clean_up(cls, id: str, namespace: str, bundle: Path) -> None:  # noqa: A002
        """Remove what a shim that was killed has left, in a process of its own.

        By default: kill what `spawn` had started. What is mounted on ``rootfs`` is unmounted after.
        """
        leftovers.end(bundle)

    # --- what helps an author -------------------------------------------------------------

    async def run(self, command: Sequence[str], **options: Any) -> Completed:
        """Run a helper program to its end: see `Reaper.run`."""
        return await self.reaper.run(command, **options)

    async def spawn(
        self,
        command: Sequence[str],
        process: Process,
        *,
        env: Mapping[str, str] | None = None,
        cwd: str | os.PathLike[str] | None = None,
        pass_fds: Sequence[int] = (),
        blocked: Sequence[int] = (),
    ) -> int:
        """Start a program as `process`, in a session of its own, with its streams or a terminal.

        It has the descriptors `pass_fds` as well, under their numbers. The signals `blocked` wait
        until it lets them in.
        Returns its pid. Raises `Unknown` if there is no such program.
        """
        from signal import SIG_BLOCK, SIG_SETMASK, pthread_sigmask

        from taskd import inherited
        from taskd.shim.console import open_terminal, take_terminal

        master, descriptors, prepare = -1, process.descriptors, None
        if process.stdio.terminal:
            master, slave = open_terminal()
            descriptors, prepare = (slave, slave, slave), take_terminal
        mask = pthread_sigmask(SIG_BLOCK, blocked)
        try:
            started = inherited.popen(
                command,
                stdin=descriptors[0],
                stdout=descriptors[1],
                stderr=descriptors[2],
                env=env,
                cwd=cwd,
                pass_fds=pass_fds,
                start_new_session=True,
                preexec_fn=prepare,
            )
        except OSError as exc:
            if master >= 0:
                os.close(master)
            raise Unknown(f"{command[0]}: {(exc.strerror or str(exc)).lower()}") from exc
        finally:
            pthread_sigmask(SIG_SETMASK, mask)
            if master >= 0:
                os.close(descriptors[0])
        started.returncode = 0  # the reaper's business
        leftovers.note(self.bundle, started.pid)
        if master >= 0:
            process.attach(master)
        return started.pid

    def open_file(self, path: str) -> int:
        """A descriptor to read a regular file of the root filesystem. Raises OSError.

        Links in it lead nowhere else, as if it were the root of everything.
        """
        from taskd import rooted

        return rooted.open_file(self.rootfs, path)

    def console_socket(self) -> Any:
        """``async with container.console_socket() as socket``: where a runtime sends a terminal."""
        from taskd.shim.console import ConsoleSocket

        return ConsoleSocket.listening()

    @cached_property
    def cgroup(self) -> cgroups.Cgroup:
        """The cgroup of the init process. Raises OSError if it is not known.

        It is asked for when the process is there first: in the end, nobody can tell.
        """
        from taskd import cgroups

        return cgroups.of(self.init.pid)

    @property
    def owns_cgroup(self) -> bool:
        """Whether the container has a cgroup that is not the shim's. Raises OSError."""
        from taskd import cgroups

        return self.cgroup != cgroups.of(os.getpid())

    def end(self, pid: int) -> asyncio.Future[Ended]:
        """How a process will have ended. By default it is a child of this shim, or adopted."""
        return self.reaper.end(pid)
