"""What a host wants to see before it answers: a password, or a token for which it sends one on.

Source: containerd's ``core/remotes/docker/authorizer.go`` and ``auth``, and the distribution
project's specification of tokens.
"""

from __future__ import annotations

import base64
import json
import re
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import anyio

from taskd.errors import Unknown

__all__ = ["AskCredentials", "AuthorizationFailed", "Authorizer", "Credentials", "challenges"]

_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]++")
_PARAMETER = re.compile(
    rf"[\s,]*+(?P<key>{_TOKEN.pattern})\s*+=\s*+"
    rf'(?:"(?P<quoted>(?:[^"\\]|\\.)*+)"|(?P<plain>{_TOKEN.pattern}))'
)
_WITHOUT_POST = (400, 401, 404, 405)
"""What token servers answer that know no POST."""

MAX_TOKEN_ANSWER = 1 << 20


class AuthorizationFailed(Unknown):
    """The host does not take what it was shown, or there is nothing to show it."""


@dataclass(frozen=True, slots=True)
class Credentials:
    """Without a user's name, the secret is a token that lives long."""

    username: str = ""
    secret: str = field(default="", repr=False)
    header: str = field(default="", repr=False)
    """What goes into ``Authorization`` as it is, instead of the others."""


AskCredentials = Callable[[str], Awaitable[Credentials]]
"""Asks who somebody is, for a host."""


class Post(Protocol):
    """Asks a token server; answers its status and body. Raises `Unknown`."""

    async def __call__(
        self,
        url: str,
        *,
        query: Iterable[tuple[str, str]] = (),
        form: Mapping[str, str] | None = None,
        headers: Mapping[str, str],
    ) -> tuple[int, bytes]: ...


@dataclass(slots=True)
class _Token:
    header: str
    expires: float | None


@dataclass(frozen=True, slots=True)
class Challenge:
    """What a host answers to who has shown nothing, or nothing that it takes."""

    scheme: str
    parameters: Mapping[str, str]


class Authorizer:
    """What is shown to one host, as long as one transfer lasts."""

    def __init__(self, host: str, ask: AskCredentials | None, post: Post) -> None:
        self._host = host
        self._ask = ask
        self._post = post
        self._credentials: Credentials | None = None
        self._challenge: Challenge | None = None
        self._tokens: dict[str, _Token] = {}
        self._lock = anyio.Lock()

    async def header(self, scopes: Iterable[str]) -> str | None:
        """Value of ``Authorization``, for what is called so in tokens; None if nothing is known.

        Raises `AuthorizationFailed`, `Unknown`.
        """
        challenge = self._challenge
        if challenge is None:
            return None
        async with self._lock:  # one token serves all who wait for it
            credentials = await self._who()
            if credentials.header:
                return credentials.header
            if challenge.scheme == "basic":
                pair = f"{credentials.username}:{credentials.secret}".encode()
                return f"Basic {base64.b64encode(pair).decode()}"
            wanted = {*scopes, *challenge.parameters.get("scope", "").split()}
            key = " ".join(sorted(wanted))
            token = self._tokens.get(key)
            if token is None or (token.expires is not None and token.expires <= time.monotonic()):
                token = self._tokens[key] = await self._fetch(challenge, credentials, key.split())
            return token.header

    async def refused(self, headers: Iterable[str], shown: str | None, *, again: bool) -> bool:
        """Take note of a 401 with these ``WWW-Authenticate``; whether to try once more.

        `shown` is what the host was shown, `again` that it has refused the same request before.
        Raises `AuthorizationFailed`.
        """
        for challenge in challenges(headers):
            if challenge.scheme == "bearer":
                error = challenge.parameters.get("error", "")
                if again and shown is not None:
                    words = f"server message: {error}" if error else "server refused the token"
                    raise AuthorizationFailed(f"{words}: authorization failed")
                self._challenge = challenge
                self._tokens.clear()
                return True
            if challenge.scheme == "basic" and self._ask is not None:
                credentials = await self._who()
                if not credentials.header and not (credentials.username and credentials.secret):
                    raise AuthorizationFailed("authorization failed: no basic auth credentials")
                if again and shown is not None:
                    return False
                self._challenge = challenge
                return True
        return False

    async def _who(self) -> Credentials:
        if self._credentials is None:
            self._credentials = Credentials() if self._ask is None else await self._ask(self._host)
        return self._credentials

    async def _fetch(
        self, challenge: Challenge, credentials: Credentials, scopes: list[str]
    ) -> _Token:
        realm = challenge.parameters.get("realm", "")
        if not re.match("https?://[^/]", realm):
            raise Unknown(f"invalid token auth challenge realm: {realm!r}")
        service = challenge.parameters.get("service", "")
        if credentials.secret:
            form = {"service": service, "client_id": "containerd-client"}
            if scopes:
                form["scope"] = " ".join(scopes)
            if credentials.username:
                form |= {
                    "grant_type": "password",
                    "username": credentials.username,
                    "password": credentials.secret,
                }
            else:
                form |= {"grant_type": "refresh_token", "refresh_token": credentials.secret}
            status, body = await self._post(realm, form=form, headers={})
            if status < 300:
                return _token(body)
            if status not in _WITHOUT_POST or (status == 405 and not credentials.username):
                raise AuthorizationFailed(
                    f"failed to fetch oauth token: unexpected status from POST request to {realm}: "
                    f"{status}"
                )
        query = [("service", service)] if service else []
        query += [("scope", scope) for scope in scopes]
        headers = {}
        if credentials.secret:
            pair = f"{credentials.username}:{credentials.secret}".encode()
            headers["Authorization"] = f"Basic {base64.b64encode(pair).decode()}"
        status, body = await self._post(realm, query=query, headers=headers)
        if status >= 300:
            kind = "oauth" if credentials.secret else "anonymous"
            raise AuthorizationFailed(
                f"failed to fetch {kind} token: unexpected status from GET request to {realm}: "
                f"{status}"
            )
        return _token(body)


def _token(body: bytes) -> _Token:
    try:
        answer = json.loads(body)
        token = answer.get("access_token") or answer.get("token")
        lasts = answer.get("expires_in") or 0
        # What cannot stand in a header does not.
        sound = isinstance(token, str) and re.fullmatch("[!-~]+", token)
        if not sound or not isinstance(lasts, int | float):
            raise ValueError("authorization server did not include a token in the response")
    except (ValueError, AttributeError, RecursionError) as exc:
        raise Unknown(f"unable to decode token response: {exc}") from None
    return _Token(f"Bearer {token}", time.monotonic() + lasts if lasts > 0 else None)


def challenges(headers: Iterable[str]) -> list[Challenge]:
    """The challenges in ``WWW-Authenticate``, those first that are to be preferred."""
    found = [parsed for header in headers if (parsed := _parsed(header.lstrip())) is not None]
    return sorted(found, key=lambda challenge: challenge.scheme != "bearer")


def _parsed(header: str) -> Challenge | None:
    scheme = _TOKEN.match(header)
    if scheme is None:
        return None
    parameters = {}
    position = scheme.end()
    # One after another, as far as it goes: whoever searched would take long over a long one.
    while (found := _PARAMETER.match(header, position)) is not None:
        quoted, plain = found["quoted"], found["plain"]
        value = plain if quoted is None else re.sub(r"\\(.)", r"\1", quoted)
        parameters[found["key"].lower()] = value
        position = found.end()
    return Challenge(scheme[0].lower(), parameters)
