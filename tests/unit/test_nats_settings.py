from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskd.nats.settings import NatsConfig, Subjects, without_credentials

USUAL = "taskd.{node}.{namespace}.{topic}"


def test_subject_of_an_event() -> None:
    assert Subjects(USUAL).of("one", "moby", "/tasks/exit") == "taskd.one.moby.tasks.exit"
    assert Subjects("{node}.x.{topic}").of("one", "moby", "/a") == "one.x.a"


@pytest.mark.parametrize("name", ["a.b", "*", ">", "a b", "ä", "a%2Eb", "a\r\nb"])
def test_every_name_is_one_token(name: str) -> None:
    tokens = Subjects(USUAL).of(name, name, "/a").split(".")
    assert len(tokens) == 4
    assert not {*tokens[1]} & {*".*> \r\n"}


text = st.text(min_size=1)


@given(st.tuples(text, text), st.tuples(text, text))
def test_different_names_have_different_subjects(
    one: tuple[str, str], other: tuple[str, str]
) -> None:
    subjects = Subjects(USUAL)
    same = subjects.of(*one, "/a") == subjects.of(*other, "/a")
    assert same == (one == other)


def test_wildcards() -> None:
    assert Subjects(USUAL).of_node("a.b") == "taskd.a%2Eb.*.>"
    assert Subjects(USUAL).all() == "taskd.*.*.>"


@pytest.mark.parametrize(
    "template",
    [
        "",
        "taskd",
        "{topic}",
        "{node}",
        "{node}.{topic}.x",
        "{topic}.{node}.{topic}",
        "a{node}.{topic}",
        "{nodes}.{topic}",
        "{}.{node}.{topic}",
        "a b.{node}.{topic}",
        "a..{node}.{topic}",
        "*.{node}.{topic}",
    ],
)
def test_bad_template(template: str) -> None:
    with pytest.raises(ValueError, match="'"):
        Subjects(template)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("nats://h:4222", "nats://h:4222"),
        ("nats://u:p@h:4222", "nats://h:4222"),
        ("tls://token@h", "tls://h"),
        ("nats://u:p@q@h", "nats://h"),
        ("nats://u:p/q@h", "nats://h"),
        ("u:p@h", "h"),
        (
            "no server at nats://u:p@h, ws://v:q@i: refused",
            "no server at nats://h, ws://i: refused",
        ),
        ("['nats://u:p@h', \"tls://v@i\"]", "['nats://h', \"tls://i\"]"),
    ],
)
def test_credentials_are_not_shown(text: str, shown: str) -> None:
    assert without_credentials(text) == shown


@pytest.mark.parametrize(
    ("settings", "secure"),
    [
        (NatsConfig(("nats://h",)), False),
        (NatsConfig(("ws://h",)), False),
        (NatsConfig(("tls://h",)), True),
        (NatsConfig(("wss://h",)), True),
        (NatsConfig(("nats://h", "tls://i")), True),
        (NatsConfig(("nats://h",), tls_ca=Path("/ca")), True),
        (NatsConfig(("ws://h",), tls_cert=Path("/mine")), True),
    ],
)
def test_what_is_encrypted(settings: NatsConfig, secure: bool) -> None:
    assert settings.is_secure == secure
