"""``taskd top``: its screens with a real daemon, and once at a real terminal."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pexpect
import pytest
from harness.daemons import Taskd
from harness.shell import Shell, environment
from textual.pilot import Pilot
from textual.widgets import DataTable, RichLog, Static, TabbedContent

from taskd.cli.top.app import Details, Top
from taskd.cli.top.order import Order
from taskd.client import Client, connect

BUSY = "trap 'exit 3' TERM; while true; do :; done"


@pytest.fixture
async def client(daemon: Taskd, namespace: str, rootfs: Path) -> AsyncIterator[Client]:
    async with connect(daemon.address, namespace) as client:
        options = {"output": "log"}
        async with (
            client.run(rootfs, ["/bin/sleep", "1000"], id="idle", **options),  # type: ignore[arg-type]
            client.run(rootfs, ["/bin/sh", "-c", f"echo hello; {BUSY}"], id="busy", **options),  # type: ignore[arg-type]
        ):
            yield client


async def until(pilot: Pilot[None], holds: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < end
        await pilot.pause(0.05)


def ids(app: Top) -> list[str]:
    table = app.query_one(DataTable)
    return [str(table.get_row_at(number)[0]) for number in range(table.row_count)]


def cells(app: Top, name: str) -> list[str]:
    return [str(cell) for cell in app.query_one(DataTable).get_row(name)]


async def choose(pilot: Pilot[None], app: Top, name: str) -> None:
    """Move the cursor to it, once it stands where it stays."""
    await until(pilot, lambda: ids(app) == ["busy", "idle"] and cells(app, "idle")[2] == "0.0%")
    table = app.query_one(DataTable)
    table.focus()
    table.move_cursor(row=ids(app).index(name))


def said(app: Top) -> str:
    return str(app.query_one("#state", Static).content)


def text(app: Top, name: str) -> str:
    return "\n".join(each.text for each in app.screen.query_one(f"#{name}-log", RichLog).lines)


async def test_the_list(client: Client) -> None:
    app = Top(client, delay=0.1)
    async with app.run_test(size=(140, 30)) as pilot:
        # The one that computes comes first.
        await until(pilot, lambda: ids(app) == ["busy", "idle"] and "%" in cells(app, "busy")[2])
        await until(pilot, lambda: float(cells(app, "busy")[2].rstrip("%")) > 1)
        assert cells(app, "idle")[1] == "running"
        assert cells(app, "idle")[7] == "/bin/sleep 1000"
        assert "2 tasks, 2 running, by cpu" in said(app)
        for order in [*list(Order)[1:], Order.CPU]:
            await pilot.press("s")
            assert f"by {order.value}" in said(app)
        await pilot.press("slash", *"sleep")
        await until(pilot, lambda: ids(app) == ["idle"])
        assert "1 with 'sleep'" in said(app)
        await pilot.press(*["backspace"] * 5, "enter")
        await until(pilot, lambda: ids(app) == ["busy", "idle"])


async def test_acting_on_one(client: Client) -> None:
    app = Top(client, delay=0.1)
    async with app.run_test(size=(140, 30)) as pilot:
        await choose(pilot, app, "busy")
        await pilot.press("p")
        await until(pilot, lambda: cells(app, "busy")[1] == "paused")
        # What is chosen stays so wherever it stands.
        await pilot.press(*"sssss")
        await until(pilot, lambda: app._selected() == "busy")
        await pilot.press("p")
        await until(pilot, lambda: cells(app, "busy")[1] == "running")
        await pilot.press("t")
        await until(pilot, lambda: cells(app, "busy")[1] == "exited")
        assert (await (await client.get("busy")).wait()).code == 3
        # What cannot be done is said, and nothing else happens.
        await pilot.press("p")
        await until(pilot, lambda: len(app._notifications) == 1)


async def test_one_of_them(client: Client) -> None:
    app = Top(client, delay=0.1)
    async with app.run_test(size=(140, 40)) as pilot:
        await choose(pilot, app, "busy")
        await pilot.press("enter")
        await until(pilot, lambda: isinstance(app.screen, Details))
        for name, words in (
            ("processes", "/bin/sh -c echo hello"),
            ("events", "/tasks/start"),
            ("output", "hello"),
            ("specification", '"ociVersion"'),
        ):
            app.screen.query_one(TabbedContent).active = name
            await until(pilot, lambda name=name, words=words: words in text(app, name))  # type: ignore[misc]
        await pilot.press("escape")
        await until(pilot, lambda: not isinstance(app.screen, Details))


async def test_a_daemon_that_goes_away_and_comes_back(client: Client, daemon: Taskd) -> None:
    app = Top(client, delay=0.1)
    client.channel.patience = 0.0
    async with app.run_test(size=(140, 30)) as pilot:
        await until(pilot, lambda: len(ids(app)) == 2)
        daemon.kill()
        await until(pilot, lambda: str(daemon.address) in said(app) and "tasks," not in said(app))
        assert len(ids(app)) == 2
        daemon.start()
        await until(pilot, lambda: "2 tasks" in said(app))
    client.channel.patience = 20.0


def test_at_a_terminal(daemon: Taskd, namespace: str, rootfs: Path) -> None:
    daemon.ctr(
        *("run", "-d", "--rootfs", str(rootfs), "one", "/bin/sleep", "1000"), namespace=namespace
    )
    shell = Shell(environment(daemon, namespace))
    screen = shell.at_terminal("top", "--delay", "0.2", dimensions=(30, 120))
    screen.expect("1 tasks, 1 running")
    screen.send("x")
    screen.expect("# ")
    screen.sendline("echo $((6*7)); exit")
    screen.expect("42")
    screen.expect("CONTAINER")  # it is drawn again
    screen.send("q")
    screen.expect(pexpect.EOF)
    screen.close()
    assert screen.exitstatus == 0
    daemon.ctr("tasks", "rm", "-f", "one", namespace=namespace)
