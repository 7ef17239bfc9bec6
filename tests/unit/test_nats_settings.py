from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskd.nats.settings import Subjects

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
