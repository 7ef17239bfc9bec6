"""The OCI specifications of containers and processes: what ``ctr run`` makes, and its options.

Source: ``populateDefaultUnixSpec`` and ``WithDefaultUnixDevices`` in containerd's ``pkg/oci``.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from taskd.errors import InvalidArgument

if TYPE_CHECKING:
    from taskd.proto.containerd.types import Mount
    from taskd.proto.google.protobuf import Any as AnyMessage

__all__ = [
    "PATH",
    "Amendment",
    "Limits",
    "Network",
    "amended",
    "container",
    "merged",
    "packed",
    "process",
    "rootless",
    "roots",
    "size",
    "user_in",
]

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

Network = Literal["none", "host"]
Amendment = Mapping[str, Any] | Callable[[dict[str, Any]], Mapping[str, Any] | None]
"""What is merged into a specification, or what changes it, or returns another in its stead."""

_TYPE = "types.containerd.io/opencontainers/runtime-spec/1/"
_RWM = "rwm"
_MOST = 1 << 63
_LEAST_CPUS = 0.01
_LEAST_MEMORY = 6 << 20
_MOST_ID = (1 << 31) - 1
_CAPABILITIES = (
    *("CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FSETID", "CAP_FOWNER", "CAP_MKNOD", "CAP_NET_RAW"),
    *("CAP_SETGID", "CAP_SETUID", "CAP_SETFCAP", "CAP_SETPCAP", "CAP_NET_BIND_SERVICE"),
    *("CAP_SYS_CHROOT", "CAP_KILL", "CAP_AUDIT_WRITE"),
)
_MASKED = (
    *("/proc/acpi", "/proc/asound", "/proc/kcore", "/proc/keys", "/proc/latency_stats"),
    *("/proc/timer_list", "/proc/timer_stats", "/proc/sched_debug", "/proc/scsi"),
    *("/sys/firmware", "/sys/devices/virtual/powercap"),
)
_READ_ONLY = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")
_DEVICES = ((1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0), (5, 1), (5, 2), (136, None))
"""null, zero, full, random, urandom, tty, console, ptmx, and the pseudo-terminals."""
_MOUNTS = (
    ("/proc", "proc", "proc", ("nosuid", "noexec", "nodev")),
    ("/dev", "tmpfs", "tmpfs", ("nosuid", "strictatime", "mode=755", "size=65536k")),
    (
        *("/dev/pts", "devpts", "devpts"),
        ("nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"),
    ),
    ("/dev/shm", "tmpfs", "shm", ("nosuid", "noexec", "nodev", "mode=1777", "size=65536k")),  # noqa: S108
    ("/dev/mqueue", "mqueue", "mqueue", ("nosuid", "noexec", "nodev")),
    ("/sys", "sysfs", "sysfs", ("nosuid", "noexec", "nodev", "ro")),
    ("/run", "tmpfs", "tmpfs", ("nosuid", "strictatime", "mode=755", "size=65536k")),
)


@dataclass(frozen=True, slots=True)
class Limits:
    """What a container may use; None for as much as there is."""

    memory: int | str | None = None
    """Bytes, or such as ``"64m"``."""
    memory_swap: int | str | None = None
    """Memory and swap together, as Docker counts them."""
    cpus: float | None = None
    """Of one processor's time: 0.5 is half of one."""
    cpu_shares: int | None = None
    cpuset: str | None = None
    """Processors by number: ``"0-2,4"``."""
    pids: int | None = None

    def resources(self) -> dict[str, Any]:
        """``linux.resources`` of the OCI specification."""
        self._refuse_nonsense()
        memory = {"limit": self.memory, "swap": self.memory_swap}
        quota = None if self.cpus is None else round(self.cpus * 100_000)
        cpu = {
            "quota": quota,
            "period": None if quota is None else 100_000,
            "shares": self.cpu_shares,
            "cpus": self.cpuset,
        }
        parts = {
            "memory": {key: size(value) for key, value in memory.items() if value is not None},
            "cpu": {key: value for key, value in cpu.items() if value is not None},
            "pids": {} if self.pids is None else {"limit": self.pids},
        }
        return {key: value for key, value in parts.items() if value}

    def _refuse_nonsense(self) -> None:
        """Raise `InvalidArgument`, instead of a runtime that names none of our words."""
        for name, value in (
            ("memory", None if self.memory is None else size(self.memory)),
            ("cpus", self.cpus),
            ("cpu_shares", self.cpu_shares),
        ):
            if value is not None and not 0 < value < _MOST:
                raise InvalidArgument(f"{name}: {value} is no limit", verbatim=True)
        # Docker's bounds and words: a runtime has a write to a cgroup fail, or its own init killed.
        if self.cpus is not None and self.cpus < _LEAST_CPUS:
            raise InvalidArgument(
                f"cpus: {self.cpus:g}: the range of CPUs begins at {_LEAST_CPUS}", verbatim=True
            )
        if self.memory is not None and size(self.memory) < _LEAST_MEMORY:
            raise InvalidArgument(
                f"memory: {self.memory}: the minimum memory limit allowed is 6MB", verbatim=True
            )


def size(text: int | str) -> int:
    """Bytes in ``"64m"``, as Docker has it: b, k, m, g and t are powers of 1024.

    Raises `InvalidArgument`.
    """
    if isinstance(text, int):
        return text
    number = text.strip().lower().removesuffix("ib").removesuffix("b")
    scale = "kmgt".find(number[-1:]) + 1 if number else 0
    try:
        return int(float(number[:-1] if scale else number) * 1024**scale)
    except ValueError:
        raise InvalidArgument(f"{text!r} is no size such as 512k, 64m, 2g", verbatim=True) from None


def process(
    args: Sequence[str],
    *,
    env: Mapping[str, str] | Sequence[str] = (),
    cwd: str = "/",
    user: Mapping[str, Any] | None = None,
    tty: bool = False,
    privileges: bool = True,
) -> dict[str, Any]:
    """``process`` of the OCI specification; for this process's user unless another is given.

    Without `privileges` it has no capabilities at all, and may get them from setuid programs.
    """
    given = [f"{name}={value}" for name, value in env.items()] if isinstance(env, Mapping) else env
    usual = [f"PATH={PATH}", *(["TERM=xterm"] if tty else [])]
    said = {each.partition("=")[0] for each in given}
    document: dict[str, Any] = {
        "args": list(args),
        "cwd": cwd,
        "env": [*(each for each in usual if each.partition("=")[0] not in said), *given],
        "user": dict(user or {"uid": os.getuid(), "gid": os.getgid()}),
        "terminal": tty,
    }
    if privileges:
        sets = ("bounding", "effective", "permitted")
        document["noNewPrivileges"] = True
        document["capabilities"] = {each: list(_CAPABILITIES) for each in sets}
        document["rlimits"] = [{"type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024}]
    return document


def container(
    process: Mapping[str, Any],
    root: Path | str = "rootfs",
    *,
    cgroup: str = "",
    read_only: bool = False,
    network: Network = "none",
    mounts: Sequence[str | Mapping[str, Any]] = (),
    limits: Limits | None = None,
    hostname: str = "",
    annotations: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """A whole specification; see `mount` for `mounts`. An ordinary user's has no `cgroup`."""
    if network not in ("none", "host"):
        raise InvalidArgument(f'network {network!r} is neither "none" nor "host"', verbatim=True)
    namespaces = ["pid", "ipc", "uts", "mount", *(["network"] if network == "none" else [])]
    resources = (limits or Limits()).resources()
    resources["devices"] = [
        {"allow": False, "access": _RWM},
        *({"type": "c", "allow": True, "access": _RWM, **_numbers(*each)} for each in _DEVICES),
    ]
    files = ("/etc/hosts", "/etc/resolv.conf") if network == "host" else ()
    document: dict[str, Any] = {
        "ociVersion": "1.0.2",
        "process": dict(process),
        "root": {"path": str(root), "readonly": read_only},
        "mounts": [
            *(
                {"destination": place, "type": kind, "source": source, "options": list(options)}
                for place, kind, source, options in _MOUNTS
            ),
            *(mount(f"{each}:{each}:ro") for each in files if Path(each).exists()),
            *map(mount, mounts),
        ],
        "linux": {
            "namespaces": [{"type": name} for name in namespaces],
            "resources": resources,
            "maskedPaths": list(_MASKED),
            "readonlyPaths": list(_READ_ONLY),
            **({"cgroupsPath": cgroup} if cgroup else {}),
        },
    }
    if hostname:
        document["hostname"] = hostname
    if annotations:
        document["annotations"] = dict(annotations)
    return document


def _numbers(major: int, minor: int | None) -> dict[str, int]:
    return {"major": major} if minor is None else {"major": major, "minor": minor}


def mount(given: str | Mapping[str, Any]) -> dict[str, Any]:
    """A mount: the specification's own object, or ``SOURCE:DESTINATION[:ro]`` as with Docker's -v.

    ``tmpfs:DESTINATION[:OPTIONS]`` is a tmpfs. Raises `InvalidArgument`.
    """
    if not isinstance(given, str):
        return dict(given)
    source, _, rest = given.partition(":")
    destination, _, options = rest.partition(":")
    if not destination.startswith("/") or (source != "tmpfs" and not source.startswith("/")):
        raise InvalidArgument(
            f"mount {given!r} is not SOURCE:DESTINATION[:ro] with absolute paths", verbatim=True
        )
    chosen = list(filter(None, options.split(",")))
    if source == "tmpfs":
        usual = ["nosuid", "noexec", "nodev", *chosen]
        return {"destination": destination, "type": "tmpfs", "source": "tmpfs", "options": usual}
    if not {"ro", "rw"} & set(chosen):
        chosen.append("rw")
    if not {"bind", "rbind"} & set(chosen):
        chosen.insert(0, "rbind")
    return {"destination": destination, "type": "bind", "source": source, "options": chosen}


def rootless(document: Mapping[str, Any]) -> dict[str, Any]:
    """The same for a user without root: in a user namespace, where this user is root.

    Source: ``runc spec --rootless``. Without cgroups, and with the host's /sys to look at.
    """
    result = dict(document)
    linux = {key: each for key, each in result["linux"].items() if key != "resources"}
    linux.pop("cgroupsPath", None)
    linux["namespaces"] = [
        *(each for each in linux["namespaces"] if each["type"] != "network"),
        {"type": "user"},
    ]
    for name, own in (("uidMappings", os.geteuid()), ("gidMappings", os.getegid())):
        linux[name] = [{"containerID": 0, "hostID": own, "size": 1}]
    bound = {"destination": "/sys", "type": "bind", "source": "/sys"}
    bound["options"] = ["rbind", "nosuid", "noexec", "nodev", "ro"]  # type: ignore[assignment]
    result["mounts"] = [
        bound
        if each["destination"] == "/sys"
        else {
            **each,
            "options": [one for one in each.get("options", ()) if not one.startswith("gid=")],
        }
        for each in result["mounts"]
    ]
    result["linux"] = linux
    # The one user there is.
    result["process"] = {**result["process"], "user": {"uid": 0, "gid": 0}}
    return result


def amended(document: dict[str, Any], amendment: Amendment | None) -> dict[str, Any]:
    """`document` as `amendment` wants it."""
    if amendment is None:
        return document
    if isinstance(amendment, Mapping):
        return merged(document, amendment)
    changed = amendment(document)
    return document if changed is None else dict(changed)


def merged(document: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    """`document` with what `more` says: objects are merged, everything else is replaced."""
    result = dict(document)
    for name, value in more.items():
        there = result.get(name)
        both = isinstance(there, Mapping) and isinstance(value, Mapping)
        result[name] = merged(there, value) if both else value  # type: ignore[arg-type]
    return result


def packed(name: str, document: Mapping[str, Any]) -> AnyMessage:
    """A document in JSON as containerd's clients send it.

    `name` is ``Spec``, ``Process`` or ``LinuxResources``.
    """
    from taskd.proto.google.protobuf import Any as AnyMessage

    return AnyMessage(type_url=_TYPE + name, value=json.dumps(document).encode())


def roots(mounts: Sequence[Mount]) -> list[Path]:
    """The folders that a snapshot's mounts lay upon each other, the topmost first."""
    found: list[str] = []
    for each in mounts:
        options = dict(option.partition("=")[::2] for option in each.options)
        if each.type == "overlay":
            found += filter(None, [options.get("upperdir")])
            found += options.get("lowerdir", "").split(":")
        else:
            found.append(each.source)
    return list(map(Path, filter(None, found)))


def user_in(text: str, roots: Sequence[Path]) -> dict[str, Any]:
    """``process.user`` for ``USER[:GROUP]``, by name or number, as Docker has it.

    `roots` are folders, the topmost first, in which ``/etc/passwd`` and ``/etc/group`` are looked
    for. Raises `InvalidArgument` for a name that is in none.
    """
    name, _, group = text.partition(":")
    found = next((row for row in _rows(roots, "passwd", 4) if name in (row[0], row[2])), None)
    if found is None and not name.isdecimal():
        raise InvalidArgument(f"no user {name!r} in the container's /etc/passwd", verbatim=True)
    groups = list(_rows(roots, "group", 4))
    result = {"uid": int(found[2] if found else name), "gid": int(found[3]) if found else 0}
    if group:
        row = next((row for row in groups if row[0] == group), None)
        if row is None and not group.isdecimal():
            raise InvalidArgument(
                f"no group {group!r} in the container's /etc/group", verbatim=True
            )
        result["gid"] = int(row[2] if row else group)
    if max(result.values()) > _MOST_ID:
        raise InvalidArgument(
            f"user {text}: uids and gids must be in range 0-{_MOST_ID}", verbatim=True
        )
    if found and not group:
        others = [int(row[2]) for row in groups if found[0] in row[3].split(",")]
        if others:
            return result | {"additionalGids": others}
    return result


def _rows(roots: Sequence[Path], name: str, columns: int) -> list[list[str]]:
    from taskd import rooted

    for root in roots:
        try:
            with os.fdopen(rooted.open_file(root, f"/etc/{name}"), errors="replace") as file:
                rows = [line.rstrip("\n").split(":") for line in file]
        except OSError:
            continue
        return [row for row in rows if len(row) >= columns and row[2].isdecimal()]
    return []
