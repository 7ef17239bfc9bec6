"""RDT classes as groups of resctrl's: what this machine grants of what a file asks.

Source: goresctrl's ``pkg/rdt`` (``config.go``, ``rdt.go``, ``kubernetes.go``), whose arithmetic
this follows, so that the masks are those that containerd would have written.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from taskd.errors import FailedPrecondition, Unknown
from taskd.qos.document import Value
from taskd.qos.origin import Origin
from taskd.qos.rdt import (
    LEVELS,
    ROOT_CLASS,
    SPLIT,
    UNIFIED,
    Allocation,
    Config,
    Partition,
    Portion,
    Rates,
    Share,
    is_qualified,
)
from taskd.qos.resctrl import Bandwidth, Cache, Resctrl

__all__ = ["Rdt", "configure", "schemata"]

_NO_LIMIT = 2**32 - 1
"""MB/s, as the kernel has it."""

_Masks = Mapping[int, Mapping[str, int]]
"""What one partition has of one level: masks by the cache's id, and ``unified`` and so on."""


@dataclass(frozen=True, slots=True)
class Rdt:
    """The classes that have been configured, and whose annotations may not name them."""

    classes: Mapping[str, frozenset[Origin]]

    def closid(self, name: str, origin: Origin) -> str | None:
        """The ``closID`` of a class; None for the root's, where processes are without one.

        Raises `Unknown` for a class that may not be used, in goresctrl's words.
        """
        unaliased = name or ROOT_CLASS
        if not is_qualified(unaliased):
            raise Unknown(f'unqualified RDT class name "{name}"')
        if unaliased != ROOT_CLASS and unaliased not in self.classes:
            raise Unknown(f'RDT class "{name}" does not exist in configuration')
        if origin in self.classes.get(unaliased, ()):
            raise Unknown(f'RDT class "{name}" not allowed from {origin}')
        return None if unaliased == ROOT_CLASS else name


def configure(config: Config, resctrl: Resctrl) -> Rdt:
    """Make resctrl's groups those of the configuration, and no others.

    Groups that are not in it are removed, as containerd does, except those with processes in them.
    Raises what `schemata` raises, before anything is changed, and `InvalidArgument` with the
    kernel's reason for refusing a class.
    """
    wanted = schemata(config, resctrl)
    resctrl.remove_others(wanted)
    classes = [each for partition in config.partitions for each in partition.classes]
    for each in classes:
        try:
            resctrl.write("" if each.name == ROOT_CLASS else each.name, wanted[each.name])
        except FailedPrecondition as exc:
            raise each.at.error(exc.message) from exc
    return Rdt({each.name: each.closed_to for each in classes})


def schemata(config: Config, resctrl: Resctrl) -> dict[str, str]:
    """What to write to the ``schemata`` of each class's group, by the class's name.

    Raises `InvalidArgument`, naming file, line, and key, for what this machine cannot grant.
    """
    masks = {
        level: _divide(level, cache, config.partitions) for level, cache in resctrl.caches.items()
    }
    found = {}
    for partition in config.partitions:
        limits = _limits(resctrl.bandwidth, partition.asked.bandwidth)
        for each in partition.classes:
            lines = []
            for level in LEVELS:
                asked = each.asked.caches.get(level)
                if level in resctrl.caches:
                    cache, base = resctrl.caches[level], masks[level][partition.name]
                    lines += _cache_lines(level, cache, base, asked)
                elif asked is not None and level not in config.optional:
                    raise _unsupported(asked.at)
            rates = each.asked.bandwidth
            if resctrl.bandwidth is not None:
                lines.append(_rates_line(resctrl.bandwidth, limits, rates))
            elif rates is not None and "MB" not in config.optional:
                raise _unsupported(rates.at)
            found[each.name] = "".join(f"{line}\n" for line in lines)
    return found


def _unsupported(at: Value) -> Exception:
    return at.error("this machine does not support it, and it is not optional")


# --- partitions ----------------------------------------------------------------------------------


def _divide(level: str, cache: Cache, partitions: Sequence[Partition]) -> Mapping[str, _Masks]:
    """The masks of each partition, by its name, on one level."""
    granted: dict[str, dict[int, dict[str, int]]] = {
        partition.name: {number: {} for number in cache.ids} for partition in partitions
    }
    asked = {
        partition.name: _portions(partition.asked.caches.get(level), cache)
        for partition in partitions
    }
    for number in cache.ids:
        for kind in (UNIFIED, *SPLIT):
            shares = {
                name: portions[number][kind]
                for name, portions in asked.items()
                if kind in portions.get(number, ())
            }
            if not shares:
                continue
            for partition in partitions:
                if partition.name not in shares:
                    words = f"asks for no {kind} {level} of cache {number}, as other partitions do"
                    raise partition.at.error(words)
            for name, mask in _disjoint(shares, cache).items():
                granted[name][number][kind] = mask
    return granted


def _portions(allocation: Allocation[Portion] | None, cache: Cache) -> dict[int, Portion]:
    if allocation is None:
        return {}
    return allocation.of(cache.ids, {UNIFIED: Share(allocation.at, percent=100)})


def _disjoint(shares: Mapping[str, Share], cache: Cache) -> dict[str, int]:
    """Masks for shares of one cache, by partition: all of them percentages, or none."""
    relative = next(iter(shares.values())).percent is not None
    taken = 0
    for share in shares.values():
        if (share.percent is not None) != relative:
            raise share.at.error("percentages and bits cannot be mixed among partitions")
        if share.start is not None:
            raise share.at.error("a partition cannot have a range of percentages")
        if share.mask & ~cache.mask:
            raise share.at.error(f"the cache has no more bits than {cache.mask:#x}")
        if share.mask & taken:
            raise share.at.error("overlaps with another partition")
        _check_width(share, cache)
        taken |= share.mask
    if not relative:
        return {name: share.mask for name, share in shares.items()}
    return _portion_out(shares, cache)


def _portion_out(shares: Mapping[str, Share], cache: Cache) -> dict[str, int]:
    """Masks side by side, from bit 0 on.

    The smallest shares are served first: they may have to be rounded up to the least number of
    bits, and the large ones then have less to divide.
    """
    percents = {name: share.percent or 0 for name, share in shares.items()}
    total = sum(percents.values())
    *_, last = shares.values()
    if total > 100:
        raise last.at.error(f"the partitions ask for {total}% in all")
    bits = total * cache.mask.bit_length() // 100
    left = bits
    widths: dict[str, int] = {}
    for name in sorted(percents, key=percents.__getitem__):
        if left < max(cache.min_bits, 1):
            raise shares[name].at.error("there are not enough bits for every partition")
        fair = percents[name] * left // (left * total // bits)
        is_last = len(widths) == len(percents) - 1
        widths[name] = left if is_last else min(max(fair, cache.min_bits), left)
        left -= widths[name]
    masks = {}
    position = 0
    for name in shares:
        masks[name] = ((1 << widths[name]) - 1) << position
        position += widths[name]
    return masks


# --- classes -------------------------------------------------------------------------------------


def _cache_lines(
    level: str, cache: Cache, base: _Masks, asked: Allocation[Portion] | None
) -> list[str]:
    """The lines of one class for one level: one, or, where code and data are split, two."""
    portions = _portions(asked, cache)
    lines = []
    for kind in SPLIT if cache.split else (UNIFIED,):
        masks = []
        for number in cache.ids:
            of_partition = base[number]
            mask = of_partition.get(kind, of_partition.get(UNIFIED, cache.mask))
            if number in portions:
                portion = portions[number]
                mask = _within(mask, portion.get(kind, portion[UNIFIED]), cache)
            masks.append(f"{number}={mask:x}")
        lines.append(f"{level}{kind.upper() if cache.split else ''}:{';'.join(masks)}")
    return lines


def _within(base: int, share: Share, cache: Cache) -> int:
    """A share of a partition's mask, whose lowest bit is bit 0 to it."""
    offset = (base & -base).bit_length() - 1
    width = base.bit_length() - offset
    if share.percent is None:
        _check_width(share, cache)
        mask = share.mask << offset
        if mask & ~base:
            raise share.at.error(f"{share.mask:#x} does not fit into the partition's {base:#x}")
        return mask
    start = max(share.start or 0, 1)
    if start > share.percent:
        raise share.at.error("is nothing at all")
    low = (start - 1) * width // 100
    high = (share.percent - 1) * width // 100
    low = max(0, min(low, high + 1 - cache.min_bits))
    high = max(high, low + cache.min_bits - 1)
    return ((1 << (high - low + 1)) - 1) << (low + offset)


def _check_width(share: Share, cache: Cache) -> None:
    if share.percent is None and share.mask.bit_count() < cache.min_bits:
        raise share.at.error(f"has fewer bits than the {cache.min_bits} that the cache needs")


def _rates_line(
    bandwidth: Bandwidth, limits: Mapping[int, int], asked: Allocation[Rates] | None
) -> str:
    """The line of one class; `limits` are its partition's."""
    own = _limits(bandwidth, asked)
    rates = []
    for number in bandwidth.ids:
        if bandwidth.mbps:
            rate = min(own[number], limits[number])
        else:
            granted = max(limits[number], bandwidth.minimum)
            rate = max(own[number] * granted // 100, bandwidth.minimum)
        rates.append(f"{number}={rate}")
    return f"MB:{';'.join(rates)}"


def _limits(bandwidth: Bandwidth | None, asked: Allocation[Rates] | None) -> dict[int, int]:
    """Percent or MB/s of each cache, whichever the machine counts in."""
    if bandwidth is None:
        return {}
    if asked is None:
        return dict.fromkeys(bandwidth.ids, _NO_LIMIT if bandwidth.mbps else 100)
    found = {}
    for number, rates in asked.of(bandwidth.ids, Rates(asked.at, 100, _NO_LIMIT)).items():
        rate = rates.mbps if bandwidth.mbps else rates.percent
        if rate is None:
            unit = "MBps" if bandwidth.mbps else "%"
            raise rates.at.error(f"has no value in {unit}, which this machine counts in")
        found[number] = rate
    return found
