#!/bin/sh
# crun 1.8.1 and runc 1.1.5 (Debian 12): what `exec --process` takes of the process that it is given. Needs root.
#
# Guess: all that the document says, as containerd's shims rely on, which hand every exec's process on in this way:
# its user with groups and umask, its limits, its oomScoreAdj.
# Seen: both take user, groups and limits. Only crun takes the umask; runc gives 0022, whatever the document and the
# container say. Neither takes oomScoreAdj: with runc it is the container's, and with crun that of whoever called it.
# (runc 1.3.6 gives the container's umask instead; crun 1.28 is as 1.8.1.)
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
chmod 755 .
apt-get download -qq 'crun=1.8.1-1+deb12u*' 'runc=1.1.5+ds1-1+deb12u*' \
    'libyajl2=2.1.0-3+deb12u*' 'busybox-static=1:1.35.0-4+*'
for package in *.deb; do
    dpkg -x "$package" system
done
cat >run.py <<'PYTHON'
import json
import os
import subprocess
import sys
from pathlib import Path

RUNTIMES = {"crun": "system/usr/bin/crun", "runc": "system/usr/sbin/runc"}
SHOW = "umask; cat /proc/self/oom_score_adj; ulimit -c; id -G"
rootfs = Path("rootfs").absolute()
for name in ("bin", "dev", "proc"):
    (rootfs / name).mkdir(parents=True)
(rootfs / "bin/busybox").hardlink_to("system/bin/busybox")
for name in ("cat", "id", "sh", "sleep"):
    (rootfs / "bin" / name).symlink_to("busybox")


def process(command, umask, score, blocks, groups):
    return {
        "args": ["sh", "-c", command],
        "cwd": "/",
        "env": ["PATH=/bin"],
        "user": {"uid": 0, "gid": 0, "umask": umask, "additionalGids": groups},
        "oomScoreAdj": score,
        "rlimits": [{"type": "RLIMIT_CORE", "soft": 512 * blocks, "hard": 512 * blocks}],
    }


def config(command):
    return {
        "ociVersion": "1.0.2",
        "root": {"path": str(rootfs)},
        "process": process(command, 0o27, 77, 8, [9]),
        "mounts": [{"destination": "/proc", "type": "proc", "source": "proc"}],
        "linux": {"namespaces": [{"type": "mount"}, {"type": "pid"}]},
    }


Path("exec.json").write_text(json.dumps(process(SHOW, 0o7, 123, 2, [5])))
libraries = ":".join(map(str, Path("system/usr/lib").absolute().glob("*-linux-gnu*")))
Path("/proc/self/oom_score_adj").write_text("11")


def ask(name, command, *arguments, stdout=subprocess.PIPE):
    done = subprocess.run(
        [RUNTIMES[name], "--root", f"state-{name}", command, *arguments, f"exec-{os.getpid()}-{name}"],
        env=os.environ | {"LD_LIBRARY_PATH": libraries},
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        check=True,
    )
    return (done.stdout or b"").decode().split()


found = {}
for name in RUNTIMES:
    Path("config.json").write_text(json.dumps(config(SHOW)))
    found[name] = [ask(name, "run")]
    Path("config.json").write_text(json.dumps(config("exec sleep 60")))
    ask(name, "run", "--detach", stdout=subprocess.DEVNULL)
    try:
        found[name].append(ask(name, "exec", "--process", "exec.json"))
    finally:
        ask(name, "delete", "--force")
    for what, (umask, score, limit, *groups) in zip(("container", "exec"), found[name], strict=True):
        print(f"{name}, {what}: umask {umask}, oomScoreAdj {score}, limit {limit}, groups {groups}")
container = ["0027", "77", "8", "0", "9"]
sys.exit(
    found
    != {
        "crun": [container, ["0007", "11", "2", "0", "5"]],
        "runc": [container, ["0022", "77", "2", "0", "5"]],
    }
)
PYTHON
# This crun does not want both versions of control groups to be mounted.
unshare --mount sh -euc '! mountpoint -q /sys/fs/cgroup/unified || umount /sys/fs/cgroup/unified; python3 run.py'
