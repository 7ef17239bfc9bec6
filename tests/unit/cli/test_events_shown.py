from __future__ import annotations

import json

import pytest

from taskd.cli.events import show
from taskd.client import Event
from taskd.proto.containerd.events import ContainerCreate, TaskExit
from taskd.types import TypedValue
from taskd.wellknown import pack, unpack


def told(namespace: str, topic: str, raw: TypedValue, position: int | None = None) -> Event:
    return Event(topic, namespace, 0, unpack(raw), raw, position)


@pytest.mark.parametrize("hostile", ["\x1b[2J", "a\nb", "\x7f", "\x9b1m", "\u202e", "\u2028", "\r"])
def test_what_does_not_show_is_escaped(hostile: str) -> None:
    event = pack(TaskExit(container_id=f"a{hostile}b", id="x", exit_status=7))
    envelope = told(hostile, f"/a{hostile}", event, 1)
    for as_json in (False, True):
        line = show(envelope, f"node{hostile}", as_json=as_json)
        assert line.isprintable()
    assert json.loads(line)["event"]["container_id"] == f"a{hostile}b"
    text = show(envelope)
    assert json.loads(text[text.index("{") :])["container_id"] == f"a{hostile}b"


def test_what_shows_is_as_it_is() -> None:
    event = pack(ContainerCreate(id="größer", image="大"))
    line = show(told("default", "/containers/create", event))
    assert line.endswith('default /containers/create {"id":"größer","image":"大"}')
