"""Classes of block I/O and RDT, from an annotation to the kernel."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness.containers import spec
from harness.daemons import Taskd, client
from harness.leaks import leaving_nothing
from harness.real import need

from taskd.proto.containerd.services.containers.v1 import (
    Container,
    ContainerRuntime,
    ContainersStub,
    CreateContainerRequest,
    DeleteContainerRequest,
)
from taskd.proto.containerd.services.tasks.v1 import (
    CreateTaskRequest,
    DeleteTaskRequest,
    StartRequest,
    TasksStub,
    WaitRequest,
)
from taskd.proto.google.protobuf import Any
from taskd.qos.blockio import device_number

RUNTIME = ContainerRuntime(name="io.containerd.runc.v2")
BYTES = 8 << 20
BYTES_PER_SECOND = 4_000_000


@pytest.fixture
def device(folder: Path) -> Iterator[str]:
    """A loop device on a file, twice as large as what is read of it."""
    need("losetup")
    image = folder / "disk"
    image.write_bytes(bytes(2 * BYTES))
    command = ["losetup", "--find", "--show", str(image)]
    found = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    try:
        yield found
    finally:
        subprocess.run(["losetup", "--detach", found], check=True)


def _settings(**keys: Path) -> str:
    return "".join(f'{key} = "{path}"\n' for key, path in keys.items())


def _annotated(document: Any, name: str, value: str, device: str = "") -> Any:
    """The specification with an annotation, and with a device in it."""
    found = json.loads(document.value)
    found["annotations"] = {f"{name}.resources.beta.kubernetes.io/pod": value}
    if device:
        major, minor = device_number(device)
        found["linux"]["devices"] = [
            {"path": "/dev/disk", "type": "b", "major": major, "minor": minor}
        ]
        found["linux"]["resources"] = {"devices": [{"allow": True, "access": "rwm"}]}
    document.value = json.dumps(found).encode()
    return document


async def test_a_throttled_device_is_slow(
    folder: Path, namespace: str, rootfs: Path, device: str
) -> None:
    need("containerd-shim-runc-v2", "runc")
    classes = folder / "blockio.yaml"
    classes.write_text(
        f"classes:\n  slow:\n  - devices: [{device}]\n    throttleReadBps: {BYTES_PER_SECOND}\n"
        f"  fast:\n  - devices: [{device}]\n    throttleReadBps: 1G\n"
    )
    seconds = {}
    arguments = ["/bin/busybox", "dd", "if=/dev/disk", "of=/dev/null", "bs=1M", "count=8"]
    arguments.append("iflag=direct")
    settings = _settings(blockio_config_file=classes)
    with (
        Taskd(folder / "taskd", settings=settings) as daemon,
        leaving_nothing(daemon, namespace),
    ):
        async with client(daemon.address, namespace) as channel:
            tasks, containers = TasksStub(channel), ContainersStub(channel)
            for name in ("fast", "slow"):
                document = _annotated(spec(rootfs, arguments), "blockio", name, device)
                container = Container(id="one", runtime=RUNTIME, spec=document)
                await containers.create(CreateContainerRequest(container=container))
                await tasks.create(CreateTaskRequest(container_id="one"))
                path = json.loads(document.value)["linux"]["cgroupsPath"]
                limits = Path(f"/sys/fs/cgroup/blkio{path}/blkio.throttle.read_bps_device")
                rate = BYTES_PER_SECOND if name == "slow" else 10**9
                assert limits.read_text().split() == [_number(device), str(rate)]
                begun = time.monotonic()
                await tasks.start(StartRequest(container_id="one"))
                ended = await tasks.wait(WaitRequest(container_id="one"))
                seconds[name] = time.monotonic() - begun
                assert ended.exit_status == 0
                await tasks.delete(DeleteTaskRequest(container_id="one"))
                await containers.delete(DeleteContainerRequest(id="one"))
    assert seconds["slow"] > 0.7 * BYTES / BYTES_PER_SECOND
    assert seconds["slow"] > 2 * seconds["fast"]


def _number(device: str) -> str:
    return ":".join(map(str, device_number(device)))


async def test_an_rdt_class_is_in_the_spec(folder: Path, namespace: str, rootfs: Path) -> None:
    """This machine has no resctrl: a folder stands for it, and the spec says what runc is told."""
    resctrl = folder / "resctrl"
    for name, value in {
        "info/L3/cbm_mask": "fff\n",
        "info/L3/min_cbm_bits": "1\n",
        "info/L3/num_closids": "16\n",
        "info/L3/shareable_bits": "0\n",
        "schemata": "    L3:0=fff;1=fff\n",
        "tasks": "",
    }.items():
        (resctrl / name).parent.mkdir(parents=True, exist_ok=True)
        (resctrl / name).write_text(value)
    classes = folder / "rdt.yaml"
    classes.write_text(
        'partitions:\n  all:\n    l3Allocation: "100%"\n    classes:\n'
        '      gold: {l3Allocation: "75%"}\n      bronze: {l3Allocation: "25%"}\n'
    )
    settings = _settings(rdt_config_file=classes, resctrl_path=resctrl)
    with Taskd(folder / "taskd", settings=settings) as daemon, leaving_nothing(daemon, namespace):
        (group,) = resctrl.glob("*gold")
        assert group.joinpath("schemata").read_text() == "L3:0=1ff;1=1ff\n"
        async with client(daemon.address, namespace) as channel:
            containers, tasks = ContainersStub(channel), TasksStub(channel)
            document = _annotated(spec(rootfs, ["/bin/sleep", "1000"]), "rdt", "gold")
            container = Container(id="one", runtime=RUNTIME, spec=document)
            await containers.create(CreateContainerRequest(container=container))
            # runc, which finds no resctrl either, goes on without.
            await tasks.create(CreateTaskRequest(container_id="one"))
            (bundle,) = daemon.state.glob("*/*/one/config.json")
            told = json.loads(bundle.read_text())
            assert told["linux"]["intelRdt"] == {"closID": group.name}
            await tasks.delete(DeleteTaskRequest(container_id="one"))
            await containers.delete(DeleteContainerRequest(id="one"))


@pytest.mark.parametrize(
    ("key", "text", "words"),
    [
        ("blockio_config_file", "classes:\n  a:\n  - weight: 5\n", ":3: weight: 5 is not from 10"),
        ("blockio_config_file", "classes: [\n", ":2: "),
        ("rdt_config_file", "partitions:\n  a:\n    l4: x\n", ":3: l4: unknown key"),
    ],
)
def test_a_bad_file_is_an_error_at_start_up(folder: Path, key: str, text: str, words: str) -> None:
    classes = folder / "classes.yaml"
    classes.write_text(text)
    with (
        pytest.raises(RuntimeError, match="did not start") as caught,
        Taskd(folder / "taskd", settings=_settings(**{key: classes})),
    ):
        pass
    assert f"{classes}{words}" in str(caught.value)
    assert "Traceback" not in str(caught.value)
