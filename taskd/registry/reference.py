"""Names of images. Source: containerd's ``pkg/reference``, and ``distribution/reference``."""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import urlsplit

from taskd import digests
from taskd.errors import InvalidArgument, Unknown

__all__ = ["Reference", "familiar", "normalized", "oci_name", "parse"]

_DOMAIN = re.compile(
    r"(?:[A-Za-z0-9]|[A-Za-z0-9][A-Za-z0-9-]*[A-Za-z0-9])"
    r"(?:\.(?:[A-Za-z0-9]|[A-Za-z0-9][A-Za-z0-9-]*[A-Za-z0-9]))*(?::[0-9]+)?"
    r"|\[[A-Fa-f0-9:]+\](?::[0-9]+)?",
    re.ASCII,
)
_PATH = re.compile(r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*", re.ASCII)
_TAG = re.compile(r"[\w][\w.-]{0,127}", re.ASCII)

_MAX_NAME = 255
_MAX = 4096
"""Of a whole reference: more than any has."""


@dataclass(frozen=True, slots=True)
class Reference:
    """Where an image is: ``locator`` is host and path, ``object`` a tag, ``@digest`` or both."""

    locator: str
    object: str

    @property
    def host(self) -> str:
        """With its port, if it has one."""
        return self.locator.partition("/")[0]

    @property
    def hostname(self) -> str:
        """Without its port."""
        return urlsplit(f"//{self.host}").hostname or ""

    @property
    def repository(self) -> str:
        return self.locator.partition("/")[2]

    @property
    def tag(self) -> str:
        return self.object.partition("@")[0]

    @property
    def digest(self) -> str:
        return self.object.partition("@")[2]


def parse(text: str) -> Reference:
    """The parts of a name with a host. Raises `Unknown`, with containerd's words."""
    if "://" in text or len(text) > _MAX:
        raise Unknown("invalid reference")
    if re.search(r"[\x00-\x20\x7f]", text):
        raise Unknown(f"parse {text!r}: invalid character in a reference")
    host, slash, path = text.partition("/")
    if not host:
        raise Unknown("hostname required")
    _require_host(host, text)
    found = re.search("[:@]", path)
    if found is None:
        return Reference(_joined(host, path if slash else ""), "")
    return Reference(_joined(host, path[: found.start()]), path[found.start() :].removeprefix(":"))


def normalized(text: str) -> str:
    """A name as Docker's users write it, in full: ``busybox`` is
    ``docker.io/library/busybox:latest``. Raises `InvalidArgument`.
    """
    domain, path, tag, digest = _split(text)
    if digest:
        return f"{domain}/{path}@{digest}"
    return f"{domain}/{path}:{tag or 'latest'}"


def familiar(text: str) -> str:
    """The opposite of `normalized`: as short as can be. Raises `InvalidArgument`."""
    domain, path, tag, digest = _split(text)
    name = f"{domain}/{path}"
    if domain == "docker.io":
        name = path.removeprefix("library/") if path.count("/") == 1 else path
    if not tag and not digest:
        tag = "latest"
    return name + (f":{tag}" if tag else "") + (f"@{digest}" if digest else "")


def oci_name(name: str) -> str:
    """What OCI's annotation of a name has: the tag if there is one, or else all of it."""
    try:
        found = parse(name)
    except Unknown:
        return name
    return found.object if found.object and not found.object.startswith("@") else name


def _joined(host: str, path: str) -> str:
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise Unknown("invalid reference")
    return "/".join((host, *parts))


def _require_host(host: str, text: str) -> None:
    try:
        parts = urlsplit(f"//{host}")
        valid = bool(parts.hostname) and (parts.port is None or parts.port >= 0)
    except ValueError:
        valid = False
    if not valid or "@" in host or "?" in host or "#" in host:
        raise Unknown(f'parse "dummy://{text}": invalid host')


def _split(text: str) -> tuple[str, str, str, str]:
    """Domain, path, tag and digest."""

    def refused() -> InvalidArgument:
        return InvalidArgument(f'normalize image ref "{text[:_MAX]}": invalid reference format')

    if len(text) > _MAX:
        raise refused()
    rest, _, digest = text.partition("@")
    if "@" in text:
        try:
            digests.validate(digest)
        except InvalidArgument:
            raise refused() from None
    tag = ""
    head, colon, last = rest.rpartition(":")
    if colon and "/" not in last:
        rest, tag = head, last
        if not _TAG.fullmatch(tag):
            raise refused()
    domain, slash, path = rest.partition("/")
    is_domain = bool(re.search("[.:A-Z]", domain)) or domain == "localhost"
    if not slash or not is_domain:
        domain, path = "docker.io", rest
    if domain == "index.docker.io":
        domain = "docker.io"
    if domain == "docker.io" and "/" not in path:
        path = f"library/{path}"
    if (
        not _DOMAIN.fullmatch(domain)
        or not all(_PATH.fullmatch(part) for part in path.split("/"))
        or len(path) > _MAX_NAME
        or re.fullmatch("[a-f0-9]{64}", rest)
    ):
        raise refused()
    return domain, path, tag, digest
