"""Requests to hosts of registries, with what they want to see, and tried again where that helps.

Source: containerd's ``core/remotes/docker/resolver.go`` (``doWithRetries``).
"""

from __future__ import annotations

import json
import logging
import re
import ssl
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Self
from urllib import request as urllib_request

import aiohttp
import anyio
from anyio import to_thread
from multidict import CIMultiDict
from yarl import URL

import taskd
from taskd.errors import TaskdError, Unknown
from taskd.registry.authorization import (
    MAX_TOKEN_ANSWER,
    AskCredentials,
    AuthorizationFailed,
    Authorizer,
)
from taskd.registry.dump import Dump, Write, trace
from taskd.registry.hosts import Host, is_loopback

__all__ = ["Client", "Request", "limited", "pieces", "unexpected"]

_log = logging.getLogger(__name__)

ATTEMPTS = 5
CONNECT_SECONDS = 30.0
ANSWER_SECONDS = 30.0
"""Until an answer begins."""
PAUSE = 0.1
"""Seconds until the first attempt is repeated; each time it is twice as long."""
MAX_WAIT = 10.0
"""Seconds for which a host may have us wait, if it has too much to do."""

_SAID = {"digest", "from", "mount", "ns"}
"""What may be seen of an address's query; in the rest there may be secrets."""
_MAX_ERROR = 64000
_MAX_REDIRECTS = 10
_MAX_HEADER = 1 << 16
_READ_AHEAD = 1 << 20

_TRANSIENT = (aiohttp.ServerDisconnectedError, aiohttp.ServerTimeoutError, aiohttp.ClientOSError)
_BUSY = (408, 429)
_FAILING = (500, 502, 503, 504)


@dataclass(slots=True)
class Request:
    """What is asked of one host."""

    host: Host
    method: str
    url: URL
    headers: dict[str, str] = field(default_factory=dict)
    scopes: tuple[str, ...] = ()
    """What it is about, in tokens."""
    body: Callable[[], AsyncIterator[bytes]] | None = None
    size: int = 0
    last: bool = True
    """No other host is asked after this one, so that it is worth waiting for."""
    trusted: bool = True
    """It may see who asks, and what headers the client has for the registry."""

    @property
    def shown(self) -> str:
        """The address, without what may be secret in it."""
        url = self.url.with_user(None) if self.url.user else self.url
        query = {key: each if key in _SAID else "REDACTED" for key, each in url.query.items()}
        return str(url.with_query(query))


class Client:
    """Connections to hosts, for as long as one transfer lasts; use it in ``async with``."""

    def __init__(
        self,
        headers: Mapping[str, str],
        ask: AskCredentials | None,
        idle_seconds: float,
        dump: Write | None = None,
        traced: bool = False,
    ) -> None:
        """`headers` go with each request. After `idle_seconds` without a byte a host has gone.

        `dump` is shown all requests and answers; if `traced`, the log tells of connections.
        """
        named = [value for key, value in headers.items() if key.lower() == "user-agent"]
        others = {key: value for key, value in headers.items() if key.lower() != "user-agent"}
        self._headers = {"User-Agent": (*named, f"taskd/{taskd.__version__}")[0], **others}
        self._ask = ask
        self._idle = idle_seconds
        self._middlewares = [] if dump is None else [Dump(dump)]
        self._traces = [trace()] if traced else []
        self._authorizers: dict[tuple[str, str], Authorizer] = {}
        self._contexts: dict[tuple[object, ...], ssl.SSLContext] = {}
        self._plain: set[str] = set()

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, ttl_dns_cache=60),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            read_bufsize=_READ_AHEAD,
            max_line_size=_MAX_HEADER,
            max_field_size=_MAX_HEADER,
            middlewares=self._middlewares,
            trace_configs=self._traces,
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        with anyio.CancelScope(shield=True):
            await self._session.close()

    @asynccontextmanager
    async def send(self, request: Request) -> AsyncIterator[aiohttp.ClientResponse]:
        """The answer, whatever its status, as long as the context is open.

        Tried again are what was refused for want of authorization, and, at the last host, what may
        go well the next time. Raises `Unknown`, `AuthorizationFailed`.
        """
        response = await self._send(request)
        try:
            yield response
        finally:
            # One that was not read to its end has no use for another request.
            response.close()

    async def _send(self, request: Request) -> aiohttp.ClientResponse:
        statuses: list[int] = []
        authorizer = self._authorizer(request.host) if request.trusted else None
        for attempt in range(1, ATTEMPTS + 1):
            try:
                shown = await authorizer.header(request.scopes) if authorizer else None
            except TaskdError as exc:
                raise exc.within("failed to authorize") from exc
            try:
                response = await self._once(request, shown)
            except (aiohttp.ClientError, TimeoutError, OSError) as exc:
                if request.last and attempt < ATTEMPTS and isinstance(exc, _TRANSIENT):
                    _log.debug("%s %s: %s; once more", request.method, request.shown, exc)
                    await anyio.sleep(PAUSE * 2 ** (attempt - 1))
                    continue
                raise _failure(request, exc) from exc
            statuses.append(response.status)
            try:
                again = attempt < ATTEMPTS and await self._again(
                    request, response, authorizer, shown, statuses
                )
            except BaseException:
                response.close()
                raise
            if not again:
                return response
            response.close()
        raise AssertionError("the last attempt returns or raises")

    async def _again(
        self,
        request: Request,
        response: aiohttp.ClientResponse,
        authorizer: Authorizer | None,
        shown: str | None,
        statuses: Sequence[int],
    ) -> bool:
        status = response.status
        if status == 401 and authorizer is not None:
            wanted = response.headers.getall("WWW-Authenticate", ())
            return await authorizer.refused(wanted, shown, again=statuses.count(401) > 1)
        if status == 405 and request.method == "HEAD":
            request.method = "GET"
            return True
        if status in _BUSY or (status in _FAILING and request.last and statuses.count(status) < 2):
            await anyio.sleep(_wait(response, len(statuses)))
            return True
        return False

    async def _once(self, request: Request, authorization: str | None) -> aiohttp.ClientResponse:
        host, url = request.host, request.url
        if host.plain_after_tls and host.name in self._plain:
            url = url.with_scheme("http")
        try:
            return await self._ask_host(request, url, authorization)
        except aiohttp.ClientConnectorSSLError:
            if not host.plain_after_tls or url.scheme == "http":
                raise
        _log.debug("%s does not speak TLS", host.name)
        self._plain.add(host.name)
        return await self._ask_host(request, url.with_scheme("http"), authorization)

    async def _ask_host(
        self, request: Request, url: URL, authorization: str | None
    ) -> aiohttp.ClientResponse:
        own = self._headers if request.trusted else {"User-Agent": self._headers["User-Agent"]}
        headers = CIMultiDict({**own, **request.headers})
        for key, values in request.host.headers.items():
            headers.popall(key, None)
            for value in values:
                headers.add(key, value)
        if authorization is not None:
            headers["Authorization"] = authorization
        if request.body is not None:
            headers["Content-Length"] = str(request.size)
        _log.debug("%s %s", request.method, request.shown)
        with anyio.fail_after(None if request.body is not None else self._answer_seconds):
            return await self._session.request(
                request.method,
                url,
                headers=headers,
                data=None if request.body is None else request.body(),
                allow_redirects=request.method in ("GET", "HEAD"),
                max_redirects=_MAX_REDIRECTS,
                ssl=await self._context(request.host),
                proxy=_proxy(url),
                timeout=aiohttp.ClientTimeout(
                    total=None,
                    sock_connect=request.host.dial_timeout or CONNECT_SECONDS,
                    sock_read=self._idle,
                ),
            )

    @property
    def _answer_seconds(self) -> float:
        return CONNECT_SECONDS + ANSWER_SECONDS

    def _authorizer(self, host: Host) -> Authorizer:
        key = host.scheme, host.name
        if key not in self._authorizers:

            async def post(
                url: str,
                *,
                query: Iterable[tuple[str, str]] = (),
                form: Mapping[str, str] | None = None,
                headers: Mapping[str, str],
            ) -> tuple[int, bytes]:
                return await self._fetch_token(host, url, query, form, headers)

            self._authorizers[key] = Authorizer(host.name, self._ask, post)
        return self._authorizers[key]

    async def _fetch_token(
        self,
        host: Host,
        url: str,
        query: Iterable[tuple[str, str]],
        form: Mapping[str, str] | None,
        headers: Mapping[str, str],
    ) -> tuple[int, bytes]:
        method = "GET" if form is None else "POST"
        where = URL(url)
        where = where.with_query([*where.query.items(), *query])
        try:
            with anyio.fail_after(self._answer_seconds):
                async with self._session.request(
                    method,
                    where,
                    headers={**self._headers, **headers},
                    data=form,
                    max_redirects=_MAX_REDIRECTS,
                    ssl=await self._context(host),
                    proxy=_proxy(where),
                ) as response:
                    body = await limited(response, MAX_TOKEN_ANSWER)
                    return response.status, body
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as exc:
            raise AuthorizationFailed(
                f"failed to fetch a token: {method} {url}: {_words(exc)}"
            ) from exc

    async def _context(self, host: Host) -> ssl.SSLContext:
        key = host.authorities, host.pairs, host.skip_verify
        if key not in self._contexts:
            self._contexts[key] = await to_thread.run_sync(_context, host)
        return self._contexts[key]


def _context(host: Host) -> ssl.SSLContext:
    """Raises `Unknown` for a file that cannot be read or is no certificate."""
    context = ssl.create_default_context()
    if host.skip_verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    for file in host.authorities:
        try:
            context.load_verify_locations(file)
        except (OSError, ssl.SSLError) as exc:
            raise Unknown(f'unable to load CA cert "{file}": {exc}') from exc
    for certificate, key in host.pairs:
        try:
            context.load_cert_chain(certificate, key)
        except (OSError, ssl.SSLError) as exc:
            raise Unknown(f'failed to load X509 key pair "{certificate}": {exc}') from exc
    return context


def _proxy(url: URL) -> str | None:
    """What the environment has, as Go reads it; never to this machine itself."""
    host = url.host or ""
    # This takes the variables alone, where the system's settings are something else.
    proxies = urllib_request.getproxies()
    if url.scheme not in proxies or is_loopback(host) or urllib_request.proxy_bypass(host):
        return None
    return proxies[url.scheme]


def _wait(response: aiohttp.ClientResponse, attempt: int) -> float:
    """Seconds until a host that is busy is asked once more."""
    said = response.headers.get("Retry-After", "")
    own = PAUSE * 2.0 ** (attempt - 1)
    return min(max(float(said), own), MAX_WAIT) if re.fullmatch("[0-9]{1,9}", said) else own


async def pieces(response: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    """A body as it comes, or, if it has been read before, as it was. Raises aiohttp's errors."""
    if response.content.at_eof():
        yield await response.read()
    async for piece in response.content.iter_any():
        yield piece


async def limited(response: aiohttp.ClientResponse, size: int) -> bytes:
    """All of a body that has at most `size` bytes. Raises `Unknown`, and aiohttp's errors."""
    found = bytearray()
    async for piece in pieces(response):
        found += piece
        if len(found) > size:
            raise Unknown(f"{response.url.host} sends more than {size} bytes")
    return bytes(found)


async def unexpected(
    request: Request, response: aiohttp.ClientResponse, method: str = ""
) -> Unknown:
    """The error for a status that was not to be, with what the registry says of it.

    `method`, if given, is the one that was refused first.
    """
    words = (
        f"unexpected status from {method or request.method} request to {request.shown}: "
        f"{response.status} {response.reason}"
    )
    try:
        with anyio.fail_after(ANSWER_SECONDS):
            body = await limited(response, _MAX_ERROR)
        words += _said(json.loads(body)) if body else ""
    except (aiohttp.ClientError, TimeoutError, OSError, ValueError, RecursionError, Unknown):
        pass
    return Unknown(words)


def _said(document: Any) -> str:
    """The errors in a registry's answer, each on a line."""
    errors = document.get("errors") if isinstance(document, dict) else None
    lines = ""
    for error in errors if isinstance(errors, list) else ():
        if isinstance(error, dict) and isinstance(error.get("code"), str):
            code = error["code"].lower().replace("_", " ")
            lines += f"\n{code}: {error.get('message') or 'unknown error'}"
    return lines


def _failure(request: Request, exc: BaseException) -> Unknown:
    method = request.method.capitalize()
    return Unknown(f'failed to do request: {method} "{request.shown}": {_words(exc)}')


def _words(exc: BaseException) -> str:
    match exc:
        case aiohttp.ClientConnectorCertificateError():
            return f"tls: failed to verify certificate: {exc.certificate_error}"
        case aiohttp.ClientConnectorError():
            why = exc.os_error.strerror or str(exc.os_error)
            return f"dial tcp {exc.host}:{exc.port}: {why}"
        case TimeoutError():
            return "it took too long to answer"
        case aiohttp.ServerDisconnectedError():
            return "EOF"
        case _:
            return str(exc) or type(exc).__name__
