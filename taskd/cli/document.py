"""A configuration as the TOML document that has it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import tomli_w

from taskd import pidfd
from taskd.config import Config
from taskd.events.journal import Retention
from taskd.grpc import engine

__all__ = ["document", "text"]

_DURATIONS = {
    *("idle", "idle_timeout", "interval", "max_age"),
    *("schedule_delay", "shutdown_timeout", "startup_delay"),
}
_UNITS = (("GiB", 30), ("MiB", 20), ("KiB", 10))


def document(config: Config) -> dict[str, Any]:
    """All keys that have a value, given or by default; `taskd.config.load` makes the same of it."""
    return {**_table(config), "address": str(config.socket)}


def text(config: Config) -> str:
    """That as TOML; in comments what the daemon decides, as nobody has."""
    lines = tomli_w.dumps(document(config)).splitlines()
    for table, notes in _undecided(config).items():
        heading = f"[{table}]"
        if table and heading not in lines:
            lines += ["", heading]
        place = lines.index(heading) + 1 if table else 0
        lines[place:place] = [f"# {note}" for note in notes]
    return "".join(f"{line}\n" for line in lines)


def _undecided(config: Config) -> Mapping[str, Sequence[str]]:
    """What holds of the keys without a value, by the table that they are in."""
    found: dict[str, list[str]] = {}

    def add(table: str, key: str, note: str) -> None:
        found.setdefault(table, []).append(f"{key}: {note}")

    if config.resctrl_path is None:
        add("", "resctrl_path", "where it is mounted")
    if config.shims.pool is None and not config.shims.shared:
        survive = False
        with suppress(OSError):
            survive = config.shims.adopt and pidfd.tells_exits()
        size = config.shims.limits(survival=survive).size
        if survive:
            add("shims", "pool", f"{size} of containers that survive their shim, 1 of others")
        else:
            add("shims", "pool", f"{size}, as containers end with their shim here")
    if not config.grpc.engine:
        add("grpc", "engine", f"{engine.chosen()}, the best that is installed")
    for key in ("uid", "gid"):
        if getattr(config.grpc, key) < 0:
            add("grpc", key, "the daemon's")
    return found


def _table(settings: object) -> dict[str, Any]:
    assert is_dataclass(settings)
    values: dict[str, Any] = {}
    for each in fields(settings):
        value = getattr(settings, each.name)
        if isinstance(value, Retention):
            values |= {"max_age": _duration(value.max_age), "max_size": _size(value.max_bytes)}
        elif (shown := _value(each.name, value)) not in (None, "", {}, -1):
            values[each.name] = shown
    return values


def _value(name: str, value: Any) -> Any:
    if is_dataclass(value):
        return _table(value)
    if name == "timeouts":
        return {key: _duration(bound) for key, bound in value.items()}
    if name == "metrics" and value is not None:
        host, port = value
        return {"address": f"[{host}]:{port}" if ":" in host else f"{host}:{port}"}
    if name == "max_size":
        return _size(value)
    if name in _DURATIONS:
        return _duration(value)
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, tuple):
        return list(value) or None
    return str(value) if isinstance(value, Path) else value


def _duration(seconds: float) -> str:
    """As Go has it, which knows no exponents."""
    return f"{seconds:.9f}".rstrip("0").rstrip(".") + "s"


def _size(number: int) -> str | int:
    for unit, bits in _UNITS:
        if number and number % (1 << bits) == 0:
            return f"{number >> bits}{unit}"
    return number
