from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskd import filters
from taskd.errors import InvalidArgument

Object = Mapping[str, str]

OBJECTS: list[Object] = [
    {"name": "foo", "labels.foo": "true"},
    {"name": "bar"},
    {"name": "foo", "labels.foo": "present", "labels.more complex label": "present"},
    {"name": "bar", "labels.bar": "true"},
    {"name": "fooer", 'labels.more complex label with \\ and "': "present"},
    {"name": "fooer", 'labels.more complex label with \\ and ".post': "present"},
    {"name": "baz", "other": "too complex, yo"},
    {"name": "bazo", "other": "abc"},
    {"name": "compound", "labels.foo": "omg_asdf.asdf-qwer"},
    {"name": "牛", "other": ""},
]
ALL = list(range(len(OBJECTS)))


def matching(*expressions: str) -> list[int]:
    compiled = filters.compile(expressions)

    def passes(fields: Object) -> bool:
        return compiled.match(
            lambda path: (fields.get(".".join(path), ""), ".".join(path) in fields)
        )

    return [number for number, fields in enumerate(OBJECTS) if passes(fields)]


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("", ALL),
        ("name", ALL),
        ("nothing", []),
        ("labels.foo", [0, 2, 8]),
        ("labels.foo,name", [0, 2, 8]),
        ("labels.foo==true", [0]),
        ("labels.foo==omg_asdf.asdf-qwer", [8]),
        ("name==bar", [1, 3]),
        ("name!=bar", [0, 2, 4, 5, 6, 7, 8, 9]),
        ("name==bar,labels.bar", [3]),
        ("name==bar,labels.bar==true", [3]),
        ("name==bar,labels.bar==wrong", []),
        ('other=="too complex, yo"', [6]),
        ("other~=[abc]+,name!=foo", [6, 7]),
        ("other~=/[abc]+/,name!=foo", [6, 7]),
        ("other~=/[abc]{1,2}/,name!=foo", [6, 7]),
        ('other~=/[abc]{0,1}"\\//,name!=foo', []),
        ("other~=|^a|", [7]),
        ('other~="^a"', [7]),
        ('name==foo,labels."more complex label"', [2]),
        ('labels."more complex label with \\\\ and \\""==present', [4]),
        ('labels."more complex label with \\\\ and \\"".post==present', [5]),
        ("name == bar", [1, 3]),
        ("name\u3000==bar", [1, 3]),
        ('"name"==bar', [1, 3]),
        ("name==牛", [9]),
        ('name=="\\u725b"', [9]),
        ('name=="\\xe7\\x89\\x9b"', [9]),
        ('name=="\\347\\211\\233"', [9]),
        ('name=="\\xe7"', []),
        ('name~="\\xe7"', []),
        # An absent field has the value "" for != and ~=, and is still not present.
        ("labels.foo!=true", [1, 2, 3, 4, 5, 6, 7, 8, 9]),
        ("labels.foo~=^$", [1, 3, 4, 5, 6, 7, 9]),
        ('other==""', [9]),
    ],
)
def test_selects(expression: str, expected: list[int]) -> None:
    assert matching(expression) == expected


def test_one_of_several_expressions_is_enough() -> None:
    assert matching("name==bar", "labels.foo==true") == [0, 1, 3]
    assert matching("name==nobody", "") == ALL


def test_no_expression_matches_everything() -> None:
    assert matching() == ALL


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        (
            "labels.|foo|==omg_asdf.asdf-qwer",
            "[labels. >|||< foo|==omg_asdf.asdf-qwer]: invalid quote encountered",
        ),
        ('labels.?"a"==b', '[labels. >|?|< "a"==b]: expected field or quoted'),
        ("name==foo,", "[name==foo,]: expected field or quoted"),
        ("labels.", "[labels.]: expected field or quoted"),
        ("image~=,id?=?fbaq", "[image~= >|,|< id?=?fbaq]: expected value or quoted"),
        ("labels.ns/key==value", "[labels.ns >|/|< key==value]: quoted literal not terminated"),
        ("labels.key==/value", "[labels.key== >|/|< value]: quoted literal not terminated"),
        ("topic==/tasks/exit", "[topic== >|/|< tasks/exit]: invalid quote encountered"),
        ("name=foo", '[name >|=|< foo]: unsupported operator "="'),
        ("name===foo", '[name >|=|< ==foo]: unsupported operator "==="'),
        ("name==", "[name==]: expected value or quoted"),
        ("name ", '[name ]: expected an operator ("=="|"!="|"~=")'),
        ("name==a b", "[name==a >| |< b]: unexpected input:  "),
        ('name=="a"b', '[name=="a" >|b|< ]: unexpected input: b'),
        ('labels."\\g"', '[labels. >|"|< \\g"]: illegal escape sequence'),
        ('labels."\\xaz"', '[labels. >|"|< \\xaz"]: illegal numeric escape sequence'),
        (
            'name=="\\777"',
            '[name== >|"|< \\777"]: unquoting failed: quote syntax error',
        ),
        (
            'name=="\\U00110000"',
            '[name== >|"|< \\U00110000"]: unquoting failed: quote syntax error',
        ),
        ("foo\x00bar", "[foo >|\x00|< bar]: unexpected null"),
        # An error points at a byte, here at the first of three.
        ("id牛x", '[id >|\ufffd|< \ufffd\ufffdx]: expected an operator ("=="|"!="|"~=")'),
        ('"牛"x', '["牛" >|x|< ]: expected an operator ("=="|"!="|"~=")'),
    ],
)
def test_refuses_in_containerds_words(expression: str, message: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        filters.compile(["name", expression])
    assert caught.value.message == f"filters: parse error: {message}: invalid argument"


@pytest.mark.parametrize(
    "pattern",
    ["/(/", "(?=a)", "a**", '"\\xff"', r"\C", r'"a\\\\\\C"', r'"\\Qa\\E\\C"', r'"[\\C]"'],
)
def test_a_bad_regular_expression_is_logged_and_matches_nothing(
    pattern: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR):
        assert matching(f"name~={pattern}") == []
    assert "error compiling regexp" in caplog.text


@pytest.mark.parametrize(
    ("pattern", "value"),
    [
        (r"^\\pL{1,500}$", "é" * 500),
        (r"^[[:^space:]]{1,1000}$", "x" * 1000),
        (r"^\\\\C$", r"\C"),
        (r"^\\Q\\C\\E$", r"\C"),
        (r"^\\Q\\C", r"\C"),
    ],
)
def test_what_go_takes_is_taken(pattern: str, value: str) -> None:
    matches = filters.compile([f'name~="{pattern}"']).match
    assert matches(lambda _: (value, True))
    assert not matches(lambda _: (f" {value}", True))


@pytest.mark.parametrize(
    ("expressions", "words"),
    [
        (["name"] * 1025, "more than 1024 selectors"),
        ([""] * 1025, "more than 1024 selectors"),
        ([",".join(["name"] * 600), ",".join(["id"] * 600)], "more than 1024 selectors"),
        (["a" * (1 << 16) + "b"], "more than 65536 characters"),
        (['name=="' + r"\x41" * (1 << 14) + '"'], "more than 65536 characters"),
        (["x" * (1 << 15)] * 3, "more than 65536 characters"),
        ([".".join(["a"] * 65)], "field path of more than 64 parts"),
        (["name~=/[^a]{1000}/"] * 300, "regular expressions too large"),
    ],
)
async def test_limits(expressions: list[str], words: str) -> None:
    with pytest.raises(InvalidArgument, match=f"^filters: {words}: invalid argument$"):
        filters.compile(expressions)
    with pytest.raises(InvalidArgument, match=f"^filters: {words}: invalid argument$"):
        await filters.prepare(expressions)


def test_a_regular_expression_that_is_too_large_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(filters, "_PATTERN_MEMORY", 1 << 20)
    with pytest.raises(InvalidArgument, match="^filters: regular expressions too large: "):
        filters.compile([r"name~=\pL{100}"])


@pytest.mark.parametrize(
    "expressions",
    [
        ["name"] * 1024,
        ["a" * (1 << 16)],
        [".".join(["a"] * 64)],
        ['name=="' + r"\x41" * 16000 + '"'],
        ["name~=/[^a]{1000}/"] * 100,
    ],
)
async def test_what_is_within_the_limits(expressions: list[str]) -> None:
    assert await filters.prepare(expressions) == filters.compile(expressions)


async def test_the_event_loop_goes_on_while_a_large_expression_is_compiled() -> None:
    preparing = asyncio.create_task(filters.prepare([r'name~="^\\pL{1,99}$"']))
    turns = 0
    while not preparing.done():
        await asyncio.sleep(0)
        turns += 1
    assert turns > 10
    assert (await preparing).match(lambda _: ("é", True))


def test_regular_expressions_are_re2s_and_linear() -> None:
    subject = {"name": "a" * 100_000 + "!"}
    matches = filters.compile(["name~=/^(a+)+$/"]).match
    assert not matches(lambda path: (subject[path[0]], True))
    assert filters.compile(["name~=/^[[:lower:]]+!$/"]).match(lambda path: (subject[path[0]], True))


FRAGMENTS = st.sampled_from(
    ["name", "labels", ".", ",", "==", "!=", "~=", '"', "/", "|", "\\", "\\x41", " ", "(", "*", "["]
)
TEXTS = st.text(max_size=20) | st.lists(FRAGMENTS | st.text(max_size=3), max_size=8).map("".join)


@given(st.lists(TEXTS, max_size=3))
def test_any_text_compiles_or_is_an_invalid_argument(expressions: list[str]) -> None:
    logging.disable(logging.ERROR)
    try:
        filters.compile(expressions).match(lambda _: ("value", True))
    except InvalidArgument:
        pass
    finally:
        logging.disable(logging.NOTSET)


def _quoted(text: str) -> str:
    escapes = {"\\": "\\\\", '"': '\\"', "\n": "\\n", "\0": "\\x00", "\ufffd": "\\ufffd"}
    return '"' + "".join(escapes.get(each, each) for each in text) + '"'


@given(st.text())
def test_a_quoted_value_is_taken_as_it_is(value: str) -> None:
    compiled = filters.compile([f"name=={_quoted(value)}"])
    assert compiled.match(lambda _: (value, True))
    assert not compiled.match(lambda _: (value + "x", True))


@given(st.lists(st.text(), min_size=1, max_size=4))
def test_a_quoted_path_is_taken_as_it_is(path: list[str]) -> None:
    compiled = filters.compile([".".join(map(_quoted, path))])
    assert compiled.match(lambda fieldpath: ("", list(fieldpath) == path))
