"""``taskd ui``: the page of `taskd.web`, until it is interrupted."""

from __future__ import annotations

import os
import webbrowser
from argparse import Namespace

import anyio
import anyio.to_thread

from taskd.client import connect
from taskd.web.site import Site

__all__ = ["ui"]

_PATIENCE = 0.5
_SCREENS = ("BROWSER", "DISPLAY", "WAYLAND_DISPLAY")
"""Without any of them there is no browser, or one that would take this terminal."""


async def ui(options: Namespace) -> int:
    address = options.address or options.daemon_address
    async with (
        connect(address, options.namespace, patience=_PATIENCE) as client,
        Site(client).serving(options.port) as site,
    ):
        print(f"taskd ui: {site.link}", flush=True)
        if not options.no_open and any(map(os.environ.get, _SCREENS)):
            await anyio.to_thread.run_sync(webbrowser.open, site.link_once)
        await anyio.sleep_forever()
    return 0
