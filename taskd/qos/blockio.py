"""Block I/O classes: weights and throttles of devices, under a name that an annotation gives.

Source: goresctrl's ``pkg/blockio``, with which containerd reads its ``blockio_config_file``. Its
rules: what comes later in a class's list overrides what came before, for each device and limit by
itself; a pattern may match nothing; links are followed; partitions cannot be limited.
"""

from __future__ import annotations

import glob
import logging
import math
import os
import re
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from taskd.errors import Unknown
from taskd.qos import document
from taskd.qos.document import Value

__all__ = ["BlockIO", "Number", "device_number", "load"]

log = logging.getLogger(__name__)

Number = tuple[int, int]
"""A device's major and minor number."""

_RATES = {
    "ThrottleReadBps": "throttleReadBpsDevice",
    "ThrottleWriteBps": "throttleWriteBpsDevice",
    "ThrottleReadIOPS": "throttleReadIOPSDevice",
    "ThrottleWriteIOPS": "throttleWriteIOPSDevice",
}
_WEIGHTS = (10, 1000)
_RATE_BOUNDS = (0, 2**63 - 1)

_SUFFIXES = {
    **{suffix: Fraction(1000) ** power for power, suffix in enumerate(["n", "u", "m", ""], -3)},
    **{suffix: Fraction(1000) ** power for power, suffix in enumerate("kMGTPE", 1)},
    **{f"{suffix}i": Fraction(1024) ** power for power, suffix in enumerate("KMGTPE", 1)},
}


@dataclass(frozen=True, slots=True)
class BlockIO:
    """Classes by name, each as ``linux.resources.blockIO`` of an OCI spec."""

    classes: Mapping[str, Mapping[str, Any]]

    def of_class(self, name: str) -> Mapping[str, Any]:
        """Raises `Unknown` for a class that there is not, in containerd's words."""
        try:
            return self.classes[name]
        except KeyError:
            raise Unknown(f'no OCI BlockIO parameters for class "{name}"') from None


def device_number(path: str) -> Number:
    """The number of a block device's node. Raises OSError, and ValueError for another file."""
    found = os.stat(path)  # noqa: PTH116 - glob and the configuration have paths as text
    if not stat.S_ISBLK(found.st_mode):
        raise ValueError("is not a block device")
    return os.major(found.st_rdev), os.minor(found.st_rdev)


def load(
    file: Path,
    *,
    sysfs: Path = Path("/sys"),
    number: Callable[[str], Number] = device_number,
) -> BlockIO:
    """Read classes, and find the devices that there are now.

    `sysfs` and `number` are for tests. Raises `InvalidArgument`, naming file, line, and key, for
    what is wrong in the file, and for a device that it names in full and that cannot be limited;
    goresctrl ignores both with a warning. What a pattern matches and cannot be limited is left out.
    """
    classes = document.load(file).fields("Classes").get("Classes")
    loader = _Loader(sysfs, number)
    found = classes.mapping() if classes else {}
    return BlockIO({name: loader.resolve(sets) for name, sets in found.items()})


@dataclass(frozen=True, slots=True)
class _Loader:
    sysfs: Path
    number: Callable[[str], Number]

    def resolve(self, sets: Value) -> dict[str, Any]:
        """One class: a list of limits, each list entry with the devices that it is for."""
        weight: int | None = None
        weights: dict[Number, int] = {}
        rates: dict[str, dict[Number, int]] = {name: {} for name in _RATES}
        for entry in sets.items():
            fields = entry.fields("Devices", "Weight", *_RATES)
            devices = fields.pop("Devices", None)
            limits = {
                name: quantity(value, _WEIGHTS if name == "Weight" else _RATE_BOUNDS)
                for name, value in fields.items()
                if value.text()
            }
            if devices is None or devices.is_null:
                for name in limits:
                    if name != "Weight":
                        raise fields[name].error("needs Devices beside it")
                weight = limits.get("Weight", weight)
                continue
            for device in self.find(devices, weighted="Weight" in limits):
                for name, limit in limits.items():
                    (weights if name == "Weight" else rates[name])[device] = limit
        found: dict[str, Any] = {} if weight is None else {"weight": weight}
        if weights:
            found["weightDevice"] = _per_device(weights, "weight")
        for name, of_devices in rates.items():
            if of_devices:
                found[_RATES[name]] = _per_device(of_devices, "rate")
        return found

    def find(self, patterns: Value, *, weighted: bool) -> list[Number]:
        """The devices that the patterns of a list match, each once."""
        found: dict[Number, None] = {}
        for value in patterns.items():
            pattern = value.text()
            if not pattern.startswith("/"):
                raise value.error(f"{pattern!r} is not an absolute path")
            translated = _python_glob(value)
            exact = not glob.has_magic(translated)
            paths = sorted(glob.glob(translated, include_hidden=True))  # noqa: PTH207 - absolute
            if not paths:
                words = f"{pattern} matches no device"
                if exact:
                    raise value.error(words)
                log.warning("%s", value.error(words))
            for path in paths:
                try:
                    device = self.check(path)
                except (OSError, ValueError) as exc:
                    error = value.error(f"{path}: {getattr(exc, 'strerror', None) or exc}")
                    if exact:
                        raise error from None
                    log.warning("%s", error)
                    continue
                if weighted:
                    self.check_scheduler(value, path, device)
                found[device] = None
        return list(found)

    def check(self, path: str) -> Number:
        """Raises OSError or ValueError for what is no whole block device."""
        device = self.number(path)
        folder = self.folder(device)
        if not folder.exists():
            raise ValueError("there is no such device")
        # goresctrl takes every minor number that 16 does not divide for a partition's, which
        # leaves out whole disks such as /dev/loop1; the kernel knows.
        if (folder / "partition").exists():
            raise ValueError("is a partition, and only whole devices can be limited")
        return device

    def check_scheduler(self, value: Value, path: str, device: Number) -> None:
        try:
            schedulers = (self.folder(device) / "queue/scheduler").read_text()
        except OSError:
            return
        chosen = re.search(r"\[(.+?)\]", schedulers)
        name = chosen[1] if chosen else schedulers.strip()
        if name not in ("bfq", "cfq"):
            words = f"a weight has no effect on {path} while its scheduler is {name} and not bfq"
            log.warning("%s", value.error(words))

    def folder(self, device: Number) -> Path:
        return self.sysfs / f"dev/block/{device[0]}:{device[1]}"


def quantity(value: Value, bounds: tuple[int, int]) -> int:
    """A number with Kubernetes's suffixes: ``10M``, ``1.5Gi``, ``2e6``; fractions are rounded up.

    Raises `InvalidArgument` if it is none, or not within `bounds`.
    """
    text = value.text()
    match = re.fullmatch(r"([-+]?(?:\d+\.?\d*|\.\d+))(?:[eE]([-+]?\d{1,3})|([a-zA-Z]*))", text)
    if match is None or (match[3] or "") not in _SUFFIXES:
        raise value.error(f"{text!r} is not a quantity such as 100, 10M, or 1.5Gi")
    scale = Fraction(10) ** int(match[2]) if match[2] else _SUFFIXES[match[3] or ""]
    amount = math.ceil(Fraction(match[1]) * scale)
    if not bounds[0] <= amount <= bounds[1]:
        raise value.error(f"{text} is not from {bounds[0]} to {bounds[1]}")
    return amount


def _python_glob(value: Value) -> str:
    """Go's pattern as Python's: they differ in how they negate and how they quote."""
    pattern = value.text()
    unquoted = re.sub(r"\\.", "", pattern)
    if "\\" in unquoted or re.search(r"\[[^\]]*$", unquoted):
        raise value.error(f"{pattern!r} is not a pattern")
    return re.sub(r"\\(.)|\[\^", lambda found: glob.escape(found[1]) if found[1] else "[!", pattern)


def _per_device(limits: Mapping[Number, int], what: str) -> list[dict[str, int]]:
    return [{"major": m[0], "minor": m[1], what: limit} for m, limit in limits.items()]
