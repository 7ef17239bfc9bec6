"""``taskd.v1.Shims``: the processes of shims, who lives in them, and fresh ones in their stead."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Sequence

from taskd.errors import NotFound, TaskdError
from taskd.proto.taskd import v1
from taskd.runtime.renewal import Renewals
from taskd.runtime.shim import Shim
from taskd.runtime.shims import Shims

__all__ = ["ShimProcesses"]


class ShimProcesses(v1.ShimsBase):
    def __init__(self, generations: Iterable[Shims], renewals: Renewals) -> None:
        self._generations = list(generations)
        self._renewals = renewals

    async def list(self, message: v1.ListShimsRequest) -> v1.ListShimsResponse:
        return v1.ListShimsResponse(shims=[self._message(shim) for shim in self._all()])

    async def renew(self, message: v1.RenewShimsRequest) -> AsyncIterator[v1.RenewShimsResponse]:
        shims = self._all()
        if message.addresses:
            known = {shim.address: shim for shim in shims}
            for address in message.addresses:
                if address not in known:
                    raise NotFound(f"shim at {address}")
            shims = [known[address] for address in dict.fromkeys(message.addresses)]
        for shim in shims:
            told = v1.RenewShimsResponse(shim=self._message(shim))
            try:
                told.pid = await self._renewals.renew(shim)
            except TaskdError as exc:
                told.reason = exc.message
            yield told

    def _all(self) -> Sequence[Shim]:
        return [shim for each in self._generations for shim in each.all()]

    def _message(self, shim: Shim) -> v1.Shim:
        tenants = list(shim.tenants.values())
        binaries = [str(each.binary.path) for each in tenants if each.binary is not None]
        return v1.Shim(
            address=shim.address,
            pid=shim.pid,
            state=v1.State[shim.state.name],
            binary=binaries[0] if binaries and not shim.foreign else "",
            pooled=shim.home is not None,
            tenants=[v1.Tenant(namespace=each.key.namespace, id=each.key.id) for each in tenants],
            version=self._renewals.version(shim),
        )
