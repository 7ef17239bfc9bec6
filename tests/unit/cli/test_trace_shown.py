from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from taskd.cli.trace import Shown, play
from taskd.client.trace import entry
from taskd.codec import encode
from taskd.errors import InvalidArgument
from taskd.proto.containerd.services.tasks.v1 import CreateTaskRequest
from taskd.proto.containerd.task.v2 import StartResponse
from taskd.proto.google.protobuf import Any as AnyMessage
from taskd.proto.taskd.v1 import FollowResponse, Payload, Way
from taskd.wellknown import timestamp

CREATE = "/containerd.services.tasks.v1.Tasks/Create"
BEGIN = 1_700_000_000 * 10**9


def said(**fields: Any) -> FollowResponse:
    return FollowResponse(
        **{"call": 1, "namespace": "ns", "task": "one", "begin": timestamp(BEGIN), **fields}
    )


def payload(data: bytes, size: int | None = None) -> Payload:
    return Payload(data=data, size=len(data) if size is None else size, messages=1)


def of_a_shim(took: int | None = 1, call: int = 1) -> dict[str, Any]:
    answer = payload(encode(StartResponse(pid=7))) if took is not None else None
    method = "/containerd.task.v2.Task/Start"
    return entry(said(call=call, way=Way.TO_SHIM, method=method, nanoseconds=took, answer=answer))


def test_a_request_is_decoded_with_what_is_in_it() -> None:
    options = AnyMessage(type_url="x/io.Spec", value=b'{"process": {"args": ["a"]}}')
    request = CreateTaskRequest(container_id="one", stdout="/a", options=options)
    found = entry(said(method=CREATE, request=payload(encode(request))))
    assert found == {
        "call": 1,
        "begin": "2023-11-14T22:13:20Z",
        "way": "CLIENT",
        "namespace": "ns",
        "task": "one",
        "method": CREATE,
        "request": {
            "container_id": "one",
            "stdout": "/a",
            "options": {"@type": "x/io.Spec", "value": {"process": {"args": ["a"]}}},
        },
    }


@pytest.mark.parametrize(
    ("method", "told"),
    [
        ("/no.such.Service/Call", payload(b"\x0a\x03one")),
        ("/containerd.services.tasks.v1.Tasks/NoSuch", payload(b"\x0a\x03one")),
        (CREATE, payload(b"\xff\xff\xff\xff\xff")),
        (CREATE, payload(b"\x0a\x03o", size=5)),
        ("//", payload(b"12345")),
    ],
)
def test_what_cannot_be_decoded_has_a_length(method: str, told: Payload) -> None:
    assert entry(said(method=method, request=told))["request"] == "5 bytes"


def test_what_happens_within_a_clients_call_stands_between_its_lines() -> None:
    shown = Shown()
    lines = [
        *shown.show(entry(said(call=1, method=CREATE, request=payload(b"\x0a\x03one")))),
        *shown.show(of_a_shim(None, call=2)),
        *shown.show(of_a_shim(1_500_000, call=2)),
        *shown.show(entry(said(call=1, method=CREATE, nanoseconds=2_000_000, code=5, error="no"))),
    ]
    assert [line[13:] for line in lines] == [
        '           client -> Tasks/Create ns/one {"container_id":"one"}',
        '    1.5 ms   -> shim Task/Start ns/one {"request":null,"answer":{"pid":7}}',
        '    2.0 ms client <- Tasks/Create ns/one NOT_FOUND "no"',
    ]


def test_only_slow_calls() -> None:
    shown = Shown(slow=2_000_000)
    lines = []
    for number, took in enumerate((1_999_999, 2_000_000, 9_000_000)):
        lines += shown.show(of_a_shim(None, call=number))
        lines += shown.show(of_a_shim(took, call=number))
    assert [line.split()[1] for line in lines] == ["2.0", "9.0"]


def test_a_call_that_goes_on_has_a_line_once() -> None:
    shown = Shown()
    assert not list(shown.show(of_a_shim(None)))
    now = BEGIN / 1e9
    assert not list(shown.waiting(now + 0.9))
    [line] = shown.waiting(now + 1.1)
    assert "goes on   -> shim Task/Start ns/one" in line
    assert not list(shown.waiting(now + 60))
    assert len(list(shown.show(of_a_shim(61 * 10**9)))) == 1
    assert not list(shown.waiting(now + 120))


def test_long_messages_are_shortened_unless_they_are_wanted_whole() -> None:
    request = payload(encode(CreateTaskRequest(container_id="x" * 1000)))
    begun = entry(said(method=CREATE, request=request))
    [short] = Shown().show(begun)
    [whole] = Shown(whole=True).show(begun)
    assert short.endswith("x…")
    assert len(short) < 300 < 1000 < len(whole)


def test_nothing_reaches_the_terminal_as_it_is() -> None:
    hostile = "\x1b[2J\n\u202e"
    request = payload(encode(CreateTaskRequest(container_id=hostile)))
    begun = said(method=CREATE, namespace=hostile, task=hostile, request=request)
    [line] = Shown().show(entry(begun))
    assert line.isprintable()


def test_what_was_not_heard_is_counted() -> None:
    lines = list(Shown().show(entry(said(method=CREATE, lost=3))))
    assert lines[0] == "(3 begins and ends were not heard)"


def test_what_was_written_down_is_played_back(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "record"
    told = [of_a_shim(None), of_a_shim(5), entry(said(call=2, method=CREATE))]
    listener = Shown(record=file)
    live = [line for each in told for line in listener.show(each)]
    listener.close()
    play(file, Shown())
    assert capsys.readouterr().out.splitlines() == live
    play(file, Shown(as_json=True))
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == told
    play(file, Shown(as_json=True), limit=2)
    assert len(capsys.readouterr().out.splitlines()) == 2
    play(file, Shown(as_json=True), task="other")
    play(file, Shown(as_json=True), namespace="other")
    assert capsys.readouterr().out == ""


def test_a_recording_is_replaced_only_by_another_one(tmp_path: Path) -> None:
    file = tmp_path / "record"
    file.write_text("an older one")
    listener = Shown(record=file)
    assert file.read_text() == "an older one"
    list(listener.show(of_a_shim(None)))
    listener.close()
    assert json.loads(file.read_text()) == of_a_shim(None)


@pytest.mark.parametrize("text", ["no json", "[]", "{}", '{"call":1,"begin":"x","way":"CLIENT"}'])
def test_a_file_of_something_else(tmp_path: Path, text: str) -> None:
    file = tmp_path / "record"
    file.write_text(f"{json.dumps(of_a_shim())}\n{text}\n")
    with pytest.raises(InvalidArgument, match="line 2 is nothing that taskd trace has written"):
        play(file, Shown())
