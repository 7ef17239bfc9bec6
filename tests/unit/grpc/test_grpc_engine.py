"""Which engine there is, and which one is taken."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness.daemons import Taskd

from taskd.grpc import engine
from taskd.grpc.engine import Engine


@pytest.fixture(autouse=True)
def _as_it_was() -> Iterator[None]:
    yield
    engine.select(None)


def test_ngh2_is_taken_by_itself() -> None:
    assert engine.chosen() is Engine.NGH2
    assert type(engine.connection(client=True)).__module__ == "taskd.grpc.nghttp2"


def test_h2_is_taken_where_ngh2_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ngh2", None)
    assert engine.chosen() is Engine.H2
    for client in (True, False):
        assert engine.connection(client=client).data_to_send()
    with pytest.raises(ImportError):
        engine.select(Engine.NGH2)
    assert engine.chosen() is Engine.H2


def test_h2_is_taken_where_somebody_says_so() -> None:
    engine.select(Engine.H2)
    assert engine.chosen() is Engine.H2


def test_a_daemon_that_is_to_have_what_is_missing_says_so(folder: Path) -> None:
    (folder / "ngh2.py").write_text("raise ImportError('no ngh2 here')")

    class Without(Taskd):
        engine = "ngh2"

        def environment(self) -> dict[str, str]:
            return super().environment() | {"PYTHONPATH": str(folder)}

    with pytest.raises(RuntimeError, match=r"taskd: \[grpc\] engine: no ngh2 here"):
        Without(folder / "taskd").start()
