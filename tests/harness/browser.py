"""A real Chromium, spoken to in the DevTools protocol."""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import os
import shutil
import signal
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import aiohttp

__all__ = ["Browser", "Page", "chromium"]

PROGRAM = "chromium-headless-shell"
_SECONDS = 60.0


class Browser:
    """One process of it; each page has cookies of its own."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._numbers = itertools.count(1)
        self._answers: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._pages: dict[str, Page] = {}

    async def listen(self) -> None:
        async for message in self._socket:
            found = json.loads(message.data)
            if "id" in found:
                if not (answer := self._answers.pop(found["id"])).done():
                    answer.set_result(found)
            elif page := self._pages.get(found.get("sessionId", "")):
                page.happened(found["method"], found["params"])

    async def ask(self, method: str, session: str = "", **params: Any) -> Any:
        number = next(self._numbers)
        self._answers[number] = answer = asyncio.get_running_loop().create_future()
        message = {"id": number, "method": method, "params": params}
        await self._socket.send_json(message | ({"sessionId": session} if session else {}))
        found = await asyncio.wait_for(answer, _SECONDS)
        assert "error" not in found, f"{method}: {found['error']}"
        return found["result"]

    @asynccontextmanager
    async def page(
        self, width: int = 1280, height: int = 900, *, dark: bool = False
    ) -> AsyncIterator[Page]:
        context = (await self.ask("Target.createBrowserContext"))["browserContextId"]
        target = await self.ask("Target.createTarget", url="about:blank", browserContextId=context)
        attached = await self.ask(
            "Target.attachToTarget", targetId=target["targetId"], flatten=True
        )
        page = self._pages[attached["sessionId"]] = Page(self, attached["sessionId"])
        for domain in ("Page", "Runtime", "Log", "Network"):
            await page.ask(f"{domain}.enable")
        await page.resize(width, height)
        if dark:
            features = [{"name": "prefers-color-scheme", "value": "dark"}]
            await page.ask("Emulation.setEmulatedMedia", features=features)
        try:
            yield page
        finally:
            await self.ask("Target.disposeBrowserContext", browserContextId=context)


class Page:
    def __init__(self, browser: Browser, session: str) -> None:
        self._browser = browser
        self._session = session
        self.complaints: list[str] = []
        """What the browser has against it: exceptions, and what its policy forbids."""
        self.statuses: dict[str, int] = {}
        """By URL, of the last answer."""

    def happened(self, method: str, params: dict[str, Any]) -> None:
        match method:
            case "Runtime.exceptionThrown":
                self.complaints.append(json.dumps(params["exceptionDetails"]))
            case "Log.entryAdded" if params["entry"]["source"] in ("security", "javascript"):
                self.complaints.append(params["entry"]["text"])
            case "Network.responseReceived":
                self.statuses[params["response"]["url"]] = params["response"]["status"]

    async def ask(self, method: str, **params: Any) -> Any:
        return await self._browser.ask(method, self._session, **params)

    async def open(self, url: str) -> None:
        await self.ask("Page.navigate", url=url)

    async def resize(self, width: int, height: int, scale: float = 1) -> None:
        await self.ask(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=scale,
            mobile=False,
        )

    async def evaluate(self, script: str) -> Any:
        found = await self.ask(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in found, (script, found["exceptionDetails"])
        return found["result"].get("value")

    async def until(self, script: str) -> None:
        """Wait until it is true."""
        end = time.monotonic() + _SECONDS
        while True:
            # While another page is loaded, there is nothing to ask.
            with suppress(AssertionError):
                if await self.evaluate(f"Boolean({script})"):
                    return
            if time.monotonic() > end:
                raise AssertionError(
                    f"never: {script}\n{await self.text()}\n" + "\n".join(self.complaints)
                )
            await asyncio.sleep(0.05)

    async def text(self, selector: str = "body") -> str:
        found = await self.evaluate(f"document.querySelector({json.dumps(selector)})?.innerText")
        return str(found or "")

    async def shows(self, text: str, selector: str = "body") -> None:
        """Wait until it can be read there."""
        where = f"document.querySelector({json.dumps(selector)})?.innerText"
        await self.until(f"{where}?.includes({json.dumps(text)})")

    async def click(self, selector: str) -> None:
        element = f"document.querySelector({json.dumps(selector)})"
        await self.until(f"{element} && !{element}.disabled")
        await self.evaluate(f"{element}.click()")

    async def press(self, key: str) -> None:
        text = {"Enter": "\r"}.get(key, key if len(key) == 1 else "")
        codes = {"Enter": 13, "Escape": 27, "ArrowDown": 40, "ArrowUp": 38, "ArrowRight": 39}
        known = {"key": key, "windowsVirtualKeyCode": codes.get(key, ord(key.upper()[0]))}
        await self.ask("Input.dispatchKeyEvent", type="keyDown", text=text, **known)
        await self.ask("Input.dispatchKeyEvent", type="keyUp", **known)

    async def picture(self, path: Path) -> None:
        found = await self.ask("Page.captureScreenshot", format="png")
        path.write_bytes(base64.b64decode(found["data"]))


@asynccontextmanager
async def chromium() -> AsyncIterator[Browser]:
    program = shutil.which(PROGRAM)
    assert program is not None
    folder = Path(tempfile.mkdtemp(prefix="chromium-"))
    process = await asyncio.create_subprocess_exec(
        program,
        # Its sandbox needs another user than root, and /dev/shm more than a container has.
        *("--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu", "--hide-scrollbars"),
        *("--remote-debugging-port=0", f"--user-data-dir={folder}", "about:blank"),
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
        env={"HOME": str(folder), "PATH": "/usr/bin:/bin"},
        start_new_session=True,
    )
    try:
        told = folder / "DevToolsActivePort"
        async with asyncio.timeout(_SECONDS):
            while not told.exists() or len(told.read_text().split()) < 2:
                assert process.returncode is None, "chromium has ended"
                await asyncio.sleep(0.05)
        port, path = told.read_text().split()
        async with (
            aiohttp.ClientSession() as session,
            session.ws_connect(f"ws://127.0.0.1:{port}{path}", max_msg_size=0) as socket,
        ):
            browser = Browser(socket)
            listening = asyncio.create_task(browser.listen())
            try:
                yield browser
                with suppress(Exception):
                    await browser.ask("Browser.close")
            finally:
                listening.cancel()
    finally:
        # Its helpers are of its group; as long as one of them lives, it writes into the folder.
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()
        end = time.monotonic() + _SECONDS
        while folder.exists() and time.monotonic() < end:
            shutil.rmtree(folder, ignore_errors=True)
            await asyncio.sleep(0.05)
