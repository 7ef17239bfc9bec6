"""A virtual machine's disk: a plain Debian with systemd, and the project installed from wheels.

It is made as root from the Debian mirror of the machine's own apt, and from Python's package index.
The machine itself will have no network.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

__all__ = [
    "BOOKWORM",
    "KEPT",
    "KERNEL",
    "REPOSITORY",
    "TRIXIE",
    "Debian",
    "Image",
    "bootstrap",
    "build",
    "unpack_user_mode",
]

REPOSITORY = Path(__file__).parents[2]
HERE = Path(__file__).parent

KEPT = REPOSITORY / ".cache/vm"
"""Where that is kept which is worth it."""

VENV = "/opt/taskd"
"""Where the project is installed, as `docs/operate.md` tells operators to."""

TESTS = "/opt/tests"
"""Where the tests are, without the project beside them."""

KERNEL = "linux-image-cloud-amd64"
"""Debian's own, which user-mode Linux does without."""

_BASE = (
    *("systemd", "systemd-sysv", "udev", "dbus", "libpam-systemd", "dbus-user-session", "uidmap"),
    *("python3", "python3-venv", "procps", "iproute2", "mount"),
    *("containerd", "runc", "crun", "busybox-static"),
)
_TOOLS = (
    *("pytest>=8.3", "pytest-asyncio>=0.25", "pytest-timeout>=2.3", "hypothesis>=6.100"),
    "trustme>=1.2",
)
_SPARE = 2500
"""Megabytes of the disk that are left for the tests; until they are used they cost nothing."""


@dataclass(frozen=True)
class Debian:
    """A release, and what its Python and containerd are."""

    suite: str
    python: str
    containerd: str

    def __str__(self) -> str:
        return self.suite


BOOKWORM = Debian("bookworm", "3.11", "1.6")
TRIXIE = Debian("trixie", "3.13", "1.7")


@dataclass(frozen=True)
class Image:
    """What a machine is started from."""

    folder: Path
    """It has the disk, and Debian's kernel with its initrd, if that was among the packages."""
    user_mode: Path
    """The tree of user-mode Linux, whose kernel has its modules on the disk as well."""

    @property
    def disk(self) -> Path:
        return self.folder / "disk"

    @property
    def kernel(self) -> Path:
        return self.folder / "kernel"

    @property
    def initrd(self) -> Path:
        return self.folder / "initrd"


def build(debian: Debian, tree: Path, folder: Path) -> Image:
    """Make of a tree from `bootstrap` the disk of a machine that runs tests when it is started.

    Raises CalledProcessError; what was said is on standard error.
    """
    image = Image(folder, unpack_user_mode())
    _install(debian, tree, folder / "wheels")
    _lay_out(tree)
    modules = image.user_mode / "usr/lib/uml/modules"
    shutil.copytree(modules, tree / "usr/lib/modules", symlinks=True, dirs_exist_ok=True)
    for pattern, target in (("vmlinuz-*", image.kernel), ("initrd.img-*", image.initrd)):
        for found in (tree / "boot").glob(pattern):
            found.rename(target)
    used = int(_output("du", "--summarize", "--block-size=1M", str(tree)).split()[0])
    size = f"{used * 11 // 10 + _SPARE}M"
    _run("mke2fs", "-q", "-t", "ext4", "-d", str(tree), str(image.disk), size)
    shutil.rmtree(tree)
    return image


def unpack_user_mode() -> Path:
    """The newest user-mode Linux that Debian has: older ones know ptrace alone, which is slow."""
    tree = KEPT / "user-mode-linux"
    unpack = REPOSITORY / "tests/harness/unpack.sh"
    _run("sh", str(unpack), "--with-libraries", "sid", "user-mode-linux", str(tree))
    for name in ("proc", "dev", "mnt", "tmp"):
        (tree / name).mkdir(exist_ok=True)
    # These are links in a Debian that is installed, which packages take for granted.
    for name in ("bin", "lib", "lib64"):
        if not (tree / name).exists():
            (tree / name).symlink_to(f"usr/{name}")
    return tree


def bootstrap(debian: Debian, tree: Path, packages: Sequence[str] = ()) -> Path:
    """A tree with the release, and with these packages. Raises CalledProcessError."""
    mirror = _output(str(REPOSITORY / ".ci/mirror")).strip()
    left_out = [f"--dpkgopt=path-exclude=/usr/share/{each}/*" for each in ("doc", "locale", "man")]
    small = f"--essential-hook=copy-in {HERE}/guest/initramfs-tools /etc"
    options = ("--variant=minbase", "--dpkgopt=force-unsafe-io", "--dpkgopt=force-confold", small)
    include = f"--include={','.join((*_BASE, *packages))}"
    _run("mmdebstrap", *options, *left_out, include, debian.suite, str(tree), mirror)
    return tree


def _install(debian: Debian, tree: Path, wheels: Path) -> None:
    """As a user without a network would: a virtual environment, and a folder of wheels."""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    build = ("--no-deps", "--no-build-isolation", "--wheel-dir", str(wheels))
    _run(*pip, "wheel", *build, str(REPOSITORY))
    (own,) = wheels.glob("taskd_containers-*.whl")
    what = (f"{own}[metrics,uvloop]", *_TOOLS)
    which = ("--python-version", debian.python, "--only-binary=:all:")
    _run(*pip, "download", *which, "--dest", str(wheels), *what)
    inside = tree / "wheels"
    wheels.rename(inside)
    _run("chroot", str(tree), "python3", "-m", "venv", VENV, clean=True)
    names = ("taskd-containers[metrics,uvloop]", *_TOOLS)
    options = ("--quiet", "--no-index", "--find-links", "/wheels")
    _run("chroot", str(tree), f"{VENV}/bin/pip", "install", *options, *names, clean=True)
    shutil.rmtree(inside)


def _lay_out(tree: Path) -> None:
    """The tests, and the unit that runs them and turns the machine off."""
    place = tree / TESTS.lstrip("/")
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(REPOSITORY / "tests", place / "tests", ignore=ignored)
    shutil.copytree(REPOSITORY / "docs", place / "docs")  # some of which say what is tested
    shutil.copy(REPOSITORY / "pyproject.toml", place)
    units = tree / "etc/systemd/system"
    shutil.copy(HERE / "guest/tests.service", units)
    (units / "multi-user.target.wants").mkdir(exist_ok=True)
    (units / "multi-user.target.wants/tests.service").symlink_to("../tests.service")
    (tree / "etc/hostname").write_text("guest\n")
    # The tests have daemons of their own, and of AppArmor's profiles Docker loads its own.
    daemons = ("containerd.service", "docker.service", "docker.socket")
    for name in (*daemons, "apparmor.service"):
        (units / name).symlink_to("/dev/null")
    # Else the first start asks questions.
    (tree / "etc/machine-id").write_text(f"{uuid.uuid4().hex}\n")


def _run(*command: str, clean: bool = False) -> None:
    """With `clean`, nothing of this machine's settings of pip and the like is seen."""
    path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    env = {"PATH": path, "LANG": "C.UTF-8"} if clean else dict(os.environ)
    done = subprocess.run(
        command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    if done.returncode:
        print(done.stdout, file=sys.stderr)
        done.check_returncode()


def _output(*command: str) -> str:
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
