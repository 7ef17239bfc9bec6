"""Mounts with mapped owners, which a runtime that does not know them would not map."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sysconfig
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest
from harness.containers import spec
from harness.daemons import Containerd, Daemon, Taskd
from harness.generations import GENERATIONS
from harness.leaks import leaving_nothing, traces
from harness.real import need

REFUSED = (
    "failed to validate OCI runtime features: idmap mounts not supported: "
    "missing `mountExtensions.idmap` entry in `features` command"
)
RUNC = """#!/bin/sh
if [ "$*" = features ]; then
    echo '{"linux": {"mountExtensions": {"idmap": {"enabled": true}}}}'
else
    exec REAL "$@"
fi
"""


@pytest.fixture(params=["containerd", "taskd"])
def daemon(request: pytest.FixtureRequest, folder: Path) -> Iterator[Daemon]:
    """With a runc at the head of its PATH that a test may put there."""
    need("containerd", "ctr", "runc", "busybox")
    newest = GENERATIONS[-1].binaries()
    assert newest is not None
    path = f"{folder}/bin:{sysconfig.get_path('scripts')}:{newest}:{os.environ['PATH']}"
    kind = Containerd if request.param == "containerd" else Taskd
    with kind(folder / "d", path=path) as running:
        yield running
    print(running.log.read_text())


@pytest.mark.parametrize("mapped", [True, False])
@pytest.mark.parametrize("known", [True, False])
def test_our_shim(
    daemon: Daemon, folder: Path, rootfs: Path, namespace: str, mapped: bool, known: bool
) -> None:
    real = shutil.which("runc")
    assert real is not None
    if b"mountExtensions" in subprocess.check_output([real, "features"]):
        pytest.fail("this runc knows them: the test is to be written anew")
    if known:
        (folder / "bin").mkdir()
        runc = folder / "bin" / "runc"
        runc.write_text(RUNC.replace("REAL", real))
        runc.chmod(0o755)
    document = json.loads(spec(rootfs, ["/bin/true"]).value)
    mount = {"destination": "/tmp", "type": "none", "source": "/tmp", "options": ["rbind"]}
    if mapped:
        mapping = [{"containerID": 0, "hostID": 1000, "size": 10}]
        mount |= {"uidMappings": mapping, "gidMappings": mapping}
    document["mounts"].append(mount)
    (folder / "config.json").write_text(json.dumps(document))
    with leaving_nothing(daemon, namespace) if isinstance(daemon, Taskd) else nullcontext():
        options = ["--runtime", "io.taskd.oci.v1", "--config", str(folder / "config.json")]
        done = daemon.ctr("run", "--rm", *options, "one", namespace=namespace, check=False)
        if mapped and not known:
            assert done.returncode == 1
            assert REFUSED in done.stderr
            if isinstance(daemon, Containerd):
                # It asks when the shim runs already, which it then forgets.
                for each in traces(daemon.state, daemon.root, namespace).processes:
                    os.kill(int(each.split()[0]), signal.SIGKILL)
        else:
            assert (done.returncode, done.stderr) == (0, "")
