"""`taskd.client.sync`, on taskd and on each containerd."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from harness.daemons import Daemon
from harness.leaks import leaving_nothing

from taskd.client import sync
from taskd.errors import FailedPrecondition, NotFound


@pytest.fixture
def client(served: Daemon, namespace: str) -> Iterator[Any]:
    before = threading.active_count()
    with leaving_nothing(served, namespace), sync.connect(served.address, namespace) as client:
        yield client
        assert client.list() == []
    assert threading.active_count() == before


def test_all_of_it_without_a_loop(client: Any, rootfs: Path) -> None:
    script = ["/bin/sh", "-c", "echo 1; read x; echo $x >&2; exit 3"]
    with client.run(rootfs, script, id="one", stdin=True) as container:
        assert (container.id, repr(container)) == ("one", "<Container one>")
        assert [each.id for each in client.list()] == ["one"]
        lines = iter(container.stdout.lines())
        assert next(lines) == "1"
        with container.exec(["/bin/echo", "hello"]) as process:
            assert process.stdout.text() == "hello\n"
        container.stdin.write("2\n")
        assert list(container.stderr.lines()) == ["2"]
        assert container.wait().code == 3
    with pytest.raises(NotFound, match='container "one"'):
        client.get("one")


def test_errors_and_times_come_through(client: Any, rootfs: Path) -> None:
    made = client.run(rootfs, ["/bin/sleep", "1000"])
    with pytest.raises(TimeoutError):
        made.wait(0.1)
    with pytest.raises(FailedPrecondition, match="stdin=True"):
        _ = made.stdin
    with pytest.raises(AttributeError):
        _ = made.nothing
    made.delete(force=True)


def test_events(client: Any, rootfs: Path) -> None:
    with client.events('topic=="/tasks/exit"') as events:
        with client.run(rootfs, ["/bin/true"], id="one") as container:
            container.wait()
        for event in events:
            assert event.container_id == "one"
            break
