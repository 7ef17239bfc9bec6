from __future__ import annotations

import json

import pytest

from taskd.cli.events import show
from taskd.events import Envelope
from taskd.proto.containerd.events import ContainerCreate, TaskExit
from taskd.wellknown import pack


@pytest.mark.parametrize("hostile", ["\x1b[2J", "a\nb", "\x7f", "\x9b1m", "\u202e", "\u2028", "\r"])
def test_what_does_not_show_is_escaped(hostile: str) -> None:
    event = pack(TaskExit(container_id=f"a{hostile}b", id="x", exit_status=7))
    envelope = Envelope(0, hostile, f"/a{hostile}", event)
    for as_json in (False, True):
        line = show(envelope, 1, f"node{hostile}", as_json=as_json)
        assert line.isprintable()
    assert json.loads(line)["event"]["container_id"] == f"a{hostile}b"
    text = show(envelope)
    assert json.loads(text[text.index("{") :])["container_id"] == f"a{hostile}b"


def test_what_shows_is_as_it_is() -> None:
    event = pack(ContainerCreate(id="größer", image="大"))
    line = show(Envelope(0, "default", "/containers/create", event))
    assert line.endswith('default /containers/create {"id":"größer","image":"大"}')
