"""RDT classes as a file has them: shares of caches and of memory bandwidth, under a name.

A file divides the machine among partitions, which do not overlap, and each partition among classes,
which may. What a machine makes of it is `taskd.qos.groups`'s.

Source: goresctrl's ``pkg/rdt/config.go``, with which containerd reads its ``rdt_config_file``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from taskd.qos import document
from taskd.qos.document import Value
from taskd.qos.origin import Origin

__all__ = [
    "LEVELS",
    "ROOT_CLASS",
    "SPLIT",
    "UNIFIED",
    "Allocation",
    "Class",
    "Config",
    "Partition",
    "Portion",
    "Rates",
    "Share",
    "is_block",
    "is_qualified",
    "parse",
]

T = TypeVar("T")

ROOT_CLASS = "system/default"
"""The class that is resctrl's root group; the empty name means it too."""

_RESERVED = (".", "..", "info", "mon_data", "mon_groups")
LEVELS = ("L2", "L3")
_ALLOCATIONS = ("l2Allocation", "l3Allocation", "mbAllocation")
UNIFIED = "unified"
SPLIT = ("code", "data")
_MOST_MBPS = 2**32 - 1


@dataclass(frozen=True, slots=True)
class Share:
    """A part of a cache: `percent` of what there is, from `start` percent on, or `mask` itself."""

    at: Value
    percent: int | None = None
    start: int | None = None
    mask: int = 0


@dataclass(frozen=True, slots=True)
class Rates:
    """Memory bandwidth in both units; which one counts is up to the machine."""

    at: Value
    percent: int | None = None
    mbps: int | None = None


Portion = Mapping[str, Share]
"""What is asked of one cache: ``unified``, and perhaps ``code`` and ``data``."""


@dataclass(frozen=True, slots=True)
class Allocation(Generic[T]):
    """What is asked of one resource, by cache id, and of the ids that are not mentioned."""

    at: Value
    default: T | None
    by_id: Mapping[int, T]

    def of(self, ids: Iterable[int], otherwise: T) -> dict[int, T]:
        """What is asked of each of `ids`; `otherwise` where nothing is said."""
        default = otherwise if self.default is None else self.default
        return {number: self.by_id.get(number, default) for number in ids}


@dataclass(frozen=True, slots=True)
class Allocations:
    caches: Mapping[str, Allocation[Portion]]
    """By level; a level of which nothing is asked is missing."""
    bandwidth: Allocation[Rates] | None


@dataclass(frozen=True, slots=True)
class Class:
    name: str
    at: Value
    asked: Allocations
    closed_to: frozenset[Origin]


@dataclass(frozen=True, slots=True)
class Partition:
    name: str
    at: Value
    asked: Allocations
    classes: Sequence[Class]


@dataclass(frozen=True, slots=True)
class Config:
    optional: frozenset[str]
    """Resources (``L2``, ``L3``, ``MB``) that a machine need not have."""
    partitions: Sequence[Partition]
    """By name; so are their bits laid out."""


def parse(file: Path) -> Config:
    """Read a file. Raises `InvalidArgument`, naming file, line, and key, for what is wrong in it.

    What depends on the machine is not looked at here.
    """
    top = document.load(file).fields("options", "partitions")
    optional = set()
    if "options" in top:
        for name, options in top["options"].fields("l2", "l3", "mb").items():
            chosen = options.fields("optional").get("optional")
            if chosen is not None and chosen.boolean():
                optional.add(name.upper())
    partitions = top["partitions"].mapping() if "partitions" in top else {}
    names: set[str] = set()
    return Config(
        frozenset(optional),
        [_partition(name, value, names) for name, value in sorted(partitions.items())],
    )


def _partition(name: str, at: Value, names: set[str]) -> Partition:
    """`names` are the classes of all partitions so far."""
    fields = at.fields(*_ALLOCATIONS, "classes")
    asked = _allocations(fields)
    classes = fields["classes"].mapping() if "classes" in fields else {}
    return Partition(
        name, at, asked, [_class(each, value, asked, names) for each, value in classes.items()]
    )


def _class(name: str, at: Value, partition: Allocations, names: set[str]) -> Class:
    name = name or ROOT_CLASS
    if not is_qualified(name):
        raise at.error("is not a name for a class")
    if name in names:
        raise at.error("is the name of another class, too")
    names.add(name)
    fields = at.fields(*_ALLOCATIONS, "kubernetes")
    asked = _allocations(fields)
    orphans: list[Value] = [
        allocation.at for level, allocation in asked.caches.items() if level not in partition.caches
    ]
    if asked.bandwidth and not partition.bandwidth:
        orphans.append(asked.bandwidth.at)
    for orphan in orphans:
        raise orphan.error("the partition has none of it")
    closed = set()
    if "kubernetes" in fields:
        denials = {"denyPodAnnotation": Origin.POD, "denyContainerAnnotation": Origin.CONTAINER}
        for key, value in fields["kubernetes"].fields(*denials).items():
            if value.boolean():
                closed.add(denials[key])
    return Class(name, at, asked, frozenset(closed))


def is_qualified(name: str) -> bool:
    """Whether a class can have this name: that of a folder which is not resctrl's own."""
    if name == ROOT_CLASS:
        return True
    return len(name) < 4096 and name not in _RESERVED and not re.search(r"[/\n]", name)


def is_block(mask: int) -> bool:
    """Whether the bits of a mask are without a gap, and not none."""
    filled = mask | (mask - 1)
    return mask > 0 and filled & (filled + 1) == 0


def _allocations(fields: Mapping[str, Value]) -> Allocations:
    caches = {}
    for level in LEVELS:
        value = fields.get(f"{level.lower()}Allocation")
        if value is not None:
            caches[level] = _allocation(value, value.is_text, _portion)
    value = fields.get("mbAllocation")
    bandwidth = None if value is None else _allocation(value, value.is_list, _rates)
    return Allocations(caches, bandwidth)


def _allocation(value: Value, plain: bool, read: Callable[[Value], T]) -> Allocation[T]:
    if plain:
        return Allocation(value, read(value), {})
    default = None
    by_id: dict[int, T] = {}
    for key, entry in value.mapping().items():
        found = read(entry)
        if key == "all":
            default = found
            continue
        for number in _numbers(entry, key, 127):
            if number in by_id:
                raise entry.error(f"cache {number} is given twice")
            by_id[number] = found
    return Allocation(value, default, by_id)


def _portion(value: Value) -> Portion:
    if value.is_text:
        return {UNIFIED: _share(value)}
    shares = {
        kind: _share(share) for kind, share in value.fields(UNIFIED, *SPLIT).items() if share.text()
    }
    if UNIFIED not in shares:
        raise value.error("unified is missing")
    for one, other in (SPLIT, SPLIT[::-1]):
        if one in shares and other not in shares:
            raise shares[one].at.error(f"{other} is missing beside it")
    return shares


def _share(value: Value) -> Share:
    text = value.text()
    if not value.is_text:
        raise value.error(f"{text} is a number, and not text; put it in quotes")
    if text.endswith("%"):
        found = re.fullmatch(r"(?:(\d+)-)?(\d+)%", text)
        if not found or not int(found[1] or 0) <= int(found[2]) <= 100:
            raise value.error(f"{text!r} is not a percentage such as 50% or 20-60%")
        return Share(value, int(found[2]), None if found[1] is None else int(found[1]))
    if re.fullmatch("0x[0-9a-fA-F]{1,16}", text):
        mask = int(text, 16)
    else:
        mask = sum(1 << number for number in _numbers(value, text, 63))
    if not is_block(mask):
        raise value.error(f"{text!r} is not one block of bits")
    return Share(value, mask=mask)


def _rates(value: Value) -> Rates:
    found: dict[str, int] = {}
    for entry in value.items():
        match = re.fullmatch(r"(\d+)(%|MBps)", entry.text())
        if match is None or int(match[1]) > (100 if match[2] == "%" else _MOST_MBPS):
            raise entry.error(f"{entry.text()!r} is neither a percentage nor as 1000MBps")
        if match[2] in found:
            raise entry.error(f"{match[2]} is given twice")
        found[match[2]] = int(match[1])
    return Rates(value, found.get("%"), found.get("MBps"))


def _numbers(value: Value, text: str, most: int) -> set[int]:
    """A list such as ``0,2,5-9``."""
    found: set[int] = set()
    for part in text.split(","):
        match = re.fullmatch(r"(\d+)(?:-(\d+))?", part)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if not match or last > most or first > last or (match[2] and first == last):
            raise value.error(f"{text!r} is not a list of numbers to {most} such as 0,2-5")
        found.update(range(first, last + 1))
    return found
