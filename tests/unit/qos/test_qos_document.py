from __future__ import annotations

from pathlib import Path

import pytest

from taskd.errors import InvalidArgument
from taskd.qos import document


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "f.yaml"


def load(file: Path, text: str) -> document.Value:
    file.write_text(text)
    return document.load(file)


def refusal(file: Path, line: int, words: str) -> str:
    return f"^{file}:{line}: {words}"


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("a: 1\nb: [1,\n", 3, "while parsing a flow node"),
        ("a: 1\n\tb: 2\n", 2, "while scanning for the next token"),
        ("a: *none\n", 1, "found undefined alias"),
        ("a: 1\n---\nb: 1\n", 2, "expected a single document"),
        ("a: 1\nb: \x01\n", 2, "special characters are not allowed"),
    ],
)
def test_what_is_not_yaml_is_told_with_its_line(
    file: Path, text: str, line: int, words: str
) -> None:
    with pytest.raises(InvalidArgument, match=refusal(file, line, words)):
        load(file, text)


def test_a_file_that_cannot_be_read_is_named(file: Path) -> None:
    with pytest.raises(InvalidArgument, match=str(file)):
        document.load(file)
    file.write_bytes(b"\xff")
    with pytest.raises(InvalidArgument, match=f"^{file}: "):
        document.load(file)


@pytest.mark.parametrize("text", ["", "# nothing\n", "null\n", "{}"])
def test_nothing_is_an_empty_mapping(file: Path, text: str) -> None:
    assert load(file, text).mapping() == {}


def test_keys_are_found_whatever_their_case(file: Path) -> None:
    found = load(file, "\nWEIGHT: 1\nthrottle: a\n").fields("Weight", "Throttle")
    assert {name: (value.line, value.text()) for name, value in found.items()} == {
        "Weight": (2, "1"),
        "Throttle": (3, "a"),
    }


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("a: 1\nc: 1\n", 2, "c: unknown key; known are a, b"),
        ("a: 1\na: 1\n", 2, "a: is given twice"),
        ("a: 1\nA: 1\n", 2, "A: is given twice"),
        ("on: 1\n", 1, "on: is not text; put it in quotes"),
        ("[a]\n", 1, "is not a mapping"),
        ("<<: &x {<<: *x}\n", 1, "is not a mapping"),
    ],
)
def test_what_is_wrong_with_keys(file: Path, text: str, line: int, words: str) -> None:
    with pytest.raises(InvalidArgument, match=refusal(file, line, words)):
        load(file, text).fields("a", "b")


def test_merged_keys_give_way_to_own_ones(file: Path) -> None:
    text = "x: &x {a: 1, b: 2}\ny: &y {b: 3, c: 4}\nz:\n  b: 5\n  <<: [*x, *y]\n"
    found = load(file, text).mapping()["z"].mapping()
    assert {key: value.text() for key, value in found.items()} == {"a": "1", "b": "5", "c": "4"}


@pytest.mark.parametrize(
    ("text", "expected"), [("10", "10"), ("1.5", "1.5"), ("x", "x"), ("'010'", "010"), ("~", "")]
)
def test_text(file: Path, text: str, expected: str) -> None:
    assert load(file, f"a: {text}").mapping()["a"].text() == expected


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("010", "a: 010 is not a decimal number"),
        ("0x10", "a: 0x10 is not a decimal number"),
        ("1:30", "a: 1:30 is not a decimal number"),
        ("yes", "a: 'yes' is neither text nor a number"),
        ("[1]", "a: is not a plain value"),
    ],
)
def test_what_is_no_text(file: Path, text: str, words: str) -> None:
    with pytest.raises(InvalidArgument, match=refusal(file, 2, words)):
        load(file, f"\na: {text}").mapping()["a"].text()


def test_booleans_and_lists(file: Path) -> None:
    found = load(file, "a: true\nb: no\nc:\nd: 1\ne:\n - x\n - y\n").mapping()
    assert [found[key].boolean() for key in "abc"] == [True, False, False]
    with pytest.raises(InvalidArgument, match="d: '1' is neither true nor false"):
        found["d"].boolean()
    assert [(value.line, value.text()) for value in found["e"].items()] == [(6, "x"), (7, "y")]
    assert found["c"].items() == []
    with pytest.raises(InvalidArgument, match="d: is not a list"):
        found["d"].items()
