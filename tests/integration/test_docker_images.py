"""The newest Docker Engine with its images in containerd's place, which taskd has, and without.

A case is a shell script, and a regular expression of all that it writes.
"""

from __future__ import annotations

import io
import os
import re
import shutil
import tarfile
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from harness.daemons import Taskd
from harness.docker import NewestDockerd, amid_a_kill
from harness.generations import GENERATIONS
from harness.leaks import leaving_nothing
from harness.real import need
from harness.registry import Image, Registry, busybox_layers, program

pytestmark = [
    pytest.mark.skipif("TASKD_VM" in os.environ, reason="nothing can be fetched there"),
    pytest.mark.timeout(300),  # programs may have to be fetched first
]

RUN = "docker run --rm --network none"

IMAGE_STORE, GRAPH_DRIVER = DRIVERS = "overlayfs", "overlay2"
"""Who keeps images, as Docker says it: containerd's snapshotter, or else Docker itself."""


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    need("busybox")
    program()
    with Registry(tmp_path_factory.mktemp("registry")) as found:
        found.put(Image(busybox_layers()), "library/thing:1")
        yield found


@pytest.fixture(scope="module")
def taskd() -> Iterator[Taskd]:
    need("dockerd", "containerd-shim-runc-v2", "runc", "busybox")
    folder = Path(tempfile.mkdtemp(prefix="taskd-"))
    path = f"{GENERATIONS[-1].binaries()}:{os.environ['PATH']}"
    with Taskd(folder / "taskd", "--log-level", "debug", path=path) as running:
        yield running
    shutil.rmtree(folder)


@pytest.fixture(scope="module", params=DRIVERS)
def docker(
    taskd: Taskd, rootfs: Path, registry: Registry, request: pytest.FixtureRequest
) -> Iterator[NewestDockerd]:
    namespace = f"test-{uuid.uuid4().hex[:12]}"
    running = NewestDockerd(
        taskd.folder.with_name(request.param),
        taskd.address,
        namespace,
        image_store=request.param == IMAGE_STORE,
    )
    with leaving_nothing(taskd, namespace), running:
        running.sh(f"tar -C {rootfs} -c . | docker import - busybox")
        yield running


DOCKERFILE = """
mkdir -p $DOCKER_CONFIG.build; cd $DOCKER_CONFIG.build
cat > Dockerfile <<'END'
FROM busybox
RUN echo one > /one && mkdir /folder && echo two > /folder/two
COPY file /copied
RUN rm /one
CMD ["/bin/sh", "-c", "cat /copied; ls -d /one 2>&1; ls /folder"]
END
echo copied > file
"""
BUILT = r"0\ncopied\nls: /one: No such file or directory\ntwo\n"

CASES = {
    "import, run": (
        f"{RUN} busybox sh -c 'echo out; exit 42'; echo $?; docker images --format '{{{{.ID}}}}'",
        "out\n42\n[0-9a-f]{12}\n",
    ),
    "pull, push": (
        f"""
        docker pull --quiet REGISTRY/library/thing:1
        {RUN} REGISTRY/library/thing:1 cat /etc/motd
        docker tag REGISTRY/library/thing:1 REGISTRY/other/thing:2
        docker push --quiet REGISTRY/other/thing:2
        docker rmi REGISTRY/library/thing:1 REGISTRY/other/thing:2 | grep -c Untagged
        docker pull --quiet REGISTRY/other/thing:2
        {RUN} REGISTRY/other/thing:2 cat /etc/motd
        docker rmi REGISTRY/other/thing:2 > /dev/null
        docker pull --quiet REGISTRY/none:1 2>&1 | grep -c 'not found'
        """,
        r"REGISTRY/library/thing:1\nhello from a layer\nREGISTRY/other/thing:2\n[24]\n"
        r"REGISTRY/other/thing:2\nhello from a layer\n1\n",
    ),
    "commit, diff, save, load": (
        f"""
        docker run --network none --name one busybox sh -c 'echo x > /made; rm /bin/ls'
        docker diff one
        docker commit one committed | cut -c 1-7; docker rm one
        {RUN} committed sh -c 'cat /made; [ -e /bin/ls ]; echo $?'
        docker save -o $DOCKER_CONFIG.tar committed
        docker rmi committed > /dev/null; docker load -i $DOCKER_CONFIG.tar
        {RUN} committed cat /made
        docker history --format '{{{{.CreatedBy}}}}' committed | head -n 1
        docker rmi committed > /dev/null
        """,
        r"(A /made|C /bin|D /bin/ls|\n)+sha256:\none\nx\n1\nLoaded image: committed:latest\nx\n"
        r"sh -c echo x.*\n",
    ),
    "build": (
        f"""
        {DOCKERFILE}
        DOCKER_BUILDKIT=0 docker build --network none -t built . > log 2>&1; echo $?
        {RUN} built 2>&1; docker rmi built > /dev/null
        """,
        BUILT,
    ),
    "build with BuildKit": (
        f"""
        {DOCKERFILE}
        docker build --network none -t built . > log 2>&1 || cat log; echo $?
        {RUN} built 2>&1
        docker build --network none -t built . 2>&1 | grep -c CACHED
        docker rmi built > /dev/null; docker builder prune -af | grep -c Total
        """,
        rf"{BUILT}[34]\n1\n",
    ),
    "exec, cp": (
        """
        up one busybox sleep 1000
        docker exec one sh -c 'echo in > /in; cat /in'
        echo there > $DOCKER_CONFIG.file; docker cp --quiet $DOCKER_CONFIG.file one:/there
        docker exec one cat /there; docker cp --quiet one:/in $DOCKER_CONFIG.back
        cat $DOCKER_CONFIG.back; docker rm -f one
        """,
        r"in\nthere\nin\none\n",
    ),
    "inspect, df": (
        """
        docker image inspect --format '{{.Os}} {{.Architecture}} {{.GraphDriver.Name}}' busybox
        docker system df --format '{{.Type}} {{.TotalCount}}' | head -n 2
        docker info --format '{{.Driver}}'
        """,
        r"linux amd64 DRIVER\nImages 1\nContainers 0\nDRIVER\n",
    ),
}


@pytest.mark.parametrize(("script", "expected"), CASES.values(), ids=CASES)
def test_case(docker: NewestDockerd, registry: Registry, script: str, expected: str) -> None:
    out = docker.sh(script.replace("REGISTRY", registry.host))
    docker.remove_containers()
    expected = expected.replace("REGISTRY", registry.host).replace("DRIVER", docker.folder.name)
    assert re.fullmatch(expected, out), out


def test_taskd_is_killed_while_docker_pulls(
    docker: NewestDockerd, taskd: Taskd, registry: Registry
) -> None:
    """A container lives on, and the next pull succeeds."""
    name = f"{registry.host}/library/thing:1"
    assert docker.sh("up one busybox sleep 1000") == ""
    docker.sh(f"(docker pull --quiet {name} > /dev/null 2>&1 &)")
    taskd.kill()
    taskd.start()
    deadline = time.monotonic() + 30
    while docker.sh(f"docker pull --quiet {name} > /dev/null 2>&1; echo $?") != "0\n":
        assert time.monotonic() < deadline
        time.sleep(0.2)
    assert docker.sh(f"{RUN} {name} cat /etc/motd") == "hello from a layer\n"
    assert docker.sh("docker exec one echo here; docker rm -f one") == "here\none\n"
    docker.sh(f"docker rmi {name}")


def test_what_is_under_way_while_taskd_is_killed(docker: NewestDockerd, taskd: Taskd) -> None:
    try:
        amid_a_kill(docker, taskd)
    finally:
        docker.remove_containers()


def test_dockerd_is_restarted(docker: NewestDockerd) -> None:
    """With live restore: its containers go on, and it has its images."""
    docker.sh("up stays busybox sh -c 'echo ready; sleep 1000'")
    pid = docker.sh("field stays State.Pid")
    docker.stop()
    docker.start()
    assert docker.sh("state stays; field stays State.Pid") == f"running 0\n{pid}"
    assert docker.sh(f"docker exec stays echo in; {RUN} busybox echo out") == "in\nout\n"
    docker.remove_containers()


@pytest.mark.parametrize("docker", [IMAGE_STORE], indirect=True)
def test_docker_py(docker: NewestDockerd, registry: Registry, tmp_path: Path) -> None:
    """What its users do most: pull, build, run, exec, logs, put and get, commit, events."""
    import docker as docker_py

    name = f"{registry.host}/library/thing"
    client = docker_py.DockerClient(base_url=f"unix://{docker.address}", timeout=30)
    with closing(client):
        image = client.images.pull(name, tag="1")
        assert image.tags == [f"{name}:1"]
        output = client.containers.run(image, ["cat", "/etc/motd"], remove=True, network="none")
        assert output == b"hello from a layer\n"
        (tmp_path / "Dockerfile").write_text(f"FROM {name}:1\nRUN echo built > /built\n")
        built, _ = client.images.build(path=str(tmp_path), tag="built", network_mode="none")
        running = client.containers.run(built, ["sleep", "1000"], detach=True, network_mode="none")
        try:
            assert running.exec_run(["cat", "/built"]) == (0, b"built\n")
            out = io.BytesIO()
            with tarfile.open(fileobj=out, mode="w") as file:
                entry = tarfile.TarInfo("put")
                entry.size = 3
                file.addfile(entry, io.BytesIO(b"in\n"))
            assert running.put_archive("/", out.getvalue())
            assert running.exec_run(["cat", "/put"]).output == b"in\n"
            assert running.commit("committed").id
            running.kill()
            assert running.wait()["StatusCode"] == 137
        finally:
            running.remove(force=True)
        output = client.containers.run("committed", ["cat", "/put"], remove=True, network="none")
        assert output == b"in\n"
        for each in ("committed", "built", f"{name}:1"):
            client.images.remove(each, force=True)


@pytest.mark.parametrize("docker", [IMAGE_STORE], indirect=True)
async def test_aiodocker(docker: NewestDockerd, registry: Registry) -> None:
    import aiodocker

    name = f"{registry.host}/library/thing:1"
    async with aiodocker.Docker(url=f"unix://{docker.address}") as client:
        await client.images.pull(name)
        assert name in (await client.images.inspect(name))["RepoTags"]
        config = {
            "Image": name,
            "Cmd": ["sh", "-c", "cat /etc/motd; exit 3"],
            "HostConfig": {"NetworkMode": "none"},
        }
        container = await client.containers.run(config=config)
        try:
            assert (await container.wait())["StatusCode"] == 3
            assert "".join(await container.log(stdout=True)) == "hello from a layer\n"
        finally:
            await container.delete(force=True)
        await client.images.delete(name, force=True)


def test_nothing_is_left_after_a_prune(docker: NewestDockerd, taskd: Taskd) -> None:
    docker.sh("docker system prune -af")
    said = docker.sh("docker system df --format '{{.Type}} {{.TotalCount}}'")
    assert said == "Images 0\nContainers 0\nLocal Volumes 0\nBuild Cache 0\n"
    for command in (("content", "ls", "-q"), ("leases", "ls", "-q"), ("images", "ls", "-q")):
        assert taskd.ctr(*command, namespace=docker.namespace).stdout == "", command
    assert taskd.ctr("snapshots", "ls", namespace=docker.namespace).stdout.splitlines()[1:] == []
