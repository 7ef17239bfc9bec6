#!/bin/sh
# crun 1.8.1 and runc 1.1.5 (Debian 12), with one bundle: the state that hooks get on their standard input. Needs root.
#
# Guess: as the runtime specification has it, "creating" in prestart, createRuntime and createContainer, "created" in
# startContainer, "running" in poststart, which is called when the process has been started, and "stopped" in
# poststop, with both; and the process's pid wherever there is one, as the hook sees it.
# Seen: to crun the container is "created" in the first three already, "starting" in startContainer, which is none of
# the specification's words, and in its own namespace a hook is told pid 0. To runc the container is still "created"
# in poststart. A hook that goes by the status works with one of the two. (So it is with crun 1.28 and runc 1.3.6.)
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
HOOKS = ("prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop")
rootfs = Path("rootfs").absolute()
for name in ("bin", "dev", "proc", "told"):
    (rootfs / name).mkdir(parents=True)
busybox = rootfs / "bin/busybox"
busybox.hardlink_to("system/bin/busybox")
told = rootfs / "told"


def hook(name):
    # In startContainer alone the root is the container's.
    inside = name == "startContainer"
    program, folder = ("/bin/busybox", "/told") if inside else (str(busybox), str(told))
    return {"path": program, "args": ["sh", "-c", f"{program} cat >{folder}/{name}"]}


CONFIG = {
    "ociVersion": "1.0.2",
    "root": {"path": str(rootfs)},
    "process": {"args": ["/bin/busybox", "true"], "cwd": "/", "user": {"uid": 0, "gid": 0}},
    "mounts": [{"destination": "/proc", "type": "proc", "source": "proc"}],
    "linux": {"namespaces": [{"type": "mount"}, {"type": "pid"}]},
    "hooks": {name: [hook(name)] for name in HOOKS},
}
Path("config.json").write_text(json.dumps(CONFIG))
libraries = ":".join(map(str, Path("system/usr/lib").absolute().glob("*-linux-gnu*")))
found = {}
for name, program in RUNTIMES.items():
    subprocess.run(
        [program, "--root", f"state-{name}", "run", f"hooks-{os.getpid()}-{name}"],
        env=os.environ | {"LD_LIBRARY_PATH": libraries},
        stdin=subprocess.DEVNULL,
        check=True,
    )
    for each in HOOKS:
        state = json.loads((told / each).read_text())
        pid = state.get("pid", 0)
        found[name, each] = (state["status"], "its pid" if pid > 1 else f"pid {pid}")
        print(f"{name}, {each}:", *found[name, each])
        (told / each).unlink()
crun = [("created", "its pid")] * 2 + [("created", "pid 0"), ("starting", "pid 0"), ("running", "its pid")]
runc = [("creating", "its pid")] * 2 + [("creating", "pid 1"), ("created", "pid 1"), ("created", "its pid")]
stopped = ("stopped", "pid 0")
sys.exit(list(found.values()) != [*crun, stopped, *runc, stopped])
PYTHON
# This crun does not want both versions of control groups to be mounted.
unshare --mount sh -euc '! mountpoint -q /sys/fs/cgroup/unified || umount /sys/fs/cgroup/unified; python3 run.py'
