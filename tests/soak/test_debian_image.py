"""A whole Debian as an image: what taskd makes of it is what containerd makes of it."""

from __future__ import annotations

import hashlib
import os
import stat
import subprocess
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from harness.daemons import Containerd, Daemon, Taskd
from harness.generations import GENERATIONS, Generation
from harness.real import need
from harness.registry import Image, Registry, program

pytestmark = pytest.mark.timeout(900)  # a distribution has to be fetched first

REPOSITORY = Path(__file__).parents[2]
NAMESPACE = "debian"
NAME = "library/debian:test"
CAPABILITY = bytes.fromhex("0100000200200000000000000000000000000000")
"""``cap_net_raw+ep``, as the kernel keeps it."""

Seen = dict[str, tuple[object, ...]]
"""Of each file what anybody could see of it, by its name."""


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Image:
    need("mmdebstrap", "runc", "ctr", "containerd", "containerd-shim-runc-v2")
    folder = tmp_path_factory.mktemp("debian")
    tree = folder / "tree"
    mirror = subprocess.check_output([str(REPOSITORY / ".ci/mirror")], text=True).strip()
    options = ("--quiet", "--variant=minbase", "--dpkgopt=force-unsafe-io")
    subprocess.run(["mmdebstrap", *options, "bookworm", str(tree), mirror], check=True)
    subprocess.run(["chroot", str(tree), "useradd", "-m", "-u", "1234", "somebody"], check=True)
    capable = tree / "usr/bin/capable"
    capable.write_bytes((tree / "usr/bin/cat").read_bytes())
    capable.chmod(0o755)
    os.setxattr(capable, "security.capability", CAPABILITY)
    home = tree / "home/somebody"
    (home / "one").write_bytes(b"one")
    os.link(home / "one", home / "another")
    os.chown(home / "one", 1234, 1234)
    os.mkfifo(home / "fifo")
    base = packed(folder / "base.tar", tree, ["."])
    (home / "one").write_bytes(b"changed")
    (home / "one").chmod(0o4711)
    (home / ".wh.fifo").touch()
    (tree / "usr/share/.wh.doc").touch()
    subprocess.run(["chroot", str(tree), "usermod", "-aG", "mail", "somebody"], check=True)
    names = ["home", "home/somebody", "home/somebody/one", "home/somebody/.wh.fifo"]
    names += ["usr", "usr/share", "usr/share/.wh.doc", "etc", "etc/group", "etc/gshadow"]
    top = packed(folder / "top.tar", tree, names, "--no-recursion")
    return Image((base, top), command=("/bin/bash",))


def packed(archive: Path, tree: Path, names: Sequence[str], *options: str) -> bytes:
    command = ("tar", "-C", str(tree), "--format=posix", "--xattrs", "--xattrs-include=*")
    subprocess.run([*command, "--numeric-owner", *options, "-cf", str(archive), *names], check=True)
    data = archive.read_bytes()
    archive.unlink()
    return data


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory, image: Image) -> Iterator[Registry]:
    program()
    with Registry(tmp_path_factory.mktemp("registry")) as found:
        found.put(image, NAME)
        yield found


def seen(root: Path) -> Seen:
    inodes: defaultdict[int, list[str]] = defaultdict(list)
    found: Seen = {}
    for path in sorted(root.rglob("*")):
        name, state = str(path.relative_to(root)), path.lstat()
        keys = os.listxattr(path, follow_symlinks=False)
        attributes = {each: os.getxattr(path, each, follow_symlinks=False) for each in keys}
        content: object = state.st_rdev
        if stat.S_ISLNK(state.st_mode):
            content = path.readlink()
        elif stat.S_ISREG(state.st_mode):
            content = hashlib.sha256(path.read_bytes()).hexdigest()
            inodes[state.st_ino].append(name)
        owner = state.st_uid, state.st_gid
        found[name] = (oct(state.st_mode), owner, state.st_mtime_ns, attributes, content)
    for names in inodes.values():
        for name in names:
            found[name] += (names,)
    return found


def pulled(daemon: Daemon, registry: Registry, place: Path) -> Seen:
    """What there is of the image where `daemon` has it; and it runs there."""

    def ctr(*arguments: str) -> str:
        return daemon.ctr(*arguments, namespace=NAMESPACE, timeout=300).stdout

    name = registry.name(NAME)
    ctr("images", "pull", "--plain-http", name)
    place.mkdir()
    ctr("images", "mount", name, str(place))
    try:
        found = seen(place)
    finally:
        ctr("images", "unmount", "--rm", str(place))
    script = "id somebody; cat /home/somebody/one"
    said = ctr("run", "--rm", name, "one", "/bin/bash", "-c", script)
    assert said == "uid=1234(somebody) gid=1234(somebody) groups=1234(somebody),8(mail)\nchanged"
    ctr("images", "rm", "--sync", name)
    return found


@pytest.mark.parametrize("generation", [GENERATIONS[0], GENERATIONS[-1]], ids=str)
def test_the_same_tree(registry: Registry, folder: Path, generation: Generation) -> None:
    binaries = generation.binaries()
    path = f"{binaries}:{os.environ['PATH']}" if binaries else ""
    with Containerd(folder / "c", path=path) as containerd:
        theirs = pulled(containerd, registry, folder / "theirs")
    with Taskd(folder / "t", path=path) as taskd:
        ours = pulled(taskd, registry, folder / "ours")
    # As text, and little of it: pytest would compare a hundred megabytes.
    missing = sorted(ours.keys() ^ theirs.keys())[:10]
    different = [
        f"{name}: {ours[name]}, and not {theirs[name]}"
        for name in sorted(ours.keys() & theirs.keys())
        if ours[name] != theirs[name]
    ][:10]
    assert (missing, different) == ([], [])
    assert len(ours) > 4000
    assert ours["usr/bin/capable"][3] == {"security.capability": CAPABILITY}
    assert "home/somebody/fifo" not in ours
    assert "usr/share/doc" not in ours
    assert ours["home/somebody/another"][4] != ours["home/somebody/one"][4]  # no longer one file
    assert any(len(names) > 1 for *_, names in (each for each in ours.values() if len(each) > 5))
