"""What one shim writes down of a container, and another one reads."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from taskd.shim import leftovers, record
from taskd.shim.process import Process, Status
from taskd.shim.stdio import Stdio
from taskd.types import TypedValue


@pytest.mark.parametrize("options", [None, TypedValue("a.type", b"\x00\xff")])
def test_what_is_written_is_read(tmp_path: Path, options: TypedValue | None) -> None:
    init = Process("", {}, Stdio("/in", "/out", "/err", terminal=True))
    init.pid, init.status = 7, Status.RUNNING
    executed = Process("exec", {"args": ["true"]}, Stdio())
    processes = tuple(map(record.ProcessRecord.of, (init, executed)))
    written = record.Record("one", "ns", options, "", True, processes)
    record.write(tmp_path, written)
    assert record.read(tmp_path) == written
    assert record.options(tmp_path) == options
    # As other versions write it, and read it.
    document = json.loads((tmp_path / leftovers.RECORD).read_text().partition("\n")[2])
    assert document["processes"][0]["stdio"] == {
        "stdin": "/in",
        "stdout": "/out",
        "stderr": "/err",
        "terminal": True,
    }
