"""Images with containerd's own client, of each generation: from a registry and from archives."""

from __future__ import annotations

import json
import os
import re
import subprocess
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from harness.daemons import Taskd
from harness.generations import GENERATIONS, Generation
from harness.leaks import leaving_nothing
from harness.real import need
from harness.registry import PASSWORD, USER, Image, Registry, busybox_layers, layer, program

pytestmark = [
    pytest.mark.skipif("TASKD_VM" in os.environ, reason="there is no docker-registry"),
    pytest.mark.timeout(300),  # programs may have to be fetched first
]

Ctr = Callable[..., str]

NAME = "library/busybox:latest"


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    """A registry with TLS and a password, and an image in it."""
    need("busybox")
    program()
    with Registry(tmp_path_factory.mktemp("registry"), tls=True, password=True) as registry:
        registry.put(Image(busybox_layers()), NAME)
        yield registry


@pytest.fixture
def plain(tmp_path: Path) -> Iterator[Registry]:
    need("busybox")
    with Registry(tmp_path / "registry") as registry:
        registry.put(Image(busybox_layers()), NAME)
        yield registry


@pytest.fixture(params=GENERATIONS, ids=str)
def generation(request: pytest.FixtureRequest) -> Generation:
    found: Generation = request.param
    return found


@pytest.fixture
def daemon(folder: Path, generation: Generation) -> Iterator[Taskd]:
    """A taskd with the shims and the client of one generation."""
    need("containerd-shim-runc-v2", "runc", "ctr")
    binaries = generation.binaries()
    path = f"{binaries}:{os.environ['PATH']}" if binaries else ""
    with Taskd(folder / "taskd", "--log-level", "debug", path=path) as running:
        yield running
    print(running.log.read_text()[-20_000:])


@pytest.fixture
def ctr(daemon: Taskd, namespace: str) -> Iterator[Ctr]:
    def run(*arguments: str) -> str:
        done = daemon.ctr(*arguments, namespace=namespace)
        return done.stdout

    with leaving_nothing(daemon, namespace):
        yield run


def access(registry: Registry) -> list[str]:
    return ["--hosts-dir", str(registry.hosts_folder()), "--user", f"{USER}:{PASSWORD}"]


def remains(ctr: Ctr) -> list[str]:
    """What is left of images once they have been removed."""
    found = [*ctr("content", "ls", "-q").split(), *ctr("leases", "ls", "-q").split()]
    found += ctr("content", "active").splitlines()[1:]
    return found + ctr("snapshots", "ls").splitlines()[1:]


def test_from_a_registry_and_back(
    ctr: Ctr,
    secured: Registry,
    tmp_path: Path,
    daemon: Taskd,
    namespace: str,
    generation: Generation,
) -> None:
    name = secured.name(NAME)
    ctr("images", "pull", *access(secured), name)
    assert ctr("images", "ls", "-q").split() == [name]
    (row,) = ctr("images", "check").splitlines()[1:]
    assert "complete (4/4)" in row
    assert row.split()[-1] == "true"  # it is unpacked
    if "usage" in ctr("images", "--help"):
        assert len(ctr("images", "usage", name).splitlines()) == 4

    assert ctr("run", "--rm", name, "one", "/bin/cat", "/etc/motd") == "hello from a layer\n"
    assert ctr("run", "--rm", "--read-only", name, "one", "/bin/ls", "/data") == "large\n"

    place = tmp_path / "mounted"
    place.mkdir()
    ctr("images", "mount", name, str(place))
    assert (place / "etc/motd").read_text() == "hello from a layer\n"
    ctr("images", "unmount", "--rm", str(place))

    other = secured.name("other/copy:1")
    ctr("images", "tag", name, other)
    ctr("images", "push", *access(secured), other)
    assert "POST /v2/other/copy/blobs/uploads" in secured.log

    ctr("images", "rm", "--sync", name, other)
    assert remains(ctr) == []
    if generation.name == "2":  # others ask the registry themselves
        pull = ("images", "pull", "--http-dump", *access(secured), other)
        shown = daemon.ctr(*pull, namespace=namespace).stderr
        for line in ("HEAD /v2/other/copy/manifests/1", "HTTP/1.1 401", "Authorization: Basic"):
            assert line in shown
    else:
        ctr("images", "pull", *access(secured), other)
    assert ctr("run", "--rm", other, "one", "/bin/cat", "/etc/motd") == "hello from a layer\n"
    ctr("images", "rm", "--sync", other)
    assert remains(ctr) == []


def test_into_an_archive_and_back(
    ctr: Ctr, plain: Registry, tmp_path: Path, generation: Generation
) -> None:
    name, archive = plain.name(NAME), tmp_path / "image.tar"
    ctr("images", "pull", "--plain-http", name)
    before = sorted(ctr("content", "ls", "-q").split())
    ctr("images", "export", str(archive), name)
    with tarfile.open(archive) as file:
        manifests = json.load(file.extractfile("manifest.json"))  # type: ignore[arg-type]
        assert manifests[0]["RepoTags"] == [name]
        names = [f"sha256:{Path(each).name}" for each in file.getnames() if "/sha256/" in each]
    assert sorted(names) == before
    ctr("images", "rm", "--sync", name)
    assert remains(ctr) == []

    ctr("images", "import", str(archive))
    assert ctr("images", "ls", "-q").split() == [name]
    assert ctr("run", "--rm", name, "one", "/bin/cat", "/etc/motd") == "hello from a layer\n"
    ctr("images", "rm", "--sync", name)
    assert remains(ctr) == []

    if generation.name != "2":
        return  # those take no compressed ones
    compressed = Path(f"{archive}.gz")
    subprocess.run(["gzip", "-1", "-k", str(archive)], check=True)
    ctr("images", "import", str(compressed))
    ctr("images", "rm", "--sync", name)
    assert remains(ctr) == []


@pytest.mark.parametrize("generation", [GENERATIONS[-1]], ids=str)
def test_killed_in_the_middle(
    daemon: Taskd, ctr: Ctr, namespace: str, secured: Registry, generation: Generation
) -> None:
    """The daemon is killed again and again while it pulls: the pull that is not, succeeds."""
    name = secured.name(NAME)
    for attempt in range(5):
        pulling = subprocess.Popen(
            daemon.ctr_command("images", "pull", *access(secured), name, namespace=namespace),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + 10
        # Later each time: while the name is resolved, layers are fetched, and unpacked.
        while len([*daemon.root.glob("io.containerd.content.v1.content/*/*/*")]) < 2 * attempt:
            if pulling.poll() is not None or time.monotonic() > deadline:
                break
            time.sleep(0.002)
        daemon.kill()
        pulling.wait(20)
        daemon.start()
    ctr("images", "pull", *access(secured), name)
    assert ctr("run", "--rm", name, "one", "/bin/cat", "/etc/motd") == "hello from a layer\n"
    # ctr makes leases, too, and could not delete those: they would expire in a day.
    for lease in ctr("leases", "ls", "-q").split():
        ctr("leases", "rm", lease)
    ctr("images", "rm", "--sync", name)
    assert remains(ctr) == []
    folders = daemon.root / "io.containerd.snapshotter.v1.overlayfs/snapshots"
    deadline = time.monotonic() + 5
    while (left := [*folders.iterdir()]) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert left == []


@pytest.mark.parametrize("generation", [GENERATIONS[-1]], ids=str)
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ((), "tls: failed to verify certificate"),
        (("--user", "somebody:wrong"), "401 Unauthorized|authorization failed"),
        (("--plain-http",), "400|HTTP"),
    ],
)
def test_a_registry_that_one_may_not_use(
    daemon: Taskd,
    namespace: str,
    secured: Registry,
    tmp_path: Path,
    options: tuple[str, ...],
    words: str,
    generation: Generation,
) -> None:
    folder = secured.hosts_folder() if options[:1] == ("--user",) else tmp_path
    if not options:  # loopback is not looked at closely, unless somebody says so
        own = tmp_path / secured.host
        own.mkdir()
        (own / "hosts.toml").write_text(f'server = "https://{secured.host}"\nskip_verify = false\n')
    done = daemon.ctr(
        *("images", "pull", "--hosts-dir", str(folder), *options, secured.name(NAME)),
        namespace=namespace,
        check=False,
    )
    assert done.returncode
    assert re.search(words, done.stderr), done.stderr


def test_several_platforms(ctr: Ctr, plain: Registry, generation: Generation) -> None:
    """Only this machine's is fetched, unless others are asked for."""
    other = Image((layer({"other": b"x"}),), architecture="arm64")
    images = [Image(busybox_layers()), other]
    name = plain.name("a/many:1")
    plain.put_index(images, "a/many:1")
    ctr("images", "pull", "--plain-http", "--platform", "linux/amd64", name)
    assert ctr("run", "--rm", name, "one", "/bin/cat", "/etc/motd") == "hello from a layer\n"
    one = ctr("content", "ls", "-q").split()
    ctr("images", "rm", "--sync", name)
    assert remains(ctr) == []
    ctr("images", "pull", "--plain-http", "--all-platforms", name)
    every = ctr("content", "ls", "-q").split()
    assert {*one} < {*every}
    assert other.blobs[1].digest not in one
    assert other.blobs[1].digest in every
    ctr("images", "rm", "--sync", name)
    assert remains(ctr) == []
