"""From TOML to `Config`: each key is checked, and what is wrong named."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args

from taskd.config.settings import (
    TIMEOUTS,
    Config,
    EventsConfig,
    GrpcConfig,
    RestartConfig,
    ShimsConfig,
    TracingConfig,
)
from taskd.diff.limits import Limits
from taskd.durations import seconds
from taskd.errors import InvalidArgument, words
from taskd.events.journal import Retention
from taskd.gc.policy import MAX_PAUSE_THRESHOLD, Policy
from taskd.logs import LEVELS, Format
from taskd.nats.settings import NatsConfig, Subjects, without_credentials
from taskd.snapshots.settings import SnapshotsConfig
from taskd.transfer.settings import TransferConfig

__all__ = ["load"]


def load(file: Path | None, **given: Any) -> Config:
    """Read a configuration file, if there is one; what is `given` counts instead of what it has.

    Raises `InvalidArgument`, naming the file and the key, for a file that cannot be read, an
    unknown key, or a bad value.
    """
    return Config(**{**(_read(file) if file else {}), **given})


def _read(file: Path) -> dict[str, Any]:
    try:
        document = tomllib.loads(file.read_text())
    except OSError as exc:
        raise InvalidArgument(words(exc), verbatim=True) from exc
    except ValueError as exc:
        raise InvalidArgument(f"{file}: {exc}", verbatim=True) from exc
    known = {entry.name for entry in fields(Config)}
    values: dict[str, Any] = {}
    for key, value in document.items():
        try:
            if key not in known:
                raise ValueError("unknown key")
            values[key] = _PARSERS[key](value)
        except ValueError as exc:
            raise InvalidArgument(f"{file}: {key}: {exc}", verbatim=True) from None
    return values


def _path(value: object) -> Path:
    if not isinstance(value, str) or not value.startswith("/"):
        raise ValueError(f"{value!r} is not an absolute path")
    return Path(value)


def _one_of(choices: Iterable[str]) -> Callable[[object], str]:
    known = list(choices)

    def parse(value: object) -> str:
        if not isinstance(value, str) or value not in known:
            raise ValueError(f"{value!r} is not one of {', '.join(known)}")
        return value

    return parse


def _share(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not value >= 0:
        raise ValueError(f"{value!r} is not a share such as 0.02")
    if value > MAX_PAUSE_THRESHOLD:
        raise ValueError(f"{value!r} is more than {MAX_PAUSE_THRESHOLD}")
    return float(value)


def _bytes(value: object) -> int:
    units = {"": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
    parts = re.fullmatch("([0-9]+)(KiB|MiB|GiB|)", str(value))
    if isinstance(value, bool) or parts is None:
        raise ValueError(f'{value!r} is not a size such as "256MiB"')
    return int(parts[1]) * units[parts[2]]


def _name(value: object) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError(f"{value!r} is not a name")
    return value


def _count(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError(f"{value!r} is not a number such as 100")
    return value


def _positive(value: object) -> int:
    count = _count(value)
    if not count:
        raise ValueError("0 is too little")
    return count


def _table(value: object, parsers: Mapping[str, Callable[[object], Any]]) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{value!r} is not a table")
    chosen = {}
    for name, entry in value.items():
        if name not in parsers:
            raise ValueError(f"{name}: unknown key")
        try:
            chosen[name] = parsers[name](entry)
        except ValueError as exc:
            raise ValueError(f"{name}: {exc}") from None
    return chosen


def _timeouts(value: object) -> Mapping[str, float]:
    return {**TIMEOUTS, **_table(value, dict.fromkeys(TIMEOUTS, seconds))}


def _gc(value: object) -> Policy:
    parsers = {
        "pause_threshold": _share,
        "deletion_threshold": _count,
        "mutation_threshold": _count,
        "schedule_delay": seconds,
        "startup_delay": seconds,
    }
    return Policy(**_table(value, parsers))


def _diff(value: object) -> Limits:
    return Limits(**_table(value, {"max_size": _bytes, "max_entries": _count, "sync_fs": _switch}))


def _events(value: object) -> EventsConfig:
    parsers = {
        "sync": _one_of(("full", "normal")),
        "max_age": seconds,
        "max_size": _bytes,
        "node": _name,
        "nats": _nats,
    }
    chosen = _table(value, parsers)
    kept = Retention(
        max_age=chosen.pop("max_age", Retention.max_age),
        max_bytes=chosen.pop("max_size", Retention.max_bytes),
    )
    return EventsConfig(retention=kept, **chosen)


def _nats(value: object) -> NatsConfig:
    parsers = {
        "servers": _servers,
        "stream": _stream,
        "subject": _subject,
        "credentials": _path,
        "user": _name,
        "password_file": _path,
        "tls_ca": _path,
        "tls_cert": _path,
        "tls_key": _path,
    }
    chosen = _table(value, parsers)
    if "servers" not in chosen:
        raise ValueError("servers: is missing")
    for one, other in (("tls_key", "tls_cert"), ("password_file", "user")):
        if one in chosen and other not in chosen:
            raise ValueError(f"{one}: {other} is missing")
    return NatsConfig(**chosen)


def _metrics(value: object) -> tuple[str, int] | None:
    address: tuple[str, int] | None = _table(value, {"address": _address}).get("address")
    return address


def _address(value: object) -> tuple[str, int] | None:
    if value == "":
        return None  # containerd's way to say that there is none
    parts = re.fullmatch(r"(?:\[(.+)\]|([^:]*)):([0-9]+)", str(value))
    if parts is None or int(parts[3]) > 65535:
        raise ValueError(f'{value!r} is not an address such as "127.0.0.1:1338"')
    return parts[1] or parts[2] or "0.0.0.0", int(parts[3])  # noqa: S104 - as in Go


def _tracing(value: object) -> TracingConfig:
    chosen = _table(
        value, {"endpoint": _collector, "sampling_ratio": _ratio, "service_name": _name}
    )
    if "endpoint" not in chosen:
        raise ValueError("endpoint: is missing")
    return TracingConfig(**chosen)


def _shims(value: object) -> ShimsConfig:
    parsers = {
        "warm": _switch,
        "pool": _positive,
        "shared": _switch,
        "lifetime": _positive,
        "idle": seconds,
        "adopt": _switch,
        "renew": _switch,
    }
    return ShimsConfig(**_table(value, parsers))


def _runtimes(value: object) -> Mapping[str, str]:
    if not isinstance(value, dict):
        raise ValueError(f"{value!r} is not a table")
    for name, other in value.items():
        if not isinstance(other, str) or not other:
            raise ValueError(f"{name}: {other!r} is not the name of a runtime")
        if other in value:
            raise ValueError(f"{name}: {other} has another one in its stead")
    return value


def _grpc(value: object) -> GrpcConfig:
    return GrpcConfig(
        **_table(value, {"engine": _one_of(("h2", "ngh2")), "uid": _count, "gid": _count})
    )


def _restart(value: object) -> RestartConfig:
    chosen = _table(value, {"interval": seconds})
    if chosen.get("interval") == 0:
        del chosen["interval"]  # which means the default, as in containerd
    return RestartConfig(**chosen)


def _snapshots(value: object) -> SnapshotsConfig:
    parsers = {"sync_remove": _switch, "mount_options": _options}
    return SnapshotsConfig(**_table(value, parsers))


def _options(value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(
        isinstance(each, str) and each and "," not in each for each in value
    ):
        raise ValueError(f'{value!r} is not a list of options such as ["volatile"]')
    return tuple(value)


def _transfer(value: object) -> TransferConfig:
    parsers = {
        "max_concurrent_downloads": _positive,
        "max_concurrent_uploaded_layers": _positive,
        "config_path": _path,
        "idle_timeout": seconds,
    }
    return TransferConfig(**_table(value, parsers))


def _switch(value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"{value!r} is neither true nor false")
    return value


def _collector(value: object) -> str:
    if not isinstance(value, str) or not re.match("https?://.", value):
        raise ValueError(
            f'{without_credentials(repr(value))} is not a URL such as "http://127.0.0.1:4318"'
        )
    return value


def _ratio(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise ValueError(f"{value!r} is not a share such as 0.1")
    return float(value)


def _servers(value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or not value:
        raise ValueError(f"{without_credentials(repr(value))} is not a list of servers")
    for url in value:
        if not isinstance(url, str) or not re.match("(nats|tls|ws|wss)://.", url):
            words = without_credentials(repr(url))
            raise ValueError(f'{words} is not a URL such as "nats://10.0.0.1:4222"')
    return tuple(value)


def _stream(value: object) -> str:
    if not isinstance(value, str) or not re.fullmatch(r"[^\s.*>/\\]+", value):
        raise ValueError(f"{value!r} is not the name of a stream")
    return value


def _subject(value: object) -> str:
    template = _name(value)
    Subjects(template)
    return template


_PARSERS = {
    "root": _path,
    "state": _path,
    "address": _path,
    "log_level": _one_of(LEVELS),
    "log_format": _one_of(get_args(Format)),
    "shutdown_timeout": seconds,
    "blockio_config_file": _path,
    "rdt_config_file": _path,
    "resctrl_path": _path,
    "timeouts": _timeouts,
    "gc": _gc,
    "diff": _diff,
    "events": _events,
    "metrics": _metrics,
    "tracing": _tracing,
    "shims": _shims,
    "runtimes": _runtimes,
    "grpc": _grpc,
    "restart": _restart,
    "snapshots": _snapshots,
    "transfer": _transfer,
}
