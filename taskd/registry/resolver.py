"""What one transfer asks of a registry: what a name means, blobs, and to take some.

Source: containerd's ``core/remotes/docker``: ``resolver.go``, ``fetcher.go``, ``pusher.go``.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Self

import aiohttp
from anyio import to_thread
from yarl import URL

from taskd import digests
from taskd.errors import (
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    TaskdError,
    Unimplemented,
    Unknown,
)
from taskd.registry import hosts as hosts_
from taskd.registry import reference as references
from taskd.registry.authorization import AskCredentials, AuthorizationFailed
from taskd.registry.dump import Write
from taskd.registry.hosts import Capability, Host
from taskd.registry.http import Client, Request, limited, pieces, unexpected

__all__ = ["MAX_MANIFEST", "Registry"]

_log = logging.getLogger(__name__)

MAX_MANIFEST = 4 * 1048 * 1048
"""Bytes of a manifest; containerd's number."""

ACCEPTED = (
    "application/vnd.docker.distribution.manifest.v2+json, "
    "application/vnd.docker.distribution.manifest.list.v2+json, "
    "application/vnd.oci.image.manifest.v1+json, "
    "application/vnd.oci.image.index.v1+json, */*"
)
SCHEMA_1 = "application/vnd.docker.distribution.manifest.v1+prettyjws"

_OCTETS = "application/octet-stream"
_DENIED = "access denied, repository does not exist or may require authorization"


class Registry:
    """The registry that has the image `name`; use it in ``async with``."""

    def __init__(
        self,
        name: str,
        *,
        host_dir: Path | None = None,
        default_scheme: str = "",
        headers: Mapping[str, str] | None = None,
        ask: AskCredentials | None = None,
        idle_seconds: float = 60.0,
        dump: Write | None = None,
        traced: bool = False,
    ) -> None:
        """`host_dir` and `default_scheme` are as for `hosts.find`, the rest as for `http.Client`.

        Raises `Unknown` for a name that is none.
        """
        self.name = name
        self.reference = references.parse(name)
        self._host_dir = host_dir
        self._default_scheme = default_scheme
        headers = dict(headers or {})
        accepted = [key for key in headers if key.lower() == "accept"]
        self._accepted = headers.pop(accepted[0]) if accepted else ACCEPTED
        self._client = Client(headers, ask, idle_seconds, dump, traced)

    async def __aenter__(self) -> Self:
        """Raises `InvalidArgument` for a file of hosts that cannot be read."""
        self._hosts = await to_thread.run_sync(
            hosts_.find, self.reference.host, self._host_dir, self._default_scheme
        )
        await self._client.__aenter__()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.__aexit__()

    async def resolve(self) -> tuple[str, str, int]:
        """Media type, digest and size of what the name means.

        Raises `NotFound`, `AuthorizationFailed`, `Unknown`.
        """
        wanted = self.reference
        if not wanted.object:
            raise Unknown("object required")
        paths = [("manifests", wanted.tag)]
        needed = Capability.PULL | Capability.RESOLVE
        if digest := wanted.digest:
            try:
                digests.validate(digest)
            except InvalidArgument as exc:
                raise Unknown(exc.message) from None
            paths = [("manifests", digest), ("blobs", digest)]
            needed = Capability.PULL
        hosts = self._able(needed)
        if not hosts:
            raise NotFound("no resolve hosts")
        # The error of whoever came furthest is the one to be told.
        worst: tuple[int, TaskdError] = (0, NotFound(self.name))
        for path in paths:
            if worst[0] > 2:
                break
            for number, host in enumerate(hosts):
                rank: int
                error: TaskdError
                request = self._request(host, "HEAD", *path, last=number == len(hosts) - 1)
                request.headers["Accept"] = self._accepted
                try:
                    return await self._resolved(request, digest)
                except AuthorizationFailed as exc:
                    words = (
                        "pull access denied, repository does not exist or may require authorization"
                    )
                    rank, error = 1, AuthorizationFailed(f"{words}: {exc}")
                except _Refused as exc:
                    rank, error = exc.rank, exc.error
                except Unknown as exc:
                    rank, error = 1, exc
                _log.info("%s: %s: %s", self.name, host.name, error)
                if rank > worst[0]:
                    worst = rank, error
        raise worst[1]

    async def _resolved(self, request: Request, digest: str) -> tuple[str, str, int]:
        async with self._client.send(request) as response:
            if response.status == 404:
                raise _Refused(2, NotFound(self.name))
            if response.status > 299:
                raise _Refused(3, await self._refusal(request, response))
            media_type = _media_type(response)
            size = response.content_length
            said = response.headers.get("Docker-Content-Digest", "")
        if not digest and said and size is not None:
            try:
                digests.validate(said)
            except InvalidArgument as exc:
                raise Unknown(f'"{said}" in header not a valid digest: {exc}') from None
            digest = said
        if not digest or size is None:
            media_type, found, size = await self._whole_manifest(request)
            digest = digest or found
        if size > MAX_MANIFEST:
            words = f"rejecting {size} byte manifest for {self.name}"
            raise _Refused(4, NotFound(words))
        return media_type, digest, size

    async def _whole_manifest(self, request: Request) -> tuple[str, str, int]:
        """For registries that do not tell what they have, unless it is fetched."""
        request.method = "GET"
        async with self._client.send(request) as response:
            if response.status > 299:
                raise await unexpected(request, response)
            media_type = _media_type(response)
            if media_type == SCHEMA_1:
                raise Unimplemented(f'media type "{SCHEMA_1}" is no longer supported')
            body = await self._read(request, response, MAX_MANIFEST)
        return media_type, f"sha256:{hashlib.sha256(body).hexdigest()}", len(body)

    async def _refusal(self, request: Request, response: aiohttp.ClientResponse) -> Unknown:
        if response.status != 403 or request.method != "HEAD":
            return await unexpected(request, response)
        # A HEAD tells no reason.
        request.method = "GET"
        async with self._client.send(request) as again:
            return await unexpected(request, again if again.status == 403 else response, "HEAD")

    async def fetch(
        self, media_type: str, digest: str, offset: int, urls: Sequence[str] = ()
    ) -> AsyncGenerator[bytes]:
        """The bytes of a blob or a manifest from `offset` on.

        How many come, and which, is for the caller to see to. Raises `NotFound`, `Unknown`,
        `AuthorizationFailed`.
        """
        kind = "manifests" if media_type in _MANIFESTS else "blobs"
        requests = [self._foreign(url) for url in urls if url.startswith(("http://", "https://"))]
        hosts = self._able(Capability.PULL)
        requests += [
            self._request(host, "GET", kind, digest, last=number == len(hosts) - 1)
            for number, host in enumerate(hosts)
        ]
        if not requests:
            raise NotFound("no pull hosts")
        first: TaskdError | None = None
        for request in requests:
            request.headers["Accept"] = f"{media_type}, */*" if media_type else "*/*"
            request.headers["Accept-Encoding"] = "identity"
            if offset:
                request.headers["Range"] = f"bytes={offset}-"
            body = self._body(request, offset)
            try:
                piece = await anext(body, b"")
            except TaskdError as exc:
                first = first or exc
                continue
            async with aclosing(body):
                yield piece
                async for piece in body:
                    yield piece
                return
        assert first is not None
        if isinstance(first, NotFound):
            words = f"could not fetch content descriptor {digest} ({media_type}) from remote"
            raise NotFound(words)
        raise first

    async def _body(self, request: Request, offset: int) -> AsyncGenerator[bytes]:
        async with self._client.send(request) as response:
            if response.status == 404:
                raise NotFound(f"content at {request.shown}")
            if response.status > 299:
                raise await unexpected(request, response)
            encoding = response.headers.get("Content-Encoding", "identity").strip().lower()
            if encoding not in ("", "identity"):
                raise Unknown(
                    f"{request.shown}: Content-Encoding {encoding}, which was not asked for"
                )
            skip = offset
            if response.status == 206:
                said = response.headers.get("Content-Range", f"bytes {offset}-")
                if not said.startswith(f"bytes {offset}-"):
                    raise Unknown(f"unhandled content range in response: {said}")
                skip = 0
            try:
                async for piece in pieces(response):
                    if skip >= len(piece):
                        skip -= len(piece)
                        continue
                    yield piece[skip:] if skip else piece
                    skip = 0
            except (aiohttp.ClientError, TimeoutError, OSError) as exc:
                raise Unknown(f"failed to copy: {request.shown}: {_cut(exc)}") from exc

    async def push_manifest(self, media_type: str, digest: str, content: bytes) -> None:
        """Raises `AlreadyExists` if it is there, `Unknown`, `AuthorizationFailed`."""
        host = self._pushed_to()
        tag = self.reference.tag if self.reference.digest in ("", digest) else ""
        path = ("manifests", tag or digest)
        await self._require_absent(host, path, media_type, digest)
        request = self._request(host, "PUT", *path, push=True)
        request.headers["Content-Type"] = media_type

        async def body() -> AsyncIterator[bytes]:
            yield content

        request.body, request.size = body, len(content)
        async with self._client.send(request) as response:
            await self._accepted_as(request, response, digest)

    async def push_blob(
        self,
        media_type: str,
        digest: str,
        size: int,
        body: Callable[[], AsyncIterator[bytes]],
        mount_from: str = "",
    ) -> None:
        """Send a blob, unless the repository `mount_from` of this registry has it.

        Raises as `push_manifest`.
        """
        host = self._pushed_to()
        await self._require_absent(host, ("blobs", digest), media_type, digest)
        where = (await self._begin(host, digest, mount_from)).update_query(digest=digest)
        request = self._request(host, "PUT", push=True)
        # Who we are is for the registry, and not for whom it sends us to.
        same = where.scheme == request.url.scheme or host.plain_after_tls
        request.trusted = where.authority == request.url.authority and same
        request.url = where
        request.headers["Content-Type"] = _OCTETS
        request.body, request.size = body, size
        async with self._client.send(request) as response:
            await self._accepted_as(request, response, digest)

    async def _begin(self, host: Host, digest: str, mount_from: str) -> URL:
        """Where to send a blob to. Raises `AlreadyExists` if it has been found elsewhere."""
        request = self._request(host, "POST", "blobs", "uploads/", push=True)
        if mount_from:
            wish = self._request(host, "POST", "blobs", "uploads/", push=True)
            wish.url = wish.url.update_query({"mount": digest, "from": mount_from})
            wish.scopes = (*wish.scopes, f"repository:{mount_from}:pull")
            try:
                async with self._client.send(wish) as response:
                    if response.status != 401:
                        return await self._location(wish, response, digest)
            except AuthorizationFailed as exc:
                _log.debug("%s cannot be mounted from %s: %s", digest, mount_from, exc)
        try:
            async with self._client.send(request) as response:
                return await self._location(request, response, digest)
        except AuthorizationFailed as exc:
            raise AuthorizationFailed(f"push {_DENIED}: {exc}") from exc

    async def _location(
        self, request: Request, response: aiohttp.ClientResponse, digest: str
    ) -> URL:
        if response.status == 201:
            raise AlreadyExists(f"content {digest} on remote")
        if response.status not in (200, 202, 204):
            raise await unexpected(request, response)
        location = response.headers.get("Location", "")
        try:
            found = response.url.join(URL(location)) if location else URL()
        except ValueError:
            found = URL()
        if found.scheme not in ("http", "https"):
            raise Unknown(f"unable to parse location {location!r}")
        return found

    async def _require_absent(
        self, host: Host, path: tuple[str, str], media_type: str, digest: str
    ) -> None:
        request = self._request(host, "HEAD", *path, push=True)
        request.headers["Accept"] = f"{media_type}, */*"
        try:
            async with self._client.send(request) as response:
                if response.status == 200:
                    said = response.headers.get("Docker-Content-Digest", "")
                    if path[1] == digest or said == digest:
                        raise AlreadyExists(f"content {digest} on remote")
                elif response.status != 404:
                    raise await self._refusal(request, response)
        except AuthorizationFailed as exc:
            _log.debug("%s is pushed without looking whether it is there: %s", digest, exc)

    async def _accepted_as(
        self, request: Request, response: aiohttp.ClientResponse, digest: str
    ) -> None:
        if response.status not in (200, 201, 202, 204):
            raise await unexpected(request, response)
        said = response.headers.get("Docker-Content-Digest")
        if said and said != digest:
            raise FailedPrecondition(f"got digest {said}, expected {digest}", verbatim=True)

    def _able(self, capabilities: Capability) -> list[Host]:
        return [host for host in self._hosts if capabilities in host.capabilities]

    def _pushed_to(self) -> Host:
        hosts = self._able(Capability.PUSH)
        if not hosts:
            raise NotFound("no push hosts")
        return hosts[0]

    def _request(
        self, host: Host, method: str, *path: str, push: bool = False, last: bool = True
    ) -> Request:
        parts = [part for part in (host.path.strip("/"), self.reference.repository, *path) if part]
        url = URL(f"{host.scheme}://{host.name}") / "/".join(parts)
        # A mirror has to know whom it stands for.
        own = ("docker.io", "registry-1.docker.io")
        if host.name != self.reference.host and {host.name, self.reference.host} != set(own):
            url = url.update_query(ns=self.reference.host)
        actions = "pull,push" if push else "pull"
        scope = f"repository:{self.reference.repository}:{actions}"
        return Request(host, method, url, scopes=(scope,), last=last)

    def _foreign(self, url: str) -> Request:
        """A place that a manifest names, which need not know who asks."""
        where = URL(url)
        return Request(Host(where.scheme, where.authority), "GET", where, last=False, trusted=False)

    async def _read(self, request: Request, response: aiohttp.ClientResponse, size: int) -> bytes:
        try:
            return await limited(response, size)
        except (aiohttp.ClientError, TimeoutError, OSError) as exc:
            raise Unknown(f"failed to copy: {request.shown}: {_cut(exc)}") from exc


_MANIFESTS = {
    "application/vnd.docker.distribution.manifest.v2+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.oci.image.index.v1+json",
}


class _Refused(Exception):
    """A host has answered, but not with what was asked for; the higher `rank`, the more it says."""

    def __init__(self, rank: int, error: TaskdError) -> None:
        super().__init__(rank, error)
        self.rank = rank
        self.error = error


def _media_type(response: aiohttp.ClientResponse) -> str:
    found = response.headers.get("Content-Type", "").partition(";")[0].strip()
    return SCHEMA_1 if found == "text/plain" else found


def _cut(exc: BaseException) -> str:
    match exc:
        case TimeoutError():
            return "nothing came for too long"
        case aiohttp.ClientPayloadError() | aiohttp.ServerDisconnectedError():
            return "unexpected EOF"
        case _:
            return str(exc) or type(exc).__name__
