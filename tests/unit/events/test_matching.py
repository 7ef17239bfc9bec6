from __future__ import annotations

import pytest

from taskd.events import Envelope, matching
from taskd.proto.containerd.events import (
    ContainerCreate,
    ContainerCreateRuntime,
    NamespaceCreate,
    TaskCreate,
    TaskExit,
    TaskIo,
    TaskOom,
)
from taskd.types import TypedValue
from taskd.wellknown import pack

EXIT = Envelope(1, "ns", "/tasks/exit", pack(TaskExit(container_id="one", id="two", pid=7)))
CREATE = Envelope(
    2,
    "ns",
    "/containers/create",
    pack(ContainerCreate(id="one", runtime=ContainerCreateRuntime(name="io.containerd.runc.v2"))),
)

IO, PIPES = (
    Envelope(3, "ns", "/tasks/create", pack(TaskCreate(io=TaskIo(stdin="/in", terminal=terminal))))
    for terminal in (True, False)
)
NO_IO = Envelope(3, "ns", "/tasks/create", pack(TaskCreate()))
LABELS = Envelope(
    4, "ns", "/namespaces/create", pack(NamespaceCreate(labels={"a.b": "c", "empty": ""}))
)


@pytest.mark.parametrize(
    ("envelope", "expression", "expected"),
    [
        (EXIT, 'topic=="/tasks/exit"', True),
        (EXIT, 'topic=="/tasks/start"', False),
        (EXIT, "topic~=|^/tasks/|", True),
        (EXIT, 'namespace==ns,topic=="/tasks/exit"', True),
        (EXIT, 'namespace==other,topic=="/tasks/exit"', False),
        (EXIT, "event.container_id==one", True),
        (EXIT, "event.id==two", True),
        (EXIT, "event.id==one", False),
        (EXIT, "event.pid==7", False),
        (EXIT, "event.nothing", False),
        (EXIT, "event", False),
        (CREATE, "event.id==one", True),
        (CREATE, "event.runtime.name==io.containerd.runc.v2", True),
        (CREATE, "event.runtime.nothing", False),
        (EXIT, "event.id.rest==two", True),
        (EXIT, "namespace.rest==ns", True),
        (EXIT, "event.__module__", False),
        (EXIT, "event.is_set", False),
        (IO, "event.io.terminal", True),
        (IO, "event.io.terminal==true", True),
        (IO, "event.io.terminal==false", False),
        (IO, 'event.io.stdin=="/in"', True),
        (IO, "event.io", False),
        (PIPES, "event.io.terminal==false", True),
        (NO_IO, "event.io.terminal", False),
        (LABELS, "event.labels.a.b==c", True),
        (LABELS, "event.labels.empty", True),
        (LABELS, "event.labels.nothing", False),
    ],
)
def test_fields(envelope: Envelope, expression: str, expected: bool) -> None:
    assert matching.compile([expression])(envelope) is expected


def test_any_of_several_will_do() -> None:
    matches = matching.compile(['topic=="/a"', "event.container_id==one"])
    assert matches(EXIT)
    assert not matches(CREATE)


def test_without_filters_everything_passes() -> None:
    assert matching.compile([])(EXIT)


def test_what_cannot_be_read_has_no_fields() -> None:
    matches = matching.compile(["event.id==one"])
    assert not matches(Envelope(1, "ns", "/a", None))
    assert not matches(Envelope(1, "ns", "/a", TypedValue("no.such.Type", b"\xff")))
    assert not matches(Envelope(1, "ns", "/a", TypedValue("containerd.events.TaskExit", b"\xff")))


def test_type_names_are_containerds() -> None:
    assert pack(TaskOom()).type_url == "containerd.events.TaskOOM"
