"""Several machines in one: namespaces, which share the kernel and the cgroups, and little else."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Self

from harness.pace import SLOWER

__all__ = ["Fleet", "Machine"]

_NAMESPACES = ("--mount", "--uts", "--ipc", "--net", "--pid")

# `ip netns exec` would mount /sys anew, and so hide the cgroups.
_BOOT = """
set -e
hostname {name}
rm -rf {folder}/run
[ -e {folder}/etc ] || cp -a /etc {folder}/etc
for each in etc run srv var/lib; do
    mkdir -p {folder}/$each
    mount --bind {folder}/$each /$each
done
ip link set lo up
"""

_CABLE = """
set -e
ip link add {name} type veth peer name eth0 netns {pid}
ip link set {name} master switch up
nsenter --target {pid} --net sh -c 'ip address add {address}/24 dev eth0; ip link set eth0 up'
"""


class Machine:
    """A host's name, a network, processes, and ``/etc``, ``/run``, ``/srv`` and ``/var/lib``.

    Use it in ``with``. When it is killed, or left, everything on it ends; `folder`, its disk, goes
    when it is left. What makes cgroups on it has to do so below `cgroup`.
    """

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        self.folder = folder
        self.cgroup = f"test-{name}-{uuid.uuid4().hex[:8]}"
        self._init: subprocess.Popen[bytes] | None = None

    def boot(self) -> None:
        """Start it, on the disk that it had, if it has been killed."""
        self.folder.mkdir(parents=True, exist_ok=True)
        command = ["unshare", *_NAMESPACES, "--fork", "--kill-child", "--mount-proc"]
        # A shell, for somebody has to wait for the processes whose parents end.
        command += ["sh", "-c", "echo; while :; do sleep 1000; done"]
        self._init = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
        assert self._init.stdout is not None
        assert self._init.stdout.readline() == b"\n"
        self.check(_BOOT.format(name=self.name, folder=self.folder))

    @property
    def pid(self) -> int:
        """Its first process, as the real machine numbers it."""
        assert self._init is not None
        children = Path(f"/proc/{self._init.pid}/task/{self._init.pid}/children")
        return int(children.read_text())

    def run(self, script: str, *, timeout: float = 120.0) -> subprocess.CompletedProcess[str]:
        """Run a shell script on it; the output is that of both streams."""
        enter = ["nsenter", "--target", str(self.pid), *_NAMESPACES]
        return subprocess.run(
            [*enter, "--", "sh", "-c", script],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout * SLOWER,
            check=False,
        )

    def check(self, script: str) -> str:
        """The output of a script that has to succeed."""
        done = self.run(script)
        assert done.returncode == 0, f"{self.name}: {script}\n{done.stdout}"
        return done.stdout

    def until(self, script: str, expected: str, *, seconds: float) -> None:
        """Run a script again and again until it says what is expected."""
        deadline = time.monotonic() + seconds * SLOWER
        while (said := self.run(script).stdout) != expected:
            assert time.monotonic() < deadline, f"{self.name}: never {expected!r}\n{script}\n{said}"
            time.sleep(0.5)

    @contextmanager
    def network(self) -> Iterator[None]:
        """Have this thread use its network."""
        with (
            Path("/proc/thread-self/ns/net").open() as here,
            Path(f"/proc/{self.pid}/ns/net").open() as there,
        ):
            _enter(there.fileno())
            try:
                yield
            finally:
                _enter(here.fileno())

    def kill(self) -> None:
        """As a power cut does: all at once, the network too."""
        if self._init is None:
            return
        first = self.pid
        self._init.kill()
        assert self._init.stdout is not None
        self._init.stdout.close()
        self._init.wait()
        self._init = None
        # It ends when all others have.
        deadline = time.monotonic() + 60 * SLOWER
        while Path(f"/proc/{first}").exists():
            assert time.monotonic() < deadline, f"process {first} does not end"
            time.sleep(0.01)
        hierarchies = Path("/sys/fs/cgroup")
        for parent in (*hierarchies.glob(f"*/{self.cgroup}"), hierarchies / self.cgroup):
            for folder, _, _ in os.walk(parent, topdown=False):
                with suppress(FileNotFoundError):
                    Path(folder).rmdir()

    def __enter__(self) -> Self:
        try:
            self.boot()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        shutil.rmtree(self.folder)


class Fleet(dict[str, Machine]):
    """Machines by name on one switch, 192.168.1.1 and so on; use it in ``with``."""

    def __init__(self, folder: Path, *names: str) -> None:
        super().__init__((name, Machine(name, folder / name)) for name in names)
        self._switch = Machine("switch", folder / ".switch")
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            stack.enter_context(self._switch)
            self._switch.check("ip link add switch up type bridge")
            for machine in self.values():
                stack.enter_context(machine)
                self._connect(machine)
            self._stack = stack.pop_all()
        return self

    def boot(self, machine: Machine) -> None:
        """Start one of them again that has been killed."""
        machine.boot()
        self._connect(machine)

    def _connect(self, machine: Machine) -> None:
        address = f"192.168.1.{list(self).index(machine.name) + 1}"
        cable = _CABLE.format(name=machine.name, pid=machine.pid, address=address)
        # In the network of the switch alone: the machines' pids are the real machine's.
        enter = ["nsenter", "--target", str(self._switch.pid), "--net"]
        subprocess.run([*enter, "sh", "-c", cable], check=True)

    def __exit__(self, *_: object) -> None:
        self._stack.close()


def _enter(namespace: int) -> None:
    if ctypes.CDLL(None, use_errno=True).setns(namespace, 0):
        raise OSError(ctypes.get_errno(), "setns")
