"""A daemon for the length of a test, and containers in it. Needs no root, unless the runtime does.

    async with daemon() as taskd:
        async with taskd.container("io.taskd.process.v1", ["/bin/echo", "hello"]) as container:
            assert (await container.run()).text == "hello\\n"

When a context ends, what was in it is killed, deleted and removed, whoever ends it: its last line,
an error, a cancellation, or a SIGKILL for the whole process, after which another one clears up.
Fixtures may be anyio's or pytest-asyncio's: a context may end in another task than it began.
"""

from taskd.testing.daemon import Daemon, daemon

__all__ = ["Daemon", "daemon"]
