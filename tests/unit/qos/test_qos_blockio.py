from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from taskd.errors import InvalidArgument, Unknown
from taskd.qos import blockio
from taskd.qos.blockio import BlockIO, Number

DISKS = {"sda": (8, 0), "sdb": (8, 16), "loop1": (7, 1)}


class Machine:
    """Devices in a folder: each a file with its number in it, and what sysfs has of it."""

    def __init__(self, folder: Path) -> None:
        self.dev = folder / "dev"
        self.sysfs = folder / "sys"
        self.file = folder / "blockio.yaml"
        self.dev.mkdir()
        for name, number in DISKS.items():
            self.add(name, number)
        self.add("sda1", (8, 1)).joinpath("partition").touch()
        (self.dev / "tty").write_text("none")
        (self.dev / "ghost").write_text("9 9")
        (self.dev / "by-id").mkdir()
        (self.dev / "by-id/SSD").symlink_to("../sdb")

    def add(self, name: str, number: Number) -> Path:
        (self.dev / name).write_text("{} {}".format(*number))
        folder = self.sysfs / "dev/block/{}:{}".format(*number)
        (folder / "queue").mkdir(parents=True)
        (folder / "queue/scheduler").write_text("none [mq-deadline] bfq\n")
        return folder

    def number(self, path: str) -> Number:
        found = Path(path).read_text()
        if found == "none":
            raise ValueError("is not a block device")
        major, minor = map(int, found.split())
        return major, minor

    def load(self, text: str) -> BlockIO:
        self.file.write_text(text.replace("DEV", str(self.dev)))
        return blockio.load(self.file, sysfs=self.sysfs, number=self.number)

    def resolve(self, text: str) -> Any:
        """A class whose list is `text`, from line 3 on."""
        return self.load(f"Classes:\n  c:\n{text}").of_class("c")


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_every_limit_has_its_place_in_the_spec(machine: Machine) -> None:
    found = machine.resolve(
        "  - Weight: 80\n"
        "  - Devices: [DEV/sda]\n"
        "    ThrottleReadBps: 50M\n    ThrottleWriteBps: 10Mi\n"
        "    ThrottleReadIOPS: 10k\n    ThrottleWriteIOPS: 0\n    Weight: 50\n"
    )
    sda = {"major": 8, "minor": 0}
    assert found == {
        "weight": 80,
        "weightDevice": [sda | {"weight": 50}],
        "throttleReadBpsDevice": [sda | {"rate": 50_000_000}],
        "throttleWriteBpsDevice": [sda | {"rate": 10 << 20}],
        "throttleReadIOPSDevice": [sda | {"rate": 10_000}],
        "throttleWriteIOPSDevice": [sda | {"rate": 0}],
    }


def test_what_comes_later_overrides_for_each_device_and_limit(machine: Machine) -> None:
    found = machine.resolve(
        "  - Weight: 80\n"
        "  - Devices: ['DEV/sd[a-z]']\n    ThrottleReadBps: 1\n    ThrottleWriteBps: 2\n"
        "  - Devices: ['DEV/by-id/*SSD*']\n    ThrottleReadBps: 3\n"
        "  - Weight: 90\n"
    )
    assert found == {
        "weight": 90,
        "throttleReadBpsDevice": [
            {"major": 8, "minor": 0, "rate": 1},
            {"major": 8, "minor": 16, "rate": 3},
        ],
        "throttleWriteBpsDevice": [
            {"major": 8, "minor": 0, "rate": 2},
            {"major": 8, "minor": 16, "rate": 2},
        ],
    }


def test_patterns_match_whole_block_devices_and_may_match_none(
    machine: Machine, caplog: pytest.LogCaptureFixture
) -> None:
    found = machine.resolve("  - Devices: [DEV/*, DEV/nvme*]\n    ThrottleReadBps: 1\n")
    numbers = [(each["major"], each["minor"]) for each in found["throttleReadBpsDevice"]]
    assert sorted(numbers) == sorted(DISKS.values())
    where = f"{machine.file}:3: Devices: {machine.dev}"
    assert {message for message in caplog.messages if "by-id" not in message} == {
        f"{where}/sda1: is a partition, and only whole devices can be limited",
        f"{where}/tty: is not a block device",
        f"{where}/ghost: there is no such device",
        f"{where}/nvme* matches no device",
    }


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("DEV/sd[^b]", {"sda"}),
        (r"DEV/sd\a", {"sda"}),
        (r"DEV/sd\*", set()),
        ("DEV/.h*", {".hidden"}),
        ("DEV/?hidden", {".hidden"}),
        ("DEV/loop?", {"loop1"}),
    ],
)
def test_patterns_are_gos(machine: Machine, pattern: str, names: set[str]) -> None:
    numbers = DISKS | {".hidden": (1, 1)}
    machine.add(".hidden", numbers[".hidden"])
    found = machine.resolve(f"  - Devices: ['{pattern}']\n    ThrottleReadBps: 1\n")
    limits = {(each["major"], each["minor"]) for each in found.get("throttleReadBpsDevice", ())}
    assert limits == {numbers[name] for name in names}


def test_a_weight_that_the_scheduler_ignores_is_warned_of(
    machine: Machine, caplog: pytest.LogCaptureFixture
) -> None:
    (machine.sysfs / "dev/block/8:16/queue/scheduler").write_text("none mq-deadline [bfq]\n")
    with caplog.at_level(logging.WARNING):
        machine.resolve("  - Devices: [DEV/sda, DEV/sdb]\n    Weight: 100\n")
    assert caplog.messages == [
        f"{machine.file}:3: Devices: a weight has no effect on {machine.dev}/sda"
        " while its scheduler is mq-deadline and not bfq"
    ]


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("  - weight: 9", 3, "weight: 9 is not from 10 to 1000"),
        ("  - weight: 1001", 3, "weight: 1001 is not from 10 to 1000"),
        ("  - weight: many", 3, "weight: 'many' is not a quantity such as 100, 10M, or 1.5Gi"),
        ("  - Wieght: 10", 3, "Wieght: unknown key; known are Devices, Weight"),
        ("  - Weight: 10\n    weight: 20", 4, "weight: is given twice"),
        ("  - ThrottleReadBps: 1M", 3, "ThrottleReadBps: needs Devices beside it"),
        ("  - Devices: DEV/sda", 3, "Devices: is not a list"),
        ("  - Devices: [sda]", 3, "Devices: 'sda' is not an absolute path"),
        ("  - Devices:\n    - DEV/sda\n    - DEV/none", 5, "Devices: DEV/none matches no device"),
        ("  - Devices: [DEV/tty]", 3, "Devices: DEV/tty: is not a block device"),
        ("  - Devices: [DEV/sda1]", 3, "Devices: DEV/sda1: is a partition"),
        ("  - Devices: [DEV/ghost]", 3, "Devices: DEV/ghost: there is no such device"),
        ("  - Devices: ['DEV/sd[a']", 3, "Devices: 'DEV/sd[a' is not a pattern"),
        ("  - Devices: ['DEV/sd\\']", 3, "Devices: 'DEV/sd\\\\' is not a pattern"),
        ("  - Devices: [DEV/sda]\n    ThrottleReadBps: -1", 4, "ThrottleReadBps: -1 is not from 0"),
        ("  - 10", 3, "c: is not a mapping"),
        ("    Weight: 10", 2, "c: is not a list"),
    ],
)
def test_what_is_wrong_is_told_with_its_line(
    machine: Machine, text: str, line: int, words: str
) -> None:
    with pytest.raises(InvalidArgument) as caught:
        machine.resolve(text)
    expected = f"{machine.file}:{line}: {words}".replace("DEV", str(machine.dev))
    assert caught.value.message.startswith(expected)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0", 0),
        ("+7", 7),
        ("1k", 1000),
        ("1Ki", 1024),
        ("1.5Gi", 3 << 29),
        (".5k", 500),
        ("2e6", 2_000_000),
        ("2E+3", 2000),
        ("1E", 10**18),
        ("1500m", 2),
        ("1n", 1),
        ("''", None),
        ("", None),
    ],
)
def test_quantities_are_kubernetes(machine: Machine, text: str, expected: int | None) -> None:
    found = machine.resolve(f"  - Devices: [DEV/sda]\n    ThrottleReadBps: {text}\n")
    limits = found.get("throttleReadBpsDevice")
    assert limits == (None if expected is None else [{"major": 8, "minor": 0, "rate": expected}])


@pytest.mark.parametrize(
    "text", ["1K", "10 M", "1MB", "1ki", "M", ".", "e6", "1e9999", "9223372036854775808", "8Ei"]
)
def test_what_is_no_quantity(machine: Machine, text: str) -> None:
    with pytest.raises(InvalidArgument, match=f"{machine.file}:4: ThrottleReadBps: "):
        machine.resolve(f"  - Devices: [DEV/sda]\n    ThrottleReadBps: '{text}'\n")


def test_a_class_that_there_is_not(machine: Machine) -> None:
    with pytest.raises(Unknown, match='^no OCI BlockIO parameters for class "c"$'):
        machine.load("Classes: {}").of_class("c")


def test_a_file_is_no_device(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is not a block device"):
        blockio.device_number(str(tmp_path))
    with pytest.raises(ValueError, match="is not a block device"):
        blockio.device_number("/dev/null")
