"""Which hosts answer for a registry's name, and how. Source: containerd's
``core/remotes/docker/config/hosts.go`` and its ``docs/hosts.md``.
"""

from __future__ import annotations

import enum
import ipaddress
import logging
import posixpath
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from taskd.durations import seconds
from taskd.errors import InvalidArgument

__all__ = ["Capability", "Host", "find", "is_loopback"]

_log = logging.getLogger(__name__)

_KEYS = {
    "capabilities",
    "ca",
    "client",
    "skip_verify",
    "header",
    "override_path",
    "dial_timeout",
}


class Capability(enum.Flag):
    """What a host is asked for. A digest may come from anybody; what a tag means, may not."""

    PULL = enum.auto()
    RESOLVE = enum.auto()
    PUSH = enum.auto()
    REFERRERS = enum.auto()


_ALL = Capability.PULL | Capability.RESOLVE | Capability.PUSH | Capability.REFERRERS


@dataclass(frozen=True, slots=True)
class Host:
    """One host of a registry."""

    scheme: str = "https"
    name: str = ""
    """With its port; empty for the registry's own."""
    path: str = "/v2"
    capabilities: Capability = _ALL
    headers: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    authorities: tuple[Path, ...] = ()
    """Files of certificates that are trusted beside the system's."""
    pairs: tuple[tuple[Path, Path | None], ...] = ()
    """The client's own certificates and keys; a file alone has both."""
    skip_verify: bool | None = None
    dial_timeout: float | None = None
    """Seconds until it has to be connected."""
    plain_after_tls: bool = False
    """If it turns out not to speak TLS, it is asked without."""

    @property
    def has_tls(self) -> bool:
        """Something is said about TLS, so that this is tried first."""
        return bool(self.authorities or self.pairs or self.skip_verify is not None)


def find(name: str, folder: Path | None, default_scheme: str = "") -> list[Host]:
    """The hosts that answer for the registry `name`, in the order in which they are asked.

    `folder` has a folder for each registry, with ``hosts.toml`` in it or certificates; it is read
    each time. Blocks. Raises `InvalidArgument` for a file that cannot be read.
    """
    own = None if folder is None else _own_folder(folder, name)
    hosts = [Host()] if own is None else _load(own)
    if hosts and not hosts[-1].name:
        hosts[-1] = _named(hosts[-1], name, default_scheme)
    return [_with_fallback(host) for host in hosts if host.name]


def is_loopback(host: str) -> bool:
    """Whether `host`, which may have a port, is this machine."""
    name = urlsplit(f"//{host}").hostname or ""
    if name == "localhost":
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def _own_folder(root: Path, name: str) -> Path | None:
    host, colon, port = name.rpartition(":")
    # The second form is for file systems that do not like colons.
    names = [f"{host}_{port}_", name] if colon and host else [name]
    for candidate in (*names, "_default"):
        if (root / candidate).is_dir():
            return root / candidate
    return None


def _named(host: Host, name: str, default_scheme: str) -> Host:
    """The registry's own host, of which its name says where it is."""
    host = replace(host, name=name, path="/v2", capabilities=_ALL)
    if name == "docker.io":
        return replace(host, name="registry-1.docker.io", scheme="https")
    if default_scheme or not is_loopback(name):
        return replace(host, scheme=default_scheme or "https")
    port = urlsplit(f"//{name}").port
    scheme = "https" if port in (None, 443) else "http"
    # Nobody has a certificate for the name of this machine.
    skip = host.skip_verify if port == 80 else True
    return replace(host, scheme=scheme, skip_verify=skip)


def _with_fallback(host: Host) -> Host:
    if host.scheme == "http" and host.has_tls and urlsplit(f"//{host.name}").port != 80:
        return replace(host, scheme="https", plain_after_tls=True)
    return host


def _load(folder: Path) -> list[Host]:
    file = folder / "hosts.toml"
    try:
        text = file.read_text()
    except FileNotFoundError:
        text = ""
    except (OSError, ValueError) as exc:
        raise InvalidArgument(f"{file}: {exc}", verbatim=True) from exc
    if not text.strip():
        return [_docker_certificates(folder)]
    try:
        return _parsed(folder, tomllib.loads(text))
    except ValueError as exc:
        # containerd logs this, and asks the registry as if there were no such file.
        raise InvalidArgument(f"{file}: {exc}", verbatim=True) from exc


def _parsed(folder: Path, document: dict[str, Any]) -> list[Host]:
    hosts = document.pop("host", {})
    server = document.pop("server", "")
    if not isinstance(hosts, dict) or not all(isinstance(each, dict) for each in hosts.values()):
        raise ValueError("host: is not a table of tables")
    if not isinstance(server, str):
        raise ValueError("server: is not a string")
    # A table of TOML has no order, but tomllib keeps the file's, and that is what counts.
    found = [_host(folder, name, settings) for name, settings in hosts.items()]
    return [*found, _host(folder, server, document)]


def _host(folder: Path, server: str, settings: dict[str, Any]) -> Host:
    for key in settings.keys() - _KEYS:
        _log.info("%s: %s: unknown key", folder / "hosts.toml", key)
    host = Host(
        capabilities=_capabilities(settings.get("capabilities", [])),
        headers=_headers(settings.get("header", {})),
        authorities=tuple(folder / each for each in _strings("ca", settings.get("ca", []))),
        pairs=_pairs(folder, settings.get("client", [])),
        skip_verify=_switch("skip_verify", settings.get("skip_verify")),
        dial_timeout=_duration(settings.get("dial_timeout")),
    )
    if not server:
        return host
    parts = urlsplit(server if server.startswith("http") else f"https://{server}")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"{server!r} is not a server such as https://registry.example")
    override = _switch("override_path", settings.get("override_path")) or False
    path = posixpath.normpath(parts.path) if parts.path else ""
    path = "" if path == "/" else path
    if not override and not path.endswith("/v2"):
        path += "/v2"
    return replace(host, scheme=parts.scheme, name=parts.netloc, path=path)


def _capabilities(value: object) -> Capability:
    found = Capability(0)
    for word in _strings("capabilities", value):
        try:
            found |= Capability[word.upper()]
        except KeyError:
            raise ValueError(f"unknown capability {word}") from None
    return found or _ALL


def _headers(value: object) -> Mapping[str, tuple[str, ...]]:
    if not isinstance(value, dict):
        raise ValueError("header: is not a table")
    return {key: tuple(_strings(f"header.{key}", each)) for key, each in value.items()}


def _pairs(folder: Path, value: object) -> tuple[tuple[Path, Path | None], ...]:
    found: list[tuple[Path, Path | None]] = []
    for each in [value] if isinstance(value, str) else value if isinstance(value, list) else [None]:
        match each:
            case str():
                found.append((folder / each, None))
            case [str(certificate), str(key)]:
                found.append((folder / certificate, folder / key))
            case _:
                raise ValueError(f"client: {each!r} is not a file, nor a pair of them")
    return tuple(found)


def _strings(key: str, value: object) -> list[str]:
    found = [value] if isinstance(value, str) else value
    if not isinstance(found, list) or not all(isinstance(each, str) for each in found):
        raise ValueError(f"{key}: {value!r} is not a string, nor a list of them")
    return found


def _switch(key: str, value: object) -> bool | None:
    if value is not None and not isinstance(value, bool):
        raise ValueError(f"{key}: {value!r} is neither true nor false")
    return value


def _duration(value: object) -> float | None:
    try:
        return None if value is None else seconds(value)
    except ValueError as exc:
        raise ValueError(f"dial_timeout: {exc}") from None


def _docker_certificates(folder: Path) -> Host:
    """Docker's way: each ``.crt`` is an authority, each ``.cert`` with its ``.key`` is a pair."""
    pairs: list[tuple[Path, Path | None]] = []
    for certificate in sorted(folder.glob("*.cert")):
        key = certificate.with_suffix(".key")
        pairs.append((certificate, key if key.exists() else None))
    return Host(authorities=tuple(sorted(folder.glob("*.crt"))), pairs=tuple(pairs))
