"""Docker Engine as a client: a dockerd on folders of its own, and shell scripts that use it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from harness.daemons import Daemon
from harness.pace import SLOWER
from taskd import procfs
from taskd.cgroups import v2

__all__ = ["Dockerd", "NewestDockerd", "amid_a_kill", "unpacked"]

_HERE = Path(__file__).parent
_CACHE = _HERE.parents[1] / ".cache"

_PRELUDE = """
up() { name=$1; shift; docker run --detach --network none --name "$name" "$@" > /dev/null; }
state() { docker inspect --format "{{.State.Status}} {{.State.ExitCode}}" "$@"; }
field() { docker inspect --format "{{.$2}}" "$1"; }
soon() {  # COMMAND OUTPUT: for ten seconds at most
    end=$(($(date +%s) + patience))
    while [ $(date +%s) -le $end ]; do [ "$(eval "$1" 2>&1)" = "$2" ] && return; sleep 0.1; done
    echo "never $2: $1: $(eval "$1" 2>&1)"; exit 1
}
"""


class Dockerd(Daemon):
    """A dockerd on somebody's containerd socket, in a namespace of it, without a network.

    Leaving it removes its containers, stops it, and fails if anything of them is left.
    """

    def __init__(self, folder: Path, containerd: Path, namespace: str) -> None:
        super().__init__(folder)
        self.containerd = containerd
        self.namespace = namespace
        self._group = namespace
        if (v2.ROOT / "cgroup.controllers").exists() and Path("/run/systemd/system").exists():
            # There dockerd has systemd make cgroups. A dash would put it into another slice.
            self._group = f"{namespace.replace('-', '')}.slice"
        self._run_existed = Path("/run/docker").exists()

        self.program = "dockerd"

    def config(self) -> dict[str, Any]:
        # By default this key is in /etc/docker; there is no option for it.
        return {"deprecated-key-path": str(self.folder / "key.json")}

    def command(self) -> list[str]:
        config = self.folder / "daemon.json"
        config.write_text(json.dumps(self.config()))
        group = self._group if self._group.endswith(".slice") else f"/{self._group}"
        return [
            *(self.program, "--config-file", str(config), "--experimental", "--live-restore"),
            *("--host", f"unix://{self.address}", "--group", str(os.getgid())),
            *("--containerd", str(self.containerd), "--containerd-namespace", self.namespace),
            *("--containerd-plugins-namespace", f"{self.namespace}-plugins"),
            *("--data-root", str(self.root), "--exec-root", str(self.state)),
            *("--pidfile", str(self.folder / "pid"), "--cgroup-parent", group),
            *("--bridge", "none", "--iptables=false", "--ip6tables=false"),
            *("--ip-forward=false", "--ip-masq=false", "--userland-proxy=false"),
        ]

    def environment(self) -> dict[str, str]:
        """For the clients too. Another `docker` on the PATH may be too new for Debian's dockerd."""
        return super().environment() | {
            "PATH": f"/usr/bin:{os.environ['PATH']}",
            "DOCKER_HOST": f"unix://{self.address}",
            "DOCKER_CONFIG": str(self.folder / "client"),
        }

    def sh(self, script: str) -> str:
        """Run a shell script against this dockerd; returns all that it writes."""
        return subprocess.run(
            ["/bin/sh", "-c", f"patience={10 * SLOWER:.0f}\n{_PRELUDE}{script}"],
            env=self.environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=60,
            check=False,
            # `kill 0`, of a container that does not run, is not to end the tests.
            start_new_session=True,
        ).stdout

    def begin(self, *words: str) -> subprocess.Popen[str]:
        """Start a client that takes its time; what it writes can be read."""
        return subprocess.Popen(
            ["docker", *words],
            env=self.environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def remove_containers(self) -> None:
        self.sh("docker ps --all --quiet | xargs --no-run-if-empty docker rm --force --volumes")

    def __exit__(self, *_: object) -> None:
        try:
            self.remove_containers()
        finally:
            status = self.stop()
            left = self._left()
            self._sweep()
        assert (status, left) == (0, []), f"dockerd ended with {status} and left {left}"

    def _mounts(self) -> list[str]:
        mounts = [str(each.point) for each in procfs.mounts()]
        return [mount for mount in mounts if mount.startswith(str(self.folder))]

    def _cgroups(self) -> list[Path]:
        """The parents of all containers' cgroups, which dockerd leaves, and what is in them."""
        hierarchies = Path("/sys/fs/cgroup")
        parents = [*hierarchies.glob(f"*/{self._group}"), *hierarchies.glob(self._group)]
        return [Path(folder) for parent in parents for folder, _, _ in os.walk(parent)]

    def _left(self) -> list[str]:
        """What there is of containers."""
        # With live restore its data stays mounted on itself; so does the host's network.
        own = (str(self.root), str(self.state / "netns/default"))
        found = [mount for mount in self._mounts() if mount not in own]
        found += [str(folder) for folder in self._cgroups() if folder.name != self._group]
        for pattern in ("state/runtime-*/*/*", "state/containerd/*", "root/containers/*"):
            found += map(str, self.folder.glob(pattern))
        return found

    def _sweep(self) -> None:
        """Remove what dockerd never does, and what a failed test left."""
        for mount in reversed(self._mounts()):
            subprocess.run(["umount", "-l", mount], check=False)
        empty = [*reversed(self._cgroups())]
        if not self._run_existed:
            empty += [Path("/run/docker/plugins"), Path("/run/docker")]
        for folder in empty:
            with suppress(OSError):
                folder.rmdir()


class NewestDockerd(Dockerd):
    """The newest that Debian has, unpacked, with its clients and BuildKit's.

    With `image_store` it keeps images with containerd, in snapshots, and what it builds, too;
    otherwise by itself.
    """

    def __init__(
        self, folder: Path, containerd: Path, namespace: str, *, image_store: bool = True
    ) -> None:
        super().__init__(folder, containerd, namespace)
        self._image_store = image_store
        self.program = str(unpacked("docker.io") / "sbin/dockerd")
        plugins = folder / "client/cli-plugins"
        plugins.mkdir(parents=True)
        plugin = "libexec/docker/cli-plugins/docker-buildx"
        (plugins / "docker-buildx").symlink_to(unpacked("docker-buildx") / plugin)

    def config(self) -> dict[str, Any]:
        return {"features": {"containerd-snapshotter": self._image_store}}

    def environment(self) -> dict[str, str]:
        found = super().environment()
        return found | {"PATH": f"{unpacked('docker-cli') / 'bin'}:{found['PATH']}"}

    def _cgroups(self) -> list[Path]:
        """Without those that BuildKit keeps for as long as the machine runs."""
        return [each for each in super()._cgroups() if each.name != "buildkit"]

    def _sweep(self) -> None:
        for folder in super()._cgroups():
            if folder.name == "buildkit":
                with suppress(OSError):
                    folder.rmdir()
        super()._sweep()


_TWO_STEPS = """trap "echo term" TERM; trap "echo usr1; exit 5" USR1; echo ready
    while :; do sleep 1000 & wait $!; done"""
"""What hears that it is to stop, and stops when it is told once more."""


def amid_a_kill(docker: Dockerd, taskd: Daemon) -> None:
    """What is under way when taskd is killed ends as if it had not been, once it is back.

    One container of each pair ends while taskd is away, the other one afterwards.
    """
    early = ["ends-early", "stops-early", "restarts-early"]
    late = ["ends-late", "stops-late", "restarts-late"]
    everyone = [*early, *late]
    run = [f"up {name} busybox sh -c '{_TWO_STEPS}'" for name in everyone]
    ready = [f"soon 'docker logs {name}' ready" for name in everyone]
    assert docker.sh("\n".join(run + ready)) == ""
    pids = docker.sh(f"docker inspect --format '{{{{.State.Pid}}}}' {' '.join(everyone)}")
    pid_of = dict(zip(everyone, map(int, pids.split()), strict=True))
    verbs = {
        "wait": ("ends", "5\n"),
        "logs --follow": ("ends", "ready\nusr1\n"),
        "stop -t 100": ("stops", "NAME\n"),
        "restart -t 100": ("restarts", "NAME\n"),
    }
    clients = {
        (verb, name, says.replace("NAME", name)): docker.begin(*verb.split(), name)
        for verb, (what, says) in verbs.items()
        for name in (f"{what}-early", f"{what}-late")
    }
    try:
        told = [name for name in everyone if not name.startswith("ends")]
        heard = [f"soon 'docker logs {name}' 'ready\nterm'" for name in told]
        assert docker.sh("\n".join(heard)) == ""
        taskd.kill()
        for name in early:
            os.kill(pid_of[name], signal.SIGUSR1)
        taskd.start()
        for name in late:
            os.kill(pid_of[name], signal.SIGUSR1)
        for (verb, name, says), client in clients.items():
            said = client.communicate(timeout=60)[0]
            assert (verb, name, client.returncode, said) == (verb, name, 0, says)
    finally:
        for client in clients.values():
            client.kill()
            client.communicate()
    state = docker.sh("state ends-early ends-late stops-early stops-late")
    assert state == "exited 5\n" * 4
    again = [
        f"soon 'docker logs {name}' 'ready\nterm\nusr1\nready'; state {name}"
        for name in ("restarts-early", "restarts-late")
    ]
    assert docker.sh("\n".join(again)) == "running 0\n" * 2


@cache
def unpacked(package: str) -> Path:
    """The ``/usr`` of a package of sid's, fetched if need be."""
    tree = _CACHE / f"{package}-sid"
    unpack = ["sh", str(_HERE / "unpack.sh"), "sid", package, str(tree)]
    subprocess.run(unpack, check=True)
    return tree / "usr"
