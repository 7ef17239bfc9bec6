"""Daemons and containers for tests: pytest has fixtures of them, from `taskd.testing.plugin`.

    async with daemon() as taskd:
        async with taskd.container("io.taskd.process.v1", ["/bin/echo", "hello"]) as container:
            assert (await container.run()).text == "hello\\n"

When a context ends, what was in it is killed, deleted and removed, whoever ends it: its last line,
an error, a cancellation, or a SIGKILL for the whole process, after which another one clears up.
Fixtures may be anyio's or pytest-asyncio's: a context may end in another task than it began.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from taskd.testing.daemon import Daemon, daemon

__all__ = ["Daemon", "daemon"]


def __getattr__(name: str) -> Any:
    # Each pytest loads the plugin, and few need the daemon.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = import_module("taskd.testing.daemon")
    # The import has put the module in the place of the function of the same name.
    globals().update(Daemon=home.Daemon, daemon=home.daemon)
    return globals()[name]
