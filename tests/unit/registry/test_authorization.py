from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping

import pytest

from taskd.errors import Unknown
from taskd.registry.authorization import AuthorizationFailed, Authorizer, Credentials, challenges

BEARER = 'Bearer realm="https://auth.example/token",service="r.example",scope="repository:a:pull"'


class TokenServer:
    """Answers as told, and notes down what it was asked."""

    def __init__(self, *answers: tuple[int, object]) -> None:
        self.answers = list(answers)
        self.asked: list[tuple[str, object, str | None]] = []

    async def __call__(
        self,
        url: str,
        *,
        query: Iterable[tuple[str, str]] = (),
        form: Mapping[str, str] | None = None,
        headers: Mapping[str, str],
    ) -> tuple[int, bytes]:
        self.asked.append((url, dict(form) if form else list(query), headers.get("Authorization")))
        status, answer = self.answers.pop(0)
        return status, answer if isinstance(answer, bytes) else json.dumps(answer).encode()


def asking(credentials: Credentials) -> object:
    async def ask(host: str) -> Credentials:
        assert host == "r.example"
        return credentials

    return ask


def authorizer(server: TokenServer, credentials: Credentials | None = None) -> Authorizer:
    ask = None if credentials is None else asking(credentials)
    return Authorizer("r.example", ask, server)  # type: ignore[arg-type]


def test_challenges() -> None:
    found = challenges(
        ['Basic realm="a \\"b\\" c"', 'BEARER realm="x", Service=y ,scope="z,w"', "", "=", "Digest"]
    )
    assert [(each.scheme, each.parameters) for each in found] == [
        ("bearer", {"realm": "x", "service": "y", "scope": "z,w"}),
        ("basic", {"realm": 'a "b" c'}),
        ("digest", {}),
    ]


async def test_nothing_is_shown_before_it_is_asked_for() -> None:
    assert await authorizer(TokenServer(), Credentials("u", "p")).header(["s"]) is None


async def test_basic() -> None:
    shown = authorizer(TokenServer(), Credentials("u", "p"))
    assert await shown.refused(['Basic realm="r"'], None, again=False)
    assert await shown.header([]) == "Basic dTpw"
    assert not await shown.refused(['Basic realm="r"'], "Basic dTpw", again=True)


async def test_basic_without_a_password() -> None:
    shown = authorizer(TokenServer(), Credentials())
    with pytest.raises(AuthorizationFailed, match="no basic auth credentials"):
        await shown.refused(['Basic realm="r"'], None, again=False)
    # Nobody can be asked.
    assert not await authorizer(TokenServer()).refused(['Basic realm="r"'], None, again=False)


async def test_a_token_for_anybody() -> None:
    server = TokenServer((200, {"token": "T"}))
    shown = authorizer(server)
    assert await shown.refused([BEARER], None, again=False)
    assert await shown.header(["repository:a:pull", "repository:a:pull,push"]) == "Bearer T"
    assert await shown.header(["repository:a:pull,push"]) == "Bearer T"  # the same one
    assert server.asked == [
        (
            "https://auth.example/token",
            [
                ("service", "r.example"),
                ("scope", "repository:a:pull"),
                ("scope", "repository:a:pull,push"),
            ],
            None,
        )
    ]


async def test_a_token_for_a_password() -> None:
    server = TokenServer((200, {"access_token": "T"}))
    shown = authorizer(server, Credentials("u", "p"))
    await shown.refused([BEARER], None, again=False)
    assert await shown.header([]) == "Bearer T"
    ((_, form, _),) = server.asked
    assert form == {
        "grant_type": "password",
        "username": "u",
        "password": "p",
        "service": "r.example",
        "client_id": "containerd-client",
        "scope": "repository:a:pull",
    }


async def test_a_token_for_a_token() -> None:
    server = TokenServer((200, {"access_token": "T"}))
    shown = authorizer(server, Credentials(secret="long"))
    await shown.refused([BEARER], None, again=False)
    assert await shown.header([]) == "Bearer T"
    ((_, form, _),) = server.asked
    assert isinstance(form, dict)
    assert form["refresh_token"] == "long"


async def test_a_token_server_that_knows_no_post() -> None:
    server = TokenServer((404, b""), (200, {"token": "T"}))
    shown = authorizer(server, Credentials("u", "p"))
    await shown.refused([BEARER], None, again=False)
    assert await shown.header([]) == "Bearer T"
    assert server.asked[1][2] == "Basic dTpw"


async def test_a_token_that_has_expired_is_fetched_anew() -> None:
    server = TokenServer((200, {"token": "1", "expires_in": 1e-9}), (200, {"token": "2"}))
    shown = authorizer(server)
    await shown.refused([BEARER], None, again=False)
    assert await shown.header([]) == "Bearer 1"
    assert await shown.header([]) == "Bearer 2"


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"no JSON",
        b"[" * 100_000,
        [],
        {},
        {"token": 1},
        {"token": "with\nline"},
        {"token": "T", "expires_in": "soon"},
    ],
)
async def test_what_is_no_token(answer: object) -> None:
    shown = authorizer(TokenServer((200, answer)))
    await shown.refused([BEARER], None, again=False)
    with pytest.raises(Unknown, match="unable to decode token response"):
        await shown.header([])


@pytest.mark.parametrize("status", [401, 403, 500])
async def test_a_token_server_that_refuses(status: int) -> None:
    shown = authorizer(TokenServer((status, b"")))
    await shown.refused([BEARER], None, again=False)
    with pytest.raises(AuthorizationFailed, match=f"anonymous token.*{status}"):
        await shown.header([])


@pytest.mark.parametrize("realm", ["", "file:///etc/passwd", "https://", "/token"])
async def test_a_realm_that_is_no_address(realm: str) -> None:
    shown = authorizer(TokenServer(), Credentials("u", "p"))
    await shown.refused([f'Bearer realm="{realm}"'], None, again=False)
    with pytest.raises(Unknown, match="realm"):
        await shown.header([])


async def test_a_token_that_is_refused_again() -> None:
    shown = authorizer(TokenServer((200, {"token": "T"})))
    await shown.refused([BEARER], None, again=False)
    with pytest.raises(AuthorizationFailed, match="insufficient_scope"):
        await shown.refused([BEARER + ',error="insufficient_scope"'], "Bearer T", again=True)


async def test_a_header_that_the_client_gives_itself() -> None:
    shown = authorizer(TokenServer(), Credentials(header="Bearer mine"))
    assert await shown.refused([BEARER], None, again=False)
    assert await shown.header([]) == "Bearer mine"


@pytest.mark.parametrize(
    "header", ["Bearer " + "a" * 65_536, 'Bearer a="' + "\\" * 65_535, "a=," * 20_000, "," * 65_536]
)
def test_challenges_that_are_long_take_no_longer(header: str) -> None:
    begin = time.process_time()
    challenges([header] * 10)
    assert time.process_time() - begin < 2
