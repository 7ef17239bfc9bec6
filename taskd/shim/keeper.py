"""What the daemon keeps for a shim: descriptors, so that another one can go on where it died.

Each process of a container has slots with names. What is in them follows what the shim has open:
whatever it closes is closed there too, or a client would never read the end of an output. A daemon
that was restarted has nothing, and is given everything again. The other side of it is
`taskd.runtime.store`, and what travels between them stands in `taskd.slots`.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Collection, Mapping
from contextlib import suppress

import taskd
from taskd.shim.copying import readable
from taskd.slots import MAX_MESSAGE, Slots, receive, send

__all__ = ["Keeper", "version"]

log = logging.getLogger(__name__)

_RETRY_SECONDS = (0.02, 0.05, 0.1, 0.25, 0.5)
_SETTLE_SECONDS = 2.0
"""For the daemon to take what it is given. A call is not held up for longer."""

_Key = tuple[str, str]


class Keeper:
    """The shim's side: its containers' processes, and what they have open."""

    def __init__(self, address: str, namespace: str) -> None:
        self._address = address
        self._namespace = namespace
        self._socket: socket.socket | None = None
        # By container and exec id.
        self._wanted: dict[_Key, Slots] = {}
        # Names that this daemon has; of those that are not in here it may have anything.
        self._given: dict[_Key, set[str]] = {}
        # Those of which the daemon has not what it should.
        self._due: dict[_Key, None] = {}
        self._settled = asyncio.Event()
        self._settled.set()
        self._writing = False
        self.dismissed = asyncio.Event()
        """The daemon wants another process to go on; it is told that it will not be by `stay`."""

    def connect(self) -> bool:
        """Whether there is a daemon, which is given everything then."""
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            connection.setblocking(False)
            connection.connect(self._address)
            hello = {"namespace": self._namespace, "pid": os.getpid(), "version": version()}
            send(connection, hello)
        except OSError:
            connection.close()
            return False
        self._socket = connection
        self._given.clear()
        self._due = dict.fromkeys(self._wanted)
        self._flush()
        return True

    def wake(self) -> None:
        """There is a daemon, which may be another one."""
        if self._socket is None:
            self.connect()

    async def recover(self, containers: Collection[str]) -> dict[_Key, Slots]:
        """What has been kept of `containers`, by container and exec id. Raises OSError."""
        connection = self._socket
        if connection is None:
            raise ConnectionRefusedError("no daemon")
        found: dict[_Key, Slots] = {}
        send(connection, {"recover": list(containers)})
        while True:
            try:
                message, descriptors = receive(connection)
            except BlockingIOError:
                await readable(connection.fileno())
                continue
            if not message:
                raise ConnectionResetError("the daemon has gone")
            if message.get("done"):
                return found
            key = (message["container"], message["process"])
            found[key] = dict(zip(message["put"], descriptors, strict=True))

    async def run(self) -> None:
        """See to it that there is a connection, for ever."""
        failures = 0
        while True:
            if self._socket is None and not self.connect():
                await asyncio.sleep(_RETRY_SECONDS[min(failures, len(_RETRY_SECONDS) - 1)])
                failures += 1
                continue
            failures = 0
            assert self._socket is not None
            with suppress(OSError):
                # Nothing else comes, but the end.
                while await asyncio.get_running_loop().sock_recv(self._socket, MAX_MESSAGE):
                    self.dismissed.set()
            self._disconnect()

    def stay(self, reason: str) -> None:
        """Tell why this process goes on; if nobody takes it, the daemon sees it all the same."""
        self.dismissed.clear()
        if self._socket is not None:
            with suppress(OSError):
                send(self._socket, {"stays": reason})

    def keep(self, container: str, process: str, slots: Mapping[str, int]) -> None:
        """From now on this is what a process has open, and nothing else."""
        key = (container, process)
        if slots:
            self._wanted[key] = dict(slots)
        else:
            self._wanted.pop(key, None)
        self._due[key] = None
        self._flush()

    def forget(self, container: str) -> None:
        """Nothing of that container is to be kept any more."""
        for key in [key for key in {**self._wanted, **self._given} if key[0] == container]:
            self.keep(*key, {})

    async def settled(self) -> bool:
        """Wait until the daemon has what it should, if there is one; whether it has."""
        if self._socket is None:
            return False
        try:
            async with asyncio.timeout(_SETTLE_SECONDS):
                await self._settled.wait()
        except TimeoutError:
            log.warning("the daemon does not take what it should keep")
            return False
        return not self._due and self._socket is not None

    def close(self) -> None:
        self._disconnect()

    def _flush(self) -> None:
        connection = self._socket
        while self._due and connection is not None:
            key = next(iter(self._due))
            try:
                self._tell(connection, key)
            except BlockingIOError:
                break
            except OSError as exc:
                log.warning("giving descriptors to the daemon: %s", exc)
                connection = None
            else:
                del self._due[key]
        self._watch(bool(self._due) and connection is not None)

    def _tell(self, connection: socket.socket, key: _Key) -> None:
        wanted = self._wanted.get(key, {})
        given = self._given.get(key)
        known = given or set()
        put = [name for name in wanted if name not in known]
        drop = [name for name in known if name not in wanted]
        if put or drop or given is None:
            of = {"container": key[0], "process": key[1], "anew": given is None}
            message = {**of, "put": put, "drop": drop}
            send(connection, message, [wanted[name] for name in put])
        if wanted:
            self._given[key] = set(wanted)
        else:
            self._given.pop(key, None)

    def _watch(self, yes: bool) -> None:
        """Go on when the daemon takes more."""
        if yes:
            self._settled.clear()
        else:
            self._settled.set()
        if yes != self._writing and self._socket is not None:
            loop = asyncio.get_running_loop()
            if yes:
                loop.add_writer(self._socket, self._flush)
            else:
                loop.remove_writer(self._socket)
            self._writing = yes

    def _disconnect(self) -> None:
        if self._socket is not None:
            self._watch(False)
            self._socket.close()
            self._socket = None


def version() -> str:
    """Of what this process runs."""
    return f"{taskd.__version__} {taskd.__revision__}".strip()
