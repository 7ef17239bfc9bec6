from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskd import filters
from taskd.events import Envelope, matching
from taskd.events.matching import Index, fields
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


class Reader:
    def __init__(self, *expressions: str) -> None:
        self.filter = filters.compile(expressions)


def exit_of(container: str, namespace: str = "ns") -> Envelope:
    return Envelope(1, namespace, "/tasks/exit", pack(TaskExit(container_id=container)))


@pytest.mark.parametrize(
    "expression",
    [
        "event.container_id==c{0}",
        'topic=="/tasks/exit",event.container_id==c{0}',
        "namespace==ns,event.container_id==c{0}",
        "namespace==n{0},topic~=|^/tasks/|",
        'namespace==n{0},topic=="/tasks/exit"',
        'topic=="/t/{0}",namespace==ns',
    ],
)
def test_an_event_is_shown_to_few_of_many(expression: str) -> None:
    index: Index[Reader] = Index()
    readers = [Reader(expression.format(number)) for number in range(1000)]
    for reader in readers:
        index.add(reader)
    envelope = exit_of("c7", "n7" if "n{0}" in expression else "ns")
    if "/t/{0}" in expression:
        envelope = envelope._replace(topic="/t/7")
    found = list(index.candidates(fields(envelope)))
    # Of the first few readers some are kept under what all have in common.
    assert readers[7] in found
    assert len(found) < 5
    for reader in readers:
        index.remove(reader)
    assert not len(index)
    assert list(index.candidates(fields(envelope))) == []


_VALUES = st.sampled_from(["a", "b", "c"])
_SELECTORS = st.one_of(
    st.builds("namespace=={}".format, _VALUES),
    st.builds('topic=="/{}"'.format, _VALUES),
    st.builds("event.container_id=={}".format, _VALUES),
    st.builds("event.container_id!={}".format, _VALUES),
    st.builds("topic~=|{}|".format, _VALUES),
    st.sampled_from(["event.id", "namespace", "event.nothing==a", 'event.id==""']),
)
_FILTERS = st.lists(st.lists(_SELECTORS, min_size=1, max_size=3).map(",".join), max_size=3)


@given(
    st.lists(_FILTERS, max_size=12),
    st.lists(st.integers(0, 11)),
    st.lists(st.tuples(_VALUES, _VALUES, _VALUES), max_size=5),
)
def test_whoever_wants_an_event_is_shown_it(
    wanted: list[list[str]], leaving: list[int], events: list[tuple[str, str, str]]
) -> None:
    index: Index[Reader] = Index()
    readers = [Reader(*expressions) for expressions in wanted]
    for reader in readers:
        index.add(reader)
    for number in sorted(set(leaving), reverse=True):
        if number < len(readers):
            index.remove(readers.pop(number))
    for namespace, topic, container in events:
        lookup = fields(exit_of(container, namespace)._replace(topic=f"/{topic}"))
        shown = list(index.candidates(lookup))
        assert len(shown) == len(set(shown))
        assert {reader for reader in readers if reader.filter.match(lookup)} <= set(shown)
        assert set(shown) <= set(readers)
