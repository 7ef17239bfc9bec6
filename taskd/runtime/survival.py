"""Containers that survive their shim: another process goes on with them.

A shim that can be gone on with has written a record into each bundle (`taskd.shim.record`), and has
what it has open kept in the store. containerd, for which a shim that dies takes its containers with
it, has nothing like it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable

import anyio

from taskd.errors import NotFound, TaskdError
from taskd.runtime.binary import Bootstrap
from taskd.runtime.bundle import Bundle
from taskd.runtime.connection import Connection, connect
from taskd.runtime.generation import Generation
from taskd.runtime.shim import Tenant
from taskd.runtime.store import DescriptorStore

__all__ = ["RECORD", "Heir", "Survival"]

log = logging.getLogger(__name__)

RECORD = "shim-record"
"""In a bundle: its shim can be gone on with."""
_LEAVE_SECONDS = 2.0
"""For a dead process to hang up: what it has forked may hold its connection for a moment."""
_ANSWER_SECONDS = 20.0
"""For one that goes on with many to answer."""


class Heir:
    """A process that goes on where another has died."""

    def __init__(
        self, bootstrap: Bootstrap, connection: Connection, first: Tenant, lost: list[Tenant]
    ) -> None:
        self.bootstrap = bootstrap
        self.connection = connection
        self.first = first
        """In whose bundle it was started."""
        self.lost = lost
        """Those that it cannot go on with."""


class Survival:
    """Finds heirs of shims that have died, of what the `store` has kept."""

    def __init__(self, store: DescriptorStore) -> None:
        self.store = store

    def of(self, tenants: Iterable[Tenant]) -> list[Tenant]:
        """Those that can survive."""
        return [
            tenant
            for tenant in tenants
            if tenant.binary is not None
            and not tenant.shim.foreign
            and (tenant.bundle.path / RECORD).exists()
        ]

    async def heir(
        self, home: Bundle | None, tenants: list[Tenant], generation: Generation
    ) -> Heir | None:
        """Have another process go on with `tenants` of one, which is dead; None if it cannot.

        It is started in their `home`, or in the bundle of the first: of the sandbox, if they are
        in one.
        Raises `TaskdError` if there is none that answers.
        """
        first = min(tenants, key=lambda tenant: tenant.sandboxed)
        if first.sandboxed:
            return None  # the sandbox that they are in cannot be gone on with
        assert first.binary is not None
        with anyio.move_on_after(_LEAVE_SECONDS):
            for tenant in tenants:
                await self.store.left(tenant.key)
        bundles = [tenant.bundle for tenant in tenants]
        binary = first.binary if home is None else generation.binary(first.binary.path, home)
        bootstrap = await binary.adopt(bundles, home.id if home is not None else "")
        connection = await connect(bootstrap, timeout=_ANSWER_SECONDS)
        lost: list[Tenant] = []
        failures: list[TaskdError] = []

        async def ask(tenant: Tenant) -> None:
            try:
                if tenant.ask is not None:
                    await tenant.ask(connection)
                else:
                    task = generation.task(connection, tenant.bundle, bootstrap)
                    await task.state("", timeout=_ANSWER_SECONDS)
            except NotFound:
                lost.append(tenant)
            except TaskdError as exc:
                failures.append(exc)

        try:
            async with anyio.create_task_group() as asking:
                for tenant in tenants:
                    asking.start_soon(ask, tenant)
            for failure in failures:
                raise failure
        except BaseException:
            with anyio.CancelScope(shield=True):
                await connection.aclose()
            raise
        if len(lost) == len(tenants):
            await connection.aclose()
            return None
        return Heir(bootstrap, connection, first, lost)
