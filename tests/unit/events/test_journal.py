from __future__ import annotations

import asyncio
import logging
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import closing, suppress
from pathlib import Path

import anyio
import pytest
from betterproto2 import Message
from harness.disks import FAULTS, Fault, locked
from harness.mounts import tmpfs

from taskd.errors import (
    DataLoss,
    FailedPrecondition,
    InvalidArgument,
    ResourceExhausted,
    TaskdError,
)
from taskd.events import Entry, Envelope, Journal, Retention, ledger
from taskd.proto.containerd.events import (
    TaskCreate,
    TaskDelete,
    TaskExecStarted,
    TaskExit,
    TaskOom,
    TaskStart,
)
from taskd.proto.containerd.types import Envelope as EnvelopeMessage
from taskd.proto.google.protobuf import Timestamp
from taskd.sqlite import Transaction
from taskd.types import TypedValue
from taskd.wellknown import GO_ZERO, pack, timestamp

EVENT = TypedValue("a.Type", b"data")


def envelope(topic: str = "/a", event: TypedValue | None = EVENT, at: int = 5) -> Envelope:
    return Envelope(at, "ns", topic, event)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "events.db"


@pytest.fixture
def journal(path: Path) -> Iterator[Journal]:
    with Journal(path) as opened:
        yield opened


async def test_events_are_numbered_and_read_as_they_were(journal: Journal) -> None:
    wanted = [
        envelope(),
        envelope("/b", None, at=GO_ZERO),
        envelope("/c", TypedValue("t", b""), at=253402300799 * 10**9 + 999999999),
    ]
    assert [await journal.append(one) for one in wanted] == [1, 2, 3]
    assert journal.read(0, 10) == [Entry(i, one) for i, one in enumerate(wanted, 1)]
    assert [entry.position for entry in journal.read(1, 1)] == [2]
    assert (journal.first, journal.last) == (1, 3)


async def test_it_goes_on_where_it_was(path: Path) -> None:
    with Journal(path) as journal:
        await journal.append(envelope())
        name = journal.id
    with Journal(path) as journal:
        assert (journal.last, journal.id) == (1, name)
        assert await journal.append(envelope()) == 2


@pytest.mark.parametrize("sync", ["normal", "full"])
async def test_appended_at_once_they_are_handed_on_in_order(path: Path, sync: str) -> None:
    seen: list[int] = []
    with Journal(path, sync) as journal:  # type: ignore[arg-type]
        journal.listen(lambda entry: seen.append(entry.position))
        async with anyio.create_task_group() as group:
            for _ in range(200):
                group.start_soon(journal.append, envelope())
        assert [entry.position for entry in journal.read(0, 500)] == list(range(1, 201))
    assert seen == list(range(1, 201))


async def test_what_comes_at_once_is_one_transaction(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[Transaction] = []

    class Noted(Transaction):
        def __enter__(self) -> sqlite3.Connection:
            begun.append(self)
            return super().__enter__()

    monkeypatch.setattr("taskd.events.journal.Transaction", Noted)
    await asyncio.gather(*(journal.append(envelope()) for _ in range(20)))
    assert (journal.last, len(begun)) == (20, 1)


async def test_an_event_is_written_whoever_has_gone_away(journal: Journal) -> None:
    appending = [asyncio.create_task(journal.append(envelope())) for _ in range(3)]
    await asyncio.sleep(0)
    for each in appending:
        each.cancel()
    await asyncio.gather(*appending, return_exceptions=True)
    assert [entry.position for entry in journal.read(0, 9)] == [1, 2, 3]


async def test_who_goes_away_takes_nobody_elses_event_along(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[Entry] = []
    with Journal(path, "full") as journal:
        write, loop = journal._write, asyncio.get_running_loop()

        def give_up(items: Sequence[object]) -> None:
            loop.call_soon_threadsafe(appending[0].cancel)
            write(items)  # type: ignore[arg-type]

        monkeypatch.setattr(journal, "_write", give_up)
        journal.listen(heard.append)
        appending = [asyncio.create_task(journal.append(envelope())) for _ in range(3)]
        gone, *positions = await asyncio.gather(*appending, return_exceptions=True)
    assert isinstance(gone, asyncio.CancelledError)
    assert positions == [2, 3] == [entry.position for entry in heard][1:]


async def test_an_error_that_is_not_the_journals_is_everybodys(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(items: Sequence[object]) -> None:
        if items:
            raise OverflowError

    monkeypatch.setattr(journal, "_write", fail)
    appending = (journal.append(envelope()) for _ in range(3))
    failed = await asyncio.gather(*appending, return_exceptions=True)
    assert [type(each) for each in failed] == [OverflowError] * 3


def test_a_time_that_nothing_can_hold_is_refused() -> None:
    happened = Timestamp(seconds=2**63 - 1, nanos=2**31 - 1)
    with pytest.raises(InvalidArgument, match="out of range"):
        Envelope.from_message(EnvelopeMessage(timestamp=happened))


async def test_who_is_cancelled_while_it_appends_leaves_the_event(path: Path) -> None:
    with Journal(path, "full") as journal:
        async with anyio.create_task_group() as group:
            for _ in range(20):
                group.start_soon(journal.append, envelope())
            await anyio.sleep(0)
            group.cancel_scope.cancel()
        count = len(journal.read(0, 100))
        assert await journal.append(envelope()) == count + 1


def log_of(path: Path) -> Path:
    return path.with_name(f"{path.name}-wal")


def on_disk(path: Path) -> int:
    return path.stat().st_size + log_of(path).stat().st_size


STEPS = {
    "/tasks/create": TaskCreate(container_id="one", pid=7),
    "/tasks/start": TaskStart(container_id="one", pid=7),
    "/tasks/exec-started": TaskExecStarted(container_id="one", exec_id="e", pid=8),
    "/tasks/exit": TaskExit(container_id="one", id="one", pid=7, exited_at=timestamp(99)),
    "/tasks/delete": TaskDelete(container_id="one", pid=7, exited_at=timestamp(99)),
}


@pytest.mark.parametrize("shims_first", [True, False])
async def test_a_step_is_told_once_whoever_tells_it(journal: Journal, shims_first: bool) -> None:
    for position, (topic, message) in enumerate(STEPS.items(), 1):
        told = [
            await journal.append(
                envelope(topic, pack(message), at), shims=shims, first_hand=not shims
            )
            for at, shims in enumerate((shims_first, not shims_first, True))
        ]
        assert told == [position, None, None], topic


async def test_a_process_may_have_the_pid_of_an_earlier_one(journal: Journal) -> None:
    for count in range(2):
        for position, (topic, message) in enumerate(STEPS.items(), 1 + 5 * count):
            assert await journal.append(envelope(topic, pack(message)), first_hand=True) == position


@pytest.mark.parametrize("told", [True, False])
async def test_what_comes_after_the_end_is_left_out(journal: Journal, told: bool) -> None:
    """A shim that was killed may have left it in its socket, and nobody would tell the rest."""
    if told:
        for topic, message in STEPS.items():
            await journal.append(envelope(topic, pack(message)), first_hand=True)
    else:
        await journal.settle("ns", "one")
    late, now = time.time_ns() - 10**9, time.time_ns() + 10**9
    for topic, event in (
        ("/tasks/create", TaskCreate(container_id="one", pid=9)),
        ("/tasks/start", TaskStart(container_id="one", pid=9)),
        ("/tasks/exec-started", TaskExecStarted(container_id="one", exec_id="e", pid=10)),
        ("/tasks/exit", TaskExit(container_id="one", id="one", pid=9)),
        ("/tasks/delete", TaskDelete(container_id="one", pid=9)),
    ):
        assert await journal.append(envelope(topic, pack(event), late), shims=True) is None
    assert journal.tasks() == journal.processes("ns", "one") == []
    again = pack(TaskCreate(container_id="one", pid=9))
    assert await journal.append(envelope("/tasks/create", again, now), shims=True)
    assert await journal.append(envelope("/tasks/create", again, late), first_hand=True) is None
    assert journal.tasks() == [("ns", "one")]


@pytest.mark.parametrize("exec_id", ["e", "one"])
@pytest.mark.parametrize("shims", [True, False])
async def test_an_exec_may_have_the_id_of_its_container(
    journal: Journal, exec_id: str, shims: bool
) -> None:
    async def tell(topic: str, event: Message) -> int | None:
        return await journal.append(envelope(topic, pack(event)), shims=shims, first_hand=not shims)

    def exit_of(name: str, pid: int, status: int) -> TaskExit:
        return TaskExit(container_id="one", id=name, pid=pid, exit_status=status)

    def known() -> list[tuple[str, int, bool, int]]:
        processes = journal.processes("ns", "one")
        return [(one.id, one.pid, one.exited, one.exit_status) for one in processes]

    started = TaskExecStarted(container_id="one", exec_id=exec_id, pid=8)
    await tell("/tasks/create", TaskCreate(container_id="one", pid=7))
    await tell("/tasks/start", TaskStart(container_id="one", pid=7))
    assert await tell("/tasks/exec-started", started)
    assert known() == [("", 7, False, 0), (exec_id, 8, False, 0)]
    assert await tell("/tasks/exit", exit_of(exec_id, 8, 3))
    assert await tell("/tasks/exit", exit_of(exec_id, 8, 3)) is None
    assert known() == [("", 7, False, 0), (exec_id, 8, True, 3)]
    await journal.retire("ns", "one", exec_id)
    assert await tell("/tasks/exit", exit_of(exec_id, 8, 3)) is None
    assert await tell("/tasks/exit", exit_of("one", 7, 137))
    assert await tell("/tasks/exit", exit_of("one", 7, 137)) is None
    assert known() == [("", 7, True, 137)]
    assert await tell("/tasks/delete", TaskDelete(container_id="one", id="one", pid=7))
    assert known() == []
    # Another container of that id, whose init process has the pid that the exec had.
    create = envelope("/tasks/create", pack(TaskCreate(container_id="one", pid=8)))
    await journal.append(create, first_hand=True)
    exited = envelope("/tasks/exit", pack(exit_of("one", 8, 9)))
    assert await journal.append(exited, first_hand=True)
    assert known() == [("", 8, True, 9)]


async def test_a_shim_that_repeats_itself_is_heard_once(journal: Journal) -> None:
    first, second = (envelope("/tasks/oom", pack(TaskOom(container_id="one")), at) for at in (1, 2))
    assert await journal.append(first, shims=True) == 1
    assert await journal.append(first, shims=True) is None
    assert await journal.append(second, shims=True) == 2
    assert await journal.append(first) == 3  # a client may say what it likes


async def test_what_is_known_of_a_task(journal: Journal) -> None:
    for topic in ("/tasks/create", "/tasks/start", "/tasks/exec-started"):
        await journal.append(envelope(topic, pack(STEPS[topic])), shims=True)
    assert journal.tasks() == [("ns", "one")]
    init, process = journal.processes("ns", "one")
    assert (init.id, init.pid, init.created, init.started, init.exited) == (
        "",
        7,
        True,
        True,
        False,
    )
    assert (process.id, process.pid, process.started, process.exited) == ("e", 8, True, False)
    ended = TaskExit(container_id="one", id="e", pid=8, exit_status=3)
    await journal.append(envelope("/tasks/exit", pack(ended)), first_hand=True)
    [_, process] = journal.processes("ns", "one")
    assert (process.exited, process.exit_status, process.exited_at) == (True, 3, GO_ZERO)
    await journal.append(envelope("/tasks/delete", pack(STEPS["/tasks/delete"])), shims=True)
    assert journal.tasks() == journal.processes("ns", "one") == []


async def test_age_is_limited_but_not_for_a_cursor(path: Path) -> None:
    with Journal(path, retention=Retention(max_age=0)) as journal:
        for _ in range(1200):
            await journal.append(envelope())
        await journal.move_cursor("sink", 700)
        await journal.tidy()
        assert journal.first == 701
        await journal.move_cursor("sink", 1200)
        assert journal.cursor("sink") == 1200
        await journal.tidy()
        assert (journal.first, journal.last) == (1200, 1200)
    with Journal(path) as journal:
        assert await journal.append(envelope()) == 1201


async def test_size_is_limited_whoever_has_not_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with (
        tmpfs(tmp_path / "quick", "size=8m") as folder,
        Journal(folder / "events.db", retention=Retention(max_bytes=2**20)) as journal,
    ):
        await journal.move_cursor("sink", 0)
        for _ in range(3000):
            await journal.append(envelope(event=TypedValue("t", bytes(1000))))
        await journal.tidy()
        assert 400 < journal.last - journal.first < 1000
        assert on_disk(folder / "events.db") < 2**20
    assert "though a cursor is at 0" in caplog.text


async def test_the_disk_has_no_more_than_the_limit(tmp_path: Path) -> None:
    """SQLite's log counts: without an idle moment, and without anybody who calls `tidy`."""
    limit, most = 2**20, 0
    with (
        tmpfs(tmp_path / "small", f"size={limit + 2**17}") as folder,
        Journal(folder / "events.db", retention=Retention(max_bytes=limit)) as journal,
    ):
        for number in range(2500):
            await journal.append(envelope(event=TypedValue("t", bytes(number % 3000))))
            most = max(most, on_disk(folder / "events.db"))
        assert limit // 2 < most <= limit
        assert journal.size == on_disk(folder / "events.db")
        assert journal.last == 2500
        assert journal.first > 500


async def test_the_log_is_emptied_when_nothing_happens(path: Path) -> None:
    with Journal(path) as journal:
        for _ in range(3000):
            await journal.append(envelope())
        assert log_of(path).stat().st_size > 2**20
        await journal.tidy()
        assert log_of(path).stat().st_size == 0
        assert len(journal.read(0, 5000)) == 3000
        assert on_disk(path) < 2**20


async def test_the_log_does_not_grow_for_ever(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("taskd.events.journal._LOG_BYTES", 2**18)
    with Journal(path) as journal:
        with closing(sqlite3.connect(path)) as reader:
            for _ in range(500):
                await journal.append(envelope())
            assert log_of(path).stat().st_size < 2**18 + 2**16
            # As long as somebody reads it has to; he holds up nobody.
            reader.execute("BEGIN")
            reader.execute("SELECT * FROM events").fetchone()
            for _ in range(500):
                await journal.append(envelope())
            assert log_of(path).stat().st_size > 2**19
        for _ in range(500):
            await journal.append(envelope())
        assert log_of(path).stat().st_size < 2**18 + 2**16


async def test_a_position_is_found_by_time(journal: Journal) -> None:
    assert journal.position_at(time.time_ns()) == 0
    moments = []
    for _ in range(9):
        moments.append(time.time_ns())
        await journal.append(envelope())
        await anyio.sleep(0.001)
    assert [journal.position_at(moment) for moment in moments] == list(range(9))
    assert journal.position_at(time.time_ns()) == 9


APPENDER = """
import anyio, sys
from pathlib import Path
from taskd.events import Envelope, Journal

async def append():
    with Journal(Path(sys.argv[1]), sys.argv[2]) as journal:
        while True:
            print(await journal.append(Envelope(1, "ns", "/a", None)), flush=True)

anyio.run(append)
"""


@pytest.mark.parametrize("sync", ["normal", "full"])
def test_what_was_acknowledged_survives_sigkill(path: Path, sync: str) -> None:
    for _ in range(3):
        command = [sys.executable, "-c", APPENDER, str(path), sync]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            lines = [process.stdout.readline() for _ in range(50)]
            os.kill(process.pid, signal.SIGKILL)
            lines += process.stdout.readlines()
            acknowledged = max(int(line) for line in lines if line.endswith(b"\n"))
        with Journal(path) as journal:
            assert journal.last >= acknowledged
            positions = [entry.position for entry in journal.read(0, 10**6)]
        assert positions == list(range(1, len(positions) + 1))


async def test_a_torn_commit_is_undone_with_a_word(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    log = path.with_name("events.db-wal")
    with Journal(path) as journal:
        await journal.append(envelope())
        await journal.tidy()
        await journal.append(envelope())
        whole = log.read_bytes()
        await journal.append(envelope())
        longer, pages = log.read_bytes(), path.read_bytes()
    log.write_bytes(longer[: len(whole) + 1000])
    path.write_bytes(pages)
    with caplog.at_level(logging.WARNING), Journal(path) as journal:
        assert [entry.position for entry in journal.read(0, 10)] == [1, 2]
        # The third number had been given out.
        assert await journal.append(envelope()) == 4
    assert "undone a commit of 1 pages that was cut short; the last event is 2" in caplog.text
    caplog.clear()
    with Journal(path):
        assert not caplog.text


@pytest.mark.parametrize("sync", ["normal", "full"])
async def test_a_full_disk_is_an_error_and_no_more(tmp_path: Path, sync: str) -> None:
    with tmpfs(tmp_path / "small", "size=512k") as folder:
        with Journal(folder / "events.db", sync) as journal:  # type: ignore[arg-type]
            kept = 0
            with pytest.raises(ResourceExhausted, match="events.db: database or disk is full"):
                while True:
                    await journal.append(envelope(event=TypedValue("t", bytes(4000))))
                    kept += 1
            await journal.tidy()
            assert len(journal.read(0, 1000)) == kept == journal.last
        subprocess.run(["mount", "-o", "remount,size=4m", str(folder)], check=True)
        with Journal(folder / "events.db") as journal:
            assert await journal.append(envelope()) == kept + 1


@pytest.mark.parametrize("sync", ["normal", "full"])
@pytest.mark.parametrize("fault", FAULTS)
async def test_what_may_pass_is_an_error_until_it_has(
    tmp_path: Path, fault: Fault, sync: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("taskd.events.journal.PATIENCE_SECONDS", 0.1)
    big = envelope(event=TypedValue("t", bytes(100_000)))
    with tmpfs(tmp_path / "small", "size=1m") as folder:
        with Journal(folder / "events.db", sync) as journal:  # type: ignore[arg-type]
            seen: list[int] = []
            journal.listen(lambda entry: seen.append(entry.position))
            await journal.append(envelope())
            with fault(folder) as words:
                for change in (journal.append(big), journal.move_cursor("one", 1)):
                    with pytest.raises(TaskdError, match=words) as caught:
                        await change
                    assert not isinstance(caught.value, DataLoss)
                with suppress(TaskdError):
                    await journal.tidy()
            assert await journal.append(big) == 2
            assert seen == [1, 2]
        with Journal(folder / "events.db") as journal:
            assert [entry.position for entry in journal.read(0, 9)] == [1, 2]


@pytest.mark.parametrize("sync", ["normal", "full"])
async def test_nobody_waits_with_who_waits_for_a_lock(path: Path, sync: str) -> None:
    with Journal(path, sync) as journal:  # type: ignore[arg-type]
        await journal.append(envelope())
        async with anyio.create_task_group() as group:
            with locked(path.parent):
                group.start_soon(journal.append, envelope("/b"))
                group.start_soon(journal.move_cursor, "one", 1)
                longest = 0.0
                for _ in range(10):
                    before = anyio.current_time()
                    await anyio.sleep(0.05)
                    longest = max(longest, anyio.current_time() - before)
                    assert [entry.position for entry in journal.read(0, 9)] == [1]
                # SQLite's own patience has seconds.
                assert longest < 2
        assert (journal.last, journal.cursor("one")) == (2, 1)


async def test_the_events_of_a_stranger_are_passed_with_a_word(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Of another daemon, say, with the same root folder."""
    with Journal(path) as journal, Journal(path) as stranger:
        seen: list[int] = []
        journal.listen(lambda entry: seen.append(entry.position))
        for _ in range(3):
            await stranger.append(envelope("/theirs"))
        assert await journal.append(envelope("/ours")) == 4
        assert await journal.append(envelope("/ours")) == 5
        assert seen == [4, 5]
        assert "somebody else has written the events from 1 to 3" in caplog.text
        caplog.clear()
        await stranger.append(envelope("/theirs"))
        await journal.tidy()
        assert "somebody else has written the events from 6 to 6" in caplog.text


def copy(path: Path, to: Path) -> None:
    """The files as they are while the journal is open."""
    to.mkdir()
    for file in path.parent.glob("events.*"):
        shutil.copy(file, to)


@pytest.mark.parametrize("mark", ["stays", "goes back", "is lost"])
async def test_no_number_is_given_twice(
    path: Path,
    tmp_path: Path,
    mark: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The journal goes back to an earlier state, as by a power cut."""
    with Journal(path) as journal:
        for _ in range(5):
            await journal.append(envelope())
        name = journal.id
        copy(path, tmp_path / "then")
        for _ in range(5):
            await journal.append(envelope("/b"))
        copy(path, tmp_path / "later")
    for file in path.parent.glob("events.*"):
        file.unlink()
    for file in (tmp_path / "then").glob("events.db*"):
        shutil.copy(file, path.parent)
    if mark == "stays":
        # As it was when the daemon ended, before it could close anything.
        shutil.copy(tmp_path / "later/events.mark", path.parent)
        monkeypatch.setattr("taskd.events.mark.Mark._inode", lambda _: inode)
        inode = (tmp_path / "later/events.mark").stat().st_ino
    elif mark == "goes back":
        shutil.copy(tmp_path / "then/events.mark", path.parent)
        monkeypatch.setattr("taskd.events.mark._boot", uuid.uuid4)
    with Journal(path) as journal:
        assert journal.last >= 10
        used = journal.last
        assert await journal.append(envelope("/c")) == used + 1
        assert [entry.position for entry in journal.read(0, 99)] == [1, 2, 3, 4, 5, used + 1]
        assert [entry.position for entry in journal.read(9, 99)] == [used + 1]
        assert journal.id == name
    assert f"ends with event 5, but the numbers up to {used}" in caplog.text
    caplog.clear()
    with Journal(path) as journal:
        assert await journal.append(envelope()) == used + 2
    assert not caplog.text


async def test_numbers_are_reserved_again_and_again(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("taskd.events.mark._AHEAD", 10)
    with Journal(path) as journal:
        for _ in range(25):
            await journal.append(envelope())
        async with anyio.create_task_group() as group:
            for _ in range(30):
                group.start_soon(journal.append, envelope())
        mark = path.with_suffix(".mark").read_bytes()
    path.with_suffix(".mark").write_bytes(mark)
    monkeypatch.setattr("taskd.events.mark._boot", uuid.uuid4)
    with Journal(path) as journal:
        assert 55 < journal.last <= 65
        assert await journal.append(envelope()) == journal.last


@pytest.mark.parametrize("damage", ["removed", "emptied", "replaced"])
async def test_a_journal_that_is_gone_is_missed(
    path: Path, tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    with Journal(path) as journal:
        for _ in range(3):
            await journal.append(envelope())
        name = journal.id
    assert not caplog.text
    if damage == "removed":
        path.unlink()
    elif damage == "emptied":
        path.write_bytes(b"")
    else:
        with Journal(tmp_path / "other.db") as other:
            await other.append(envelope())
        shutil.copy(tmp_path / "other.db", path)
    with Journal(path) as journal:
        assert journal.id != name
        assert "is not the one that was here before, which had come to position 3" in caplog.text
    caplog.clear()
    with Journal(path):
        assert not caplog.text


async def test_a_step_of_the_clock_removes_nothing(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    now = time.time_ns
    month = 30 * 24 * 3600 * 10**9
    with Journal(path) as journal:
        for _ in range(3):
            await journal.append(envelope())
        monkeypatch.setattr(time, "time_ns", lambda: now() + month)
        await journal.append(envelope())
        await journal.tidy()
        assert (journal.first, journal.last) == (1, 4)
        assert "the clock was set forward by 25" in caplog.text
        monkeypatch.setattr(time, "time_ns", now)
        await journal.append(envelope())
        await journal.tidy()
        assert (journal.first, journal.last) == (1, 5)


async def test_positions_are_found_by_time_across_a_gap(path: Path) -> None:
    with Journal(path) as journal:
        await journal.append(envelope())
        await anyio.sleep(0.001)
        between = time.time_ns()
        await journal.begin_anew(1000)
        assert await journal.append(envelope()) == 1001
        assert journal.position_at(between) < 1001 <= journal.position_at(time.time_ns())
        assert [entry.position for entry in journal.read(journal.position_at(between), 9)] == [1001]
        assert journal.position_at(0) == 0


async def test_it_goes_on_when_there_is_room_again(tmp_path: Path) -> None:
    with tmpfs(tmp_path / "small", "size=512k") as folder, Journal(folder / "e.db") as journal:
        with pytest.raises(ResourceExhausted):
            while True:
                await journal.append(envelope(event=TypedValue("t", bytes(4000))))
        last = journal.last
        subprocess.run(["mount", "-o", "remount,size=4m", str(folder)], check=True)
        assert await journal.append(envelope()) == last + 1


def test_what_is_no_journal_is_refused(path: Path) -> None:
    path.write_bytes(b"no database at all, but long enough to be taken for one" * 100)
    with pytest.raises(DataLoss, match=f"journal {path}"):
        Journal(path)


def test_a_newer_journal_is_left_alone(path: Path) -> None:
    Journal(path).close()
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version = 99")
    with pytest.raises(FailedPrecondition, match="schema version 99"):
        Journal(path)


async def test_processes_that_are_gone_are_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the daemon runs, too: the journal must not grow with each process there ever was."""
    monkeypatch.setattr("taskd.events.journal._FORGET_SECONDS", -1.0)
    monkeypatch.setattr(ledger, "KEPT", 0)
    file = tmp_path / "events.db"
    with Journal(file) as journal:
        for topic, event in (
            ("/tasks/create", TaskCreate(container_id="one", pid=1)),
            ("/tasks/create", TaskCreate(container_id="two", pid=2)),
            ("/tasks/delete", TaskDelete(container_id="one", pid=1)),
        ):
            await journal.append(Envelope(1, "default", topic, pack(event)), shims=True)
        await journal.tidy()
        with closing(sqlite3.connect(file)) as connection:
            left = connection.execute("SELECT container FROM processes").fetchall()
    assert left == [("two",)]


@pytest.mark.parametrize("name", ["b0bc27a2-7486-444a-aa67-379Xa9a0e100", "", 7, b"\x00"])
def test_an_id_that_is_none_is_damage(tmp_path: Path, name: object) -> None:
    path = tmp_path / "events.db"
    with Journal(path):
        pass
    connection = sqlite3.connect(path)
    connection.execute("UPDATE journal SET id = ?", (name,))
    connection.commit()
    connection.close()
    with pytest.raises(DataLoss, match="is damaged: its id is"), Journal(path):
        pass
