"""ctr prints the same against taskd as against containerd, command by command."""

from __future__ import annotations

import os
import re
import subprocess
import time
from pathlib import Path

import pytest
from harness.containers import make_rootfs
from harness.daemons import LATE_GC, Containerd, Daemon, Taskd
from harness.generations import GENERATIONS, Generation
from harness.real import need
from harness.registry import Image, Registry, busybox_layers

# Each row is one command; "{rootfs}" stands for the path of the root filesystem.
COMMANDS = """
version
namespaces create other a=b
namespaces ls
namespaces label other a=c d=e
namespaces ls
namespaces ls -q
namespaces create other
namespaces create b@d
namespaces rm other
namespaces rm other
run --rm --rootfs {rootfs} one /bin/sh -c 'echo out; echo err >&2; exit 42'
run --rm --rootfs {rootfs} one /no/such
run --rm --rootfs --runtime io.example.none.v7 {rootfs} one /bin/true
run --rm --rootfs --cwd /no/such {rootfs} one /bin/true
run --rm --rootfs --env A=B {rootfs} one /bin/sh -c 'echo $A'
containers create --rootfs --label a=b {rootfs} one /bin/sleep 1000
containers create --rootfs {rootfs} one /bin/true
containers create --rootfs {rootfs} o/ne /bin/true
containers ls
containers ls -q
containers ls labels.a==b
containers ls labels.a==c
containers ls a==
containers label one a=c d=e
containers ls -q labels.d==e
containers info one
containers info two
tasks ls
tasks delete one
tasks kill one
tasks ps one
tasks start -d one
tasks start -d one
tasks ls
tasks ls -q
tasks ps one
tasks exec --exec-id two one /bin/sh -c 'echo in; exit 7'
tasks exec --exec-id two one /no/such
tasks exec --exec-id t/wo one /bin/true
tasks pause one
tasks pause one
tasks ls
tasks resume one
tasks resume one
tasks metrics one
tasks delete one
tasks kill --exec-id nobody one
tasks kill --signal 0 one
tasks kill --signal SIGNONE one
tasks checkpoint two
tasks kill --signal SIGKILL one
SETTLE
tasks ls
tasks kill one
tasks exec --exec-id three one /bin/true
tasks delete one
tasks delete one
containers rm one
containers rm one
leases create --id mine a=b
leases create --id mine
leases create --id m/ine
leases ls
leases ls -q
leases rm mine
leases rm mine
"""

SNAPSHOTS = """
leases create --id held
snapshots prepare a
snapshots prepare a
snapshots prepare --target {folder}/a b
snapshots ls
snapshots usage a
snapshots usage -b a
snapshots commit base a
snapshots commit base b
snapshots prepare c base
snapshots prepare d nosuch
snapshots view v base
snapshots mounts {folder}/c c
snapshots mounts {folder}/c base
snapshots commit top c
snapshots prepare e top
snapshots view w top
snapshots tree
snapshots ls
snapshots ls kind==view
snapshots ls kind==
snapshots info top
snapshots info nosuch
snapshots label top x=y
snapshots info top
snapshots label top x=
snapshots usage
snapshots rm base
snapshots rm e w top
snapshots rm nosuch
snapshots ls
namespaces rm NAMESPACE
plugins ls type==io.containerd.snapshotter.v1,id==overlayfs
plugins ls type==io.containerd.snapshotter.v1,id==native
run --rm --snapshotter nosuch --rootfs {rootfs} one /bin/true
snapshots unpack nosuch
"""


# A pull tells how far it is by and by, so that only its end is compared. "{image}" is one.
IMAGES = """
images pull --plain-http {image} > /dev/null
images pull --plain-http {image}none > /dev/null
images pull --plain-http {image} > /dev/null
images ls
images ls -q
images ls name==nosuch
images check
images check -q
images label {image} a=b
images ls -q labels.a==b
images tag {image} tagged:1
images tag nosuch other:1
images tag {image} tagged:1
images export {folder}/one.tar {image}
images export {folder}/two.tar nosuch
images export --all-platforms {folder}/three.tar tagged:1
content ls -q
snapshots tree
run --rm {image} one /bin/cat /etc/motd
run --rm --read-only {image} one /bin/sh -c 'echo x > /x; echo $?'
run --rm nosuch one /bin/true
run -d --snapshotter native {image} two /bin/sleep 1000
run -d --snapshotter overlayfs {image} three /bin/sleep 1000
images push --plain-http {pushed} {image} > /dev/null
images push --plain-http {pushed} nosuch > /dev/null
images convert --uncompress {image} converted:1
images rm --sync nosuch
images rm --sync converted:1 tagged:1
images rm --sync {image}
content ls -q
snapshots ls
images import {folder}/one.tar > /dev/null
images import --no-unpack --base-name x/y {folder}/three.tar > /dev/null
images import {folder}/two.tar > /dev/null
images import {rootfs}/bin/busybox > /dev/null
images ls -q
images unpack {image} > /dev/null
run --rm {image} one /bin/ls /data
"""


def transcript(
    daemon: Daemon, namespace: str, rootfs: Path, commands: str, **names: str
) -> list[str]:
    lines = []
    for row in commands.strip().splitlines():
        if row == "SETTLE":
            time.sleep(0.5)
            continue
        command = daemon.ctr_command(namespace=namespace)
        done = subprocess.run(
            " ".join(command) + " " + row.format(rootfs=rootfs, folder=daemon.folder, **names),
            shell=True,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        text = f"$ {row}\n{done.stdout}{done.stderr}[{done.returncode}]\n"
        lines.append(normalised(text, daemon, namespace))
    return lines


def normalised(text: str, daemon: Daemon, namespace: str) -> str:
    """What may differ, under a name that does not."""
    for found, name in ((str(daemon.folder), "FOLDER"), (namespace, "NAMESPACE")):
        text = text.replace(found, name)
    rules = (
        (r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:?\d\d)?( \+0000 UTC)?", "TIME"),
        (r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", "UUID"),
        (r"(Version|Revision|Go version): .*", r"\1: VERSION"),
        (r"\n\s*WARNING: (version|revision) mismatch", ""),
        (r"fifo/\d+", "fifo/NUMBER"),
        (r"d=e,a=c", "a=c,d=e"),  # a map of Go's has no order
        (r"(?m)^(one +)\d+( +[A-Z])", r"\1PID\2"),
        (r"(?m)^\d+( +-)", r"PID\1"),
        (r"(?m)^(memory|cpuacct|cpu|pids|blkio|hugetlb)(\S*) +.*$", r"\1\2 VALUE"),
        (r"index=off,(.*)", r"\1,index=off"),  # which newer ones have last
        (r"NAMESPACE/\d+/", "NAMESPACE/NUMBER/"),
        (r'time="TIME" level=\w+ msg="(send failed|active check failed)".*\n', ""),
        (r"x=y,(containerd.io/gc.root=TIME)", r"\1,x=y"),
        (r" +", " "),
    )
    for pattern, name in rules:
        text = re.sub(pattern, name, text)
    return text


def test_every_command_prints_the_same(
    containerd: Containerd, folder: Path, namespace: str
) -> None:
    need("ctr")
    with Taskd(folder / "taskd") as taskd:
        theirs, ours = (
            transcript(
                daemon,
                f"{namespace}-{letter}",
                make_rootfs(daemon.folder / "rootfs"),
                COMMANDS,
            )
            for daemon, letter in ((containerd, "c"), (taskd, "t"))
        )
    compare(theirs, ours)


@pytest.mark.parametrize("generation", GENERATIONS, ids=str)
@pytest.mark.parametrize("snapshotter", ["overlayfs", "native"])
def test_every_command_about_snapshots_prints_the_same(
    generation: Generation, snapshotter: str, folder: Path, namespace: str
) -> None:
    need("containerd", "ctr")
    path = ":".join(filter(None, (str(generation.binaries() or ""), os.environ["PATH"])))
    commands = SNAPSHOTS.replace("NAMESPACE", namespace)
    commands = commands.replace("snapshots ", f"snapshots --snapshotter {snapshotter} ")
    with (
        Containerd(folder / "containerd", path=path) as containerd,
        Taskd(folder / "taskd", path=path, settings=LATE_GC) as taskd,
    ):
        theirs, ours = (
            transcript(daemon, namespace, make_rootfs(daemon.folder / "rootfs"), commands)
            for daemon in (containerd, taskd)
        )
    compare(theirs, ours)


@pytest.mark.skipif("TASKD_VM" in os.environ, reason="there is no docker-registry")
@pytest.mark.parametrize("generation", GENERATIONS, ids=str)
def test_every_command_about_images_prints_the_same(
    generation: Generation, folder: Path, namespace: str, tmp_path: Path
) -> None:
    need("containerd", "ctr", "busybox")
    path = ":".join(filter(None, (str(generation.binaries() or ""), os.environ["PATH"])))
    with (
        Registry(tmp_path / "registry") as registry,
        Containerd(folder / "containerd", path=path) as containerd,
        Taskd(folder / "taskd", path=path, settings=LATE_GC) as taskd,
    ):
        registry.put(Image(busybox_layers()), "a/image:1")
        found = []
        for daemon, letter in ((containerd, "c"), (taskd, "t")):
            own = f"{namespace}-{letter}"
            rootfs = make_rootfs(daemon.folder / "rootfs")
            names = {"image": registry.name("a/image:1"), "pushed": registry.name(f"{letter}/b:1")}
            found.append(transcript(daemon, own, rootfs, IMAGES, **names))
            for each in ("two", "three"):
                daemon.ctr("tasks", "rm", "-f", each, namespace=own, check=False)
                daemon.ctr("containers", "rm", each, namespace=own, check=False)
    compare(*found)


def compare(theirs: list[str], ours: list[str]) -> None:
    differing = [
        f"--- containerd\n{their}+++ taskd\n{our}"
        for their, our in zip(theirs, ours, strict=True)
        if their != our
    ]
    if differing:
        pytest.fail("\n".join(differing), pytrace=False)
