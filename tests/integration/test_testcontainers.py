"""testcontainers-python on Docker Engine on taskd, on a machine where Docker has networks.

Its Ryuk, which removes what a killed test leaves, is off: nobody here has its image.
"""

from __future__ import annotations

import io
import json
import os
import socket
import sys
import tarfile
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import docker as docker_py
import pytest
from harness.docker import unpacked
from harness.generations import GENERATIONS
from harness.machines import Machine
from harness.pace import SLOWER
from harness.real import need
from testcontainers.core.config import testcontainers_config
from testcontainers.core.container import DockerContainer, ExecConfig
from testcontainers.core.image import DockerImage
from testcontainers.core.network import Network
from testcontainers.core.wait_strategies import (
    CompositeWaitStrategy,
    ExecWaitStrategy,
    HttpWaitStrategy,
    LogMessageWaitStrategy,
    PortWaitStrategy,
)

pytestmark = [
    pytest.mark.skipif("TASKD_VM" in os.environ, reason="nothing can be fetched there"),
    pytest.mark.timeout(600),  # programs may have to be fetched first
]
SECONDS = int(90 * SLOWER)


class Engine(Machine):
    """A machine with taskd and a dockerd."""

    taskd = 0
    """Its process, as this machine numbers it."""

    def start_taskd(self) -> None:
        serve = f"{sys.executable} -m taskd serve >> /srv/taskd.log 2>&1 & echo $!"
        self.taskd = int(self.check(serve))
        _until_it_listens(self.folder / "run/taskd/taskd.sock")

    def start_docker(self, program: str, rootfs: Path, **settings: object) -> None:
        (self.folder / "etc/docker").mkdir(exist_ok=True)
        about = json.dumps({"cgroup-parent": f"/{self.cgroup}", **settings})
        (self.folder / "etc/docker/daemon.json").write_text(about)
        self.check(f"{program} --containerd /run/taskd/taskd.sock >> /srv/dockerd.log 2>&1 &")
        image = io.BytesIO()
        with tarfile.open(fileobj=image, mode="w") as archive:
            archive.add(rootfs, ".")
        _until_it_listens(self.folder / "run/docker.sock")
        client = self.client()
        client.api.import_image_from_data(image.getvalue(), repository="busybox")
        client.close()

    @property
    def url(self) -> str:
        return f"unix://{self.folder}/run/docker.sock"

    def client(self) -> docker_py.DockerClient:
        return docker_py.DockerClient(base_url=self.url, timeout=SECONDS)


def _until_it_listens(path: Path) -> None:
    deadline = time.monotonic() + SECONDS
    with socket.socket(socket.AF_UNIX) as probe:
        while probe.connect_ex(str(path)):
            assert time.monotonic() < deadline, path
            time.sleep(0.1)


@pytest.fixture(scope="module", params=["20.10", "newest, image store"])
def engine(request: pytest.FixtureRequest, rootfs: Path) -> Iterator[Engine]:
    need("dockerd", "docker-proxy", "containerd-shim-runc-v2", "runc", "ip", "iptables")
    machine = Engine("engine", Path(tempfile.mkdtemp(prefix="taskd-")))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DOCKER_HOST", machine.url)
        patch.setattr(testcontainers_config, "ryuk_disabled", True)
        program, features = "/usr/sbin/dockerd", {}
        if request.param != "20.10":
            folder = unpacked("docker.io") / "sbin"
            program, features = f"{folder}/dockerd", {"containerd-snapshotter": True}
            path = [str(folder), str(GENERATIONS[-1].binaries()), os.environ["PATH"]]
            patch.setenv("PATH", ":".join(path))
        with machine:
            try:
                machine.start_taskd()
                machine.start_docker(program, rootfs, features=features)
                with machine.network():
                    yield machine
                client = machine.client()
                assert client.containers.list(all=True) == []
                assert {each.name for each in client.networks.list()} == {"bridge", "host", "none"}
                client.close()
            finally:
                for log in machine.folder.glob("srv/*.log"):
                    print(f"--- {log.name}\n{log.read_text()[-20_000:]}")


def web(greeting: str = "hello") -> DockerContainer:
    """A web server that says when it is ready."""
    command = 'mkdir /www; echo "$GREETING" > /www/index.html; echo ready; '
    command += "exec busybox httpd -f -p 8080 -h /www"
    return (
        DockerContainer("busybox")
        .with_command(["sh", "-c", command])
        .with_env("GREETING", greeting)
        .with_exposed_ports(8080)
        .waiting_for(LogMessageWaitStrategy("ready").with_startup_timeout(SECONDS))
    )


def page(container: DockerContainer) -> bytes:
    address = f"{container.get_container_host_ip()}:{container.get_exposed_port(8080)}"
    with urllib.request.urlopen(f"http://{address}/", timeout=SECONDS) as answer:
        return bytes(answer.read())


def test_waits(engine: Engine) -> None:
    """For a line of the log, a port, an answer and a command, one after another."""
    each = (
        LogMessageWaitStrategy("^ready$"),
        PortWaitStrategy(8080),
        HttpWaitStrategy(8080).for_status_code(200),
        ExecWaitStrategy(["ls", "/www/index.html"]),
    )
    ready = CompositeWaitStrategy(*each).with_startup_timeout(SECONDS)
    with web().waiting_for(ready) as container:
        assert page(container) == b"hello\n"


def test_exec_logs_files(engine: Engine, tmp_path: Path) -> None:
    (tmp_path / "mounted").write_text("mounted\n")
    container = (
        DockerContainer("busybox")
        .with_command(["sh", "-c", "echo out; echo err >&2; until [ -e /end ]; do sleep 0.1; done"])
        .with_volume_mapping(tmp_path, "/volume")
        .with_tmpfs_mount("/small", "size=1m")
        .with_copy_into_container(b"copied\n", "/before")
        .waiting_for(LogMessageWaitStrategy("err").with_startup_timeout(SECONDS))
    )
    with container:
        assert container.get_logs() == (b"out\n", b"err\n")
        assert container.exec("cat /volume/mounted /before").output == b"mounted\ncopied\n"
        assert container.exec(["sh", "-c", "exit 7"]).exit_code == 7
        about = ExecConfig(["sh", "-c", "pwd; echo $A"], environment={"A": "b"}, workdir="/small")
        assert container.exec(about) == (0, b"/small\nb\n")
        container.copy_from_container("/before", tmp_path / "back")
        assert (tmp_path / "back").read_bytes() == b"copied\n"
        container.copy_into_container(b"", "/end")
        assert container.wait() == 0


def test_one_that_ends_instead(engine: Engine) -> None:
    failing = DockerContainer("busybox").with_command(["sh", "-c", "echo no; exit 7"])
    failing.waiting_for(LogMessageWaitStrategy("ready").with_startup_timeout(SECONDS))
    with pytest.raises(RuntimeError, match="exit code: 7"), failing:
        pass


def test_containers_on_a_network(engine: Engine) -> None:
    with (
        Network() as network,
        web().with_network(network).with_network_aliases("web", "other"),
        DockerContainer("busybox").with_command("sleep 1000").with_network(network) as client,
    ):
        said = client.exec("busybox wget -q -O - http://web:8080/ http://other:8080/")
        assert said == (0, b"hello\nhello\n")


def test_an_image_is_built(engine: Engine, tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text("FROM busybox\nCOPY file /\nRUN cat /file > /run-too\n")
    (tmp_path / "file").write_text("built\n")
    with (
        DockerImage(tmp_path, tag="built:1") as image,
        DockerContainer(str(image)).with_command("cat /run-too") as container,
    ):
        assert container.wait() == 0
        assert container.get_logs()[0] == b"built\n"


def test_taskd_is_killed_meanwhile(engine: Engine) -> None:
    with web() as container:
        engine.check(f"kill -KILL {engine.taskd}")
        assert page(container) == b"hello\n"
        engine.start_taskd()
        deadline = time.monotonic() + SECONDS
        # dockerd looks for its containerd ever more rarely.
        while container.exec("echo here") != (0, b"here\n"):
            assert time.monotonic() < deadline
            time.sleep(0.2)
        assert page(container) == b"hello\n"
