"""The screens of ``taskd top``."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from argparse import Namespace
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import ClassVar

import anyio
from rich.text import Text
from textual import work
from textual.app import App, ComposeResult
from textual.binding import BindingType
from textual.containers import Vertical
from textual.css.query import NoMatches
from textual.screen import Screen
from textual.widgets import DataTable, Footer, Input, RichLog, Static, TabbedContent, TabPane

from taskd import errors, procfs
from taskd.cli.running import open_client
from taskd.cli.table import ago, sized
from taskd.cli.top.order import Order, chosen
from taskd.client import Client, Container
from taskd.client.sampling import Row, Sampler
from taskd.errors import TaskdError
from taskd.plain import digits, line, plain
from taskd.printable import printable
from taskd.wellknown import nanoseconds

__all__ = ["Top", "top"]

_UNKNOWN = "--"
_COLUMNS = ("CONTAINER", "STATUS", "CPU", "MEMORY", "PIDS", "I/O", "AGE", "COMMAND", "RUNTIME")
_Act = Callable[[Container], Awaitable[object]]
_LINES = 1000
_PROCESSES_SECONDS = 1.0
"""Of output and events that a task's screen keeps."""


async def top(options: Namespace) -> int:
    async with open_client(options) as client:
        app = Top(client, options.delay)
        await app.run_async()
        return app.return_code or 0


class Top(App[None]):
    """The list of tasks."""

    CSS = """
    #state { height: 1; background: $panel; }
    #filter { dock: bottom; display: none; }
    #filter.shown { display: block; }
    DataTable { height: 1fr; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        ("q", "quit", "Quit"),
        ("s", "sort", "Sort"),
        ("slash", "filter", "Filter"),
        ("p", "pause", "Pause"),
        ("t", "stop", "Stop"),
        ("k", "kill", "Kill"),
        ("x", "shell", "Shell"),
    ]
    ENABLE_COMMAND_PALETTE = False

    def __init__(self, client: Client, delay: float = 1.0) -> None:
        super().__init__()
        self.client = client
        self._delay = delay
        self._sampler = Sampler(client)
        self._order = Order.CPU
        self._rows: list[Row] = []
        self._trouble = ""
        self._due = asyncio.Event()
        """Set when there is something to see before the time."""

    def compose(self) -> ComposeResult:
        yield Static(id="state", markup=False)
        table: DataTable[Text] = DataTable(cursor_type="row", zebra_stripes=True)
        table.add_columns(*_COLUMNS)
        yield table
        yield Input(placeholder="words that are to be there", id="filter")
        yield Footer()

    def on_mount(self) -> None:
        self._measure()
        self._listen()

    @work
    async def _listen(self) -> None:
        await self._sampler.listen()

    @work
    async def _measure(self) -> None:
        while True:
            self._due.clear()
            try:
                self._rows = await self._sampler.sample()
                self._trouble = ""
            except (TaskdError, OSError) as exc:
                self._trouble = errors.words(exc)
            with suppress(NoMatches):  # it ends
                self._show()
            with anyio.move_on_after(self._delay):
                await self._due.wait()

    def _show(self) -> None:
        words = self.query_one("#filter", Input).value
        rows = chosen(self._rows, self._order, words)
        running = sum(row.status == "running" for row in self._rows)
        about = f"{self.client.namespace} at {self.client.address}"
        counts = f"{len(self._rows)} tasks, {running} running, by {self._order.value}"
        filtered = f", {len(rows)} with {words!r}" if words else ""
        state = self._trouble or f"{about}: {counts}{filtered}"
        self.query_one("#state", Static).update(printable(state))
        table = self.query_one(DataTable)
        at = self._selected()
        table.clear()
        for row in rows:
            table.add_row(*_cells(row), key=row.id)
        if at is not None:
            with suppress(KeyError, StopIteration):
                table.move_cursor(row=next(n for n, row in enumerate(rows) if row.id == at))

    def _selected(self) -> str | None:
        table = self.query_one(DataTable)
        if not table.row_count:
            return None
        return table.coordinate_to_cell_key(table.cursor_coordinate).row_key.value

    def action_sort(self) -> None:
        self._order = self._order.next
        self._show()

    def action_filter(self) -> None:
        box = self.query_one("#filter", Input)
        box.add_class("shown")
        box.focus()

    def on_input_changed(self) -> None:
        self._show()

    def on_input_submitted(self) -> None:
        box = self.query_one("#filter", Input)
        if not box.value:
            box.remove_class("shown")
        self.query_one(DataTable).focus()

    def on_data_table_row_selected(self, event: DataTable.RowSelected) -> None:
        for row in self._rows:
            if row.id == event.row_key.value:
                self.push_screen(Details(row.container, self.client))

    def action_pause(self) -> None:
        for row in self._rows:
            if row.id == self._selected():
                paused = row.status == "paused"
                self._do(row.container.resume() if paused else row.container.pause())
                return

    def action_stop(self) -> None:
        self._act_on(lambda container: container.stop())

    def action_kill(self) -> None:
        self._act_on(lambda container: container.kill())

    def _act_on(self, act: _Act) -> None:
        for row in self._rows:
            if row.id == self._selected():
                self._do(act(row.container))

    @work
    async def _do(self, done: Awaitable[object]) -> None:
        try:
            await done
        except (TaskdError, OSError) as exc:
            self.notify(printable(errors.words(exc)), severity="error", markup=False)
        self._due.set()

    def action_shell(self) -> None:
        """A shell in the container, until it ends; then this goes on."""
        if (name := self._selected()) is None:
            return
        where = {
            "TASKD_ADDRESS": str(self.client.address),
            "CONTAINERD_NAMESPACE": self.client.namespace,
        }
        with self.suspend():
            subprocess.run(
                [sys.executable, "-m", "taskd", "exec", "-it", name, "/bin/sh"],
                env=os.environ | where,
            )
        self.refresh(layout=True)


class Details(Screen[None]):
    """One task: its processes, events, output and specification."""

    BINDINGS: ClassVar[list[BindingType]] = [("escape", "app.pop_screen", "Back")]
    CSS = "RichLog { height: 1fr; }"

    def __init__(self, container: Container, client: Client) -> None:
        super().__init__()
        self._container = container
        self._client = client

    def compose(self) -> ComposeResult:
        with Vertical():
            yield Static(
                printable(f"{self._container.id}  {self._container.runtime}"), markup=False
            )
            with TabbedContent():
                for name in ("Processes", "Events", "Output", "Specification"):
                    with TabPane(name, id=name.lower()):
                        yield RichLog(max_lines=_LINES, id=f"{name.lower()}-log", wrap=True)
        yield Footer()

    def on_mount(self) -> None:
        self._fill(self._container.spec)
        self._list_processes()
        self._follow_events()
        self._follow_output()

    def _log(self, name: str) -> RichLog:
        return self.query_one(f"#{name}-log", RichLog)

    def _fill(self, spec: object) -> None:
        for text in json.dumps(spec, indent=2).splitlines():
            self._log("specification").write(printable(text))

    @work
    async def _list_processes(self) -> None:
        log = self._log("processes")
        while True:
            try:
                found = await self._container.pids()
            except TaskdError as exc:
                lines = [errors.words(exc)]
            else:
                lines = [f"{pid:8}  {procfs.command(pid)}" for pid in found]
            log.clear()
            for text in lines:
                log.write(printable(text))
            await anyio.sleep(_PROCESSES_SECONDS)

    @work
    async def _follow_events(self) -> None:
        log = self._log("events")
        try:
            about = f'event.container_id=="{self._container.id}"'
            async with self._client.events(about, since=await self._since()) as events:
                async for event in events:
                    body = line(plain(event.message, opened=True) or {})
                    log.write(printable(f"{digits(event.at, ' ')} {event.topic} {body}"))
        except (TaskdError, OSError) as exc:
            log.write(printable(errors.words(exc)))

    async def _since(self) -> int | None:
        """From its beginning, where there is a journal."""
        made = nanoseconds(self._container.record.created_at)
        return made if await self._client.is_taskd() else None

    @work
    async def _follow_output(self) -> None:
        log = self._log("output")
        try:
            async for entry in self._container.logs(follow=True, tail=_LINES):
                log.write(printable(entry.text.removesuffix("\n")))
        except (TaskdError, OSError) as exc:
            log.write(printable(errors.words(exc)))


def _cells(row: Row) -> list[Text]:
    memory = _UNKNOWN if row.memory is None else sized(row.memory)
    if row.memory is not None and row.memory_limit is not None:
        memory += f" / {sized(row.memory_limit)}"
    cells = (
        row.id,
        row.status,
        _UNKNOWN if row.cpu is None else f"{100 * row.cpu:.1f}%",
        memory,
        _UNKNOWN if row.pids is None else str(row.pids),
        _UNKNOWN if row.io is None else f"{sized(row.io)}/s",
        ago(row.age),
        row.command,
        row.container.runtime,
    )
    return [Text(printable(cell)) for cell in cells]
