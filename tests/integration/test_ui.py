"""``taskd ui`` in a real Chromium, on a real daemon with real containers."""

from __future__ import annotations

import asyncio
import os
import re
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import anyio
import pytest
from harness.browser import PROGRAM, Browser, Page, chromium
from harness.daemons import Containerd, Daemon, Taskd
from harness.real import need
from harness.shell import COMMAND

from taskd.client import Client, connect
from taskd.proto.containerd.events import TaskExit
from taskd.proto.containerd.services.events.v1 import EventsStub, PublishRequest
from taskd.wellknown import pack, to_any

pytestmark = pytest.mark.timeout(300)

RUNTIMES = ("io.taskd.oci.v1", "io.taskd.process.v1")
LIVE = "document.querySelector('#link').textContent === 'live'"
MARKUP = "<img src=x onerror=alert(1)><script>alert(2)</script>"


@pytest.fixture(scope="module", autouse=True)
def _parts() -> None:
    need(PROGRAM, "runc", "containerd-shim-runc-v2")


@pytest.fixture
async def browser() -> AsyncIterator[Browser]:
    async with chromium() as browser:
        yield browser


@pytest.fixture
async def client(daemon: Taskd, namespace: str) -> AsyncIterator[Client]:
    async with connect(daemon.address, namespace, patience=60) as client:
        yield client
        for each in await client.list():
            await each.leave()


@asynccontextmanager
async def served(
    daemon: Daemon, namespace: str, *options: str, **environment: str
) -> AsyncIterator[str]:
    """The link that it prints."""
    process = await asyncio.create_subprocess_exec(
        *(*COMMAND, "ui", "--address", str(daemon.address)),
        *("-n", namespace, *options),
        stdout=asyncio.subprocess.PIPE,
        env=os.environ | environment,
    )
    try:
        assert process.stdout is not None
        async with asyncio.timeout(90):
            line = (await process.stdout.readline()).decode()
        assert line.startswith("taskd ui: http://127.0.0.1:")
        yield line.split()[-1]
    finally:
        process.terminate()
        await process.wait()


@asynccontextmanager
async def shown(
    browser: Browser, daemon: Daemon, namespace: str, **options: Any
) -> AsyncIterator[Page]:
    async with served(daemon, namespace, "--no-open") as link, browser.page(**options) as page:
        await page.open(link)
        await page.until(LIVE)
        yield page
        # Nothing that is shown may break a rule of the page's policy.
        assert page.complaints == []


async def do(page: Page, action: str) -> None:
    """Press a button, and say that it is meant."""
    await page.click(f"[data-action={action}]")
    await page.click("#ask [type=submit]")


async def test_a_life(browser: Browser, client: Client, daemon: Taskd, rootfs: Path) -> None:
    """Of a container of each kind, from nothing there to nothing there."""
    async with shown(browser, daemon, client.namespace) as page:
        await page.shows("Nothing runs here yet")
        assert "null" not in await page.text()
        assert "token" not in await page.evaluate("location.href")
        for runtime in RUNTIMES:
            name = runtime.split(".")[2]
            made = await client.run(
                rootfs, ["/bin/sh", "-c", "echo ready; sleep 1000"],
                id=name, runtime=runtime, output="log",
            )  # fmt: skip
            await page.until(f"document.querySelector('tr[data-id={name}] .running')")
            row = await page.text(f"tr[data-id={name}]")
            assert str(made.pid) in row
            assert f"{name}.v1" in row
            await page.until(f"document.querySelector('tr[data-id={name}] .size').textContent")
            await page.until(f"/pid \\d+/.test(document.querySelector('tr[data-id={name}] .shim')"
                             ".textContent)")  # fmt: skip
            # By its keys alone: into it, and what can be done there.
            await page.evaluate(f"document.querySelector('tr[data-id={name}] a').focus()")
            await page.press("Enter")
            await page.shows(name, "h1")
            await page.click("#tab-Output")
            await page.shows("ready", "#panel-Output")
            await page.click("#tab-Processes")
            await page.shows(str(made.pid), "#panel-Processes")
            await page.click("#tab-Specification")
            await page.shows('"ociVersion"', "#panel-Specification")
            await do(page, "pause")
            await page.shows("paused", ".badge")
            await do(page, "resume")
            await page.shows("running", ".badge")
            await page.click("[data-action=kill]")
            await page.shows(f"Kill {name}?", "#ask")
            await page.press("Escape")
            await page.until("!document.querySelector('#ask').open")
            await do(page, "kill")
            await page.shows("exited 137", ".badge")
            await page.click("#tab-Events")
            await page.shows("exited 137, SIGKILL", "#panel-Events")
            await page.click("#tab-Life")
            for step in ("client to taskd: Create", "taskd to shim: Create", "taskd to shim: Start",
                         "shim to taskd: event exit", "taskd to shim: Kill"):  # fmt: skip
                await page.until(f"document.querySelector('[aria-label^=\"{step}\"]')")
            await do(page, "delete")
            await page.shows("no task", ".badge")
            step = "taskd to shim: Delete: exited 137"
            await page.click(f'[aria-label^="{step}"]')
            await page.shows('"exit_status": 137', ".about")
            await page.press("Escape")
            await page.until("location.hash === '#/'")
            await page.until(f"!document.querySelector('tr[data-id={name}]')")
        await page.shows("Nothing runs here yet")
        await page.shows("2 exits", ".figures")
    assert await client.list() == []


async def test_exits_and_memory_that_runs_out(
    browser: Browser, client: Client, daemon: Taskd, rootfs: Path
) -> None:
    hungry = "dd if=/dev/zero of=/dev/null bs=512M count=1; sleep 1000"
    limits = {"memory": {"limit": 32 << 20, "swap": 32 << 20}}
    # What was before the page is there as well.
    await client.run(rootfs, ["/bin/sh", "-c", "exit 3"], id="fails")
    async with shown(browser, daemon, client.namespace) as page:
        await page.shows("exited 3", "tr[data-id=fails]")
        await client.run(
            rootfs,
            ["/bin/sh", "-c", hungry],
            id="hungry",
            amend={"linux": {"resources": limits}},
        )
        await page.shows("out of memory", ".events")
        await page.shows("1 out of memory", ".figures")
        await page.evaluate("[...document.querySelectorAll('.chip')].at(-1).click()")
        await page.until("document.querySelectorAll('.events li').length === 1")
        await page.evaluate("document.querySelectorAll('.chip')[1].click()")
        await page.shows("fails exited 3", ".events")
        # Words, order and keys of the table.
        await page.until("document.querySelectorAll('tbody tr').length === 2")
        await page.press("/")
        await page.until("document.activeElement.id === 'filter'")
        for letter in "exited":
            await page.press(letter)
        await page.until("document.querySelectorAll('tbody tr').length === 1")
        await page.press("Escape")
        await page.evaluate("filter.value = ''; filter.dispatchEvent(new Event('input'))")
        for order, first in (("ascending", "fails"), ("descending", "hungry")):
            await page.evaluate("document.querySelector('th.name button').click()")
            await page.until(f"document.querySelector('th.name').ariaSort === '{order}'")
            await page.until(f"document.querySelector('tbody tr').dataset.id === '{first}'")
        await page.evaluate("document.querySelector('tr[data-id=hungry] a').focus()")
        await page.press("ArrowDown")
        await page.until("document.activeElement.textContent === 'fails'")
        await page.press("ArrowUp")
        await page.press("t")
        await page.shows("Stop hungry?", "#ask")
        # Nothing of it is wider than a phone.
        await page.evaluate("document.querySelector('#ask').close()")
        await page.resize(390, 844)
        await page.until("document.documentElement.scrollWidth <= 390")


async def test_what_containers_say_is_text(
    browser: Browser, client: Client, daemon: Taskd, rootfs: Path
) -> None:
    said = f"{MARKUP}\x1b[31m\\u003cb>"
    await client.run(
        rootfs, ["/bin/sh", "-c", 'echo "$0"; sleep 1000; true', said],
        id="hostile", output="log", labels={"com.example/<b>": MARKUP}, env={"A": MARKUP},
    )  # fmt: skip
    event = TaskExit(container_id=MARKUP, id=MARKUP, exit_status=1)
    async with shown(browser, daemon, client.namespace) as page:
        await EventsStub(client.channel).publish(
            PublishRequest(topic="/tasks/exit", event=to_any(pack(event)))
        )
        await page.shows(MARKUP, ".events")
        await page.shows(MARKUP, "tr[data-id=hostile]")
        await page.evaluate("document.querySelector('tr[data-id=hostile] a').click()")
        await page.shows(MARKUP, ".facts")
        for tab in ("Output", "Specification", "Processes"):
            await page.click(f"#tab-{tab}")
            await page.shows(MARKUP.replace('"', '\\"'), f"#panel-{tab}")
        # A container that is not there, by a name that none can have.
        await page.evaluate(f"location.hash = '#/task/' + encodeURIComponent({MARKUP!r})")
        await page.shows(MARKUP, "h1")
        await page.click("#tab-Specification")
        await page.shows("not found", "#panel-Specification")
        found = "document.querySelectorAll('img, script:not([src]), b > b').length"
        assert await page.evaluate(found) == 0
        # Were there a way, the page's policy would stop it.
        refused = "try { main.innerHTML = '<b>x</b>'; 0 } catch (exc) { exc.name }"
        assert await page.evaluate(refused) == "TypeError"
        page.complaints.clear()


async def test_a_daemon_and_a_server_that_go_and_come_back(
    browser: Browser, client: Client, daemon: Taskd, rootfs: Path
) -> None:
    await client.run(rootfs, ["/bin/sleep", "1000"], id="stays")
    async with browser.page() as page:
        async with served(daemon, client.namespace, "--no-open") as link:
            port = re.findall(r":(\d+)/", link)[0]
            await page.open(link)
            await page.shows("running", "tr[data-id=stays]")
            daemon.kill()
            await page.shows("daemon away", "#link")
            await page.shows("The daemon does not answer", "#trouble")
            assert "stays" in await page.text("tbody")  # as it was
            # What cannot be done now is not done later.
            await page.evaluate("location.hash = '#/task/stays'")
            await do(page, "kill")
            await page.shows("nothing was done", "#said")
            await page.evaluate("location.hash = '#/'")
            daemon.start()
            await page.until(LIVE)
            await page.shows("running", "tr[data-id=stays]")
            assert await page.evaluate("document.querySelector('#trouble').hidden")
            # Each event once, those of the time before included.
            await client.run(rootfs, ["/bin/sh", "-c", "exit 4"], id="new")
            await page.shows("new exited 4", ".events")
            texts = await page.evaluate(
                "[...document.querySelectorAll('.events .what')].map((each) => each.innerText)"
            )
            assert sorted(texts) == sorted(
                [
                    *("stays container made", "stays created", "stays started"),
                    *("new container made", "new created", "new started", "new exited 4"),
                ]
            )
        await page.shows("reconnecting", "#link")
        async with served(daemon, client.namespace, "--no-open", "--port", port) as link:
            await page.shows("open the link that it has printed", "#trouble")
            await page.open(link)
            await page.until(LIVE)
            await page.shows("exited 4", "tr[data-id=new]")


async def test_who_may_have_it(daemon: Taskd, client: Client, rootfs: Path) -> None:
    await client.run(rootfs, ["/bin/sleep", "1000"], id="one")
    async with served(daemon, client.namespace, "--no-open") as link:
        origin, _, token = link.rpartition("/?token=")
        jar = aiohttp.CookieJar(unsafe=True)  # of an address, not of a name
        async with (
            aiohttp.ClientSession() as stranger,
            aiohttp.ClientSession(cookie_jar=jar) as guest,
        ):
            kill = f"{origin}/task/one/kill"

            async def status(who: aiohttp.ClientSession, url: str, **options: Any) -> int:
                method = options.pop("method", "GET")
                async with who.request(method, url, allow_redirects=False, **options) as answer:
                    assert answer.headers["X-Content-Type-Options"] == "nosniff"
                    assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
                    assert "Access-Control-Allow-Origin" not in answer.headers
                    return answer.status

            for path in ("", "/", "/feed", "/page/app.js", "/task/one", "/task/one/feed", "/none"):
                assert await status(stranger, origin + path) == 403, path
            for wrong in ("", "x", token[:-1], f"{token}x", "%C3%A9", "%FF"):
                assert await status(stranger, f"{origin}/?token={wrong}") == 403
            assert await status(stranger, kill, method="POST") == 403

            assert await status(guest, link) == 303
            [cookie] = jar
            assert cookie["httponly"]
            assert cookie["samesite"] == "Strict"
            assert token not in cookie.value
            assert await status(guest, f"{origin}/") == 200
            # Another site's name that has been made to lead here.
            for host in ("example.com", "127.0.0.1.example.com", "127.0.0.1:80@example.com", ""):
                assert await status(guest, link, headers={"Host": host}) in (400, 421)
            assert await status(guest, f"{origin}/", headers={"Host": "localhost:1"}) == 200
            for path in ("/page/../site.py", "/page/%2e%2e%2fsite.py", "/page/none.js"):
                assert await status(guest, origin + path) == 404, path

            async with guest.get(f"{origin}/feed") as feed:
                assert await feed.content.readline() == b"event: hello\n"
                found = re.search(rb'"token":"([^"]+)"', await feed.content.readline())
                assert found is not None
                action = found[1].decode()
            right = {"Origin": origin, "X-Taskd-Token": action}
            for headers in (
                {},
                {"X-Taskd-Token": action},
                {"Origin": origin},
                right | {"X-Taskd-Token": token},
                right | {"Origin": "null"},
                right | {"Origin": "http://127.0.0.1:1"},
            ):
                assert await status(guest, kill, method="POST", headers=headers) == 403
            assert await status(guest, kill, method="OPTIONS", headers=right) == 405
            assert (await (await client.get("one")).state()).exit_status == 0
            signals = f"{origin}/task/one/signal"
            for body in ({}, [], {"signal": 9}, {"signal": "NONE"}, {"signal": ["TERM"]}):
                answer = await status(guest, signals, method="POST", headers=right, json=body)
                assert answer == 400, body
            for path, code in (("one/delete", 409), ("none/kill", 404), ("one/dance", 404)):
                url = f"{origin}/task/{path}"
                assert await status(guest, url, method="POST", headers=right) == code
            body = {"signal": "KILL"}
            assert await status(guest, signals, method="POST", headers=right, json=body) == 200
            with anyio.fail_after(60):
                assert (await (await client.get("one")).wait()).code == 128 + signal.SIGKILL


async def test_a_browser_is_opened(daemon: Taskd, namespace: str, folder: Path) -> None:
    """With a link that is good once, for a command line can be read by others."""
    told = folder / "told"
    script = folder / "browser"
    script.write_text(f'#!/bin/sh\necho "$1" > {told}.new && mv {told}.new {told}\n')
    script.chmod(0o755)
    async with (
        served(daemon, namespace, BROWSER=f"{script} %s") as link,
        aiohttp.ClientSession() as session,
    ):
        with anyio.fail_after(60):
            while not told.exists():
                await anyio.sleep(0.05)
        once = told.read_text().strip()
        assert once != link
        found = []
        for url in (once, once, link, link):
            async with session.get(url, allow_redirects=False) as answer:
                found.append(answer.status)
        assert found == [303, 403, 303, 303]


async def test_beside_containerd(
    browser: Browser, containerd: Containerd, namespace: str, rootfs: Path
) -> None:
    """All but the past, and what is said to shims."""
    async with (
        connect(containerd.address, namespace) as client,
        shown(browser, containerd, namespace) as page,
        client.run(rootfs, ["/bin/sleep", "1000"], id="there", output="log") as container,
    ):
        await page.shows("running", "tr[data-id=there]")
        await page.shows("there started", ".events")
        await page.evaluate("location.hash = '#/task/there'")
        await page.shows("it is no taskd", "#panel-Life")
        await page.shows("event start", "#panel-Life")
        await container.kill()
        await page.shows("exited 137", ".badge")
