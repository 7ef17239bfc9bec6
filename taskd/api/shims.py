"""``taskd.v1.Shims``: the processes of shims, and who lives in them."""

from __future__ import annotations

from collections.abc import Iterable

from taskd.proto.taskd import v1
from taskd.runtime.shim import Shim
from taskd.runtime.shims import Shims

__all__ = ["ShimProcesses"]


class ShimProcesses(v1.ShimsBase):
    def __init__(self, generations: Iterable[Shims]) -> None:
        self._generations = list(generations)

    async def list(self, message: v1.ListShimsRequest) -> v1.ListShimsResponse:
        shims = [shim for each in self._generations for shim in each.all()]
        return v1.ListShimsResponse(shims=[_message(shim) for shim in shims])


def _message(shim: Shim) -> v1.Shim:
    tenants = list(shim.tenants.values())
    binaries = [str(each.binary.path) for each in tenants if each.binary is not None]
    return v1.Shim(
        address=shim.address,
        pid=shim.pid,
        state=v1.State[shim.state.name],
        binary=binaries[0] if binaries and not shim.foreign else "",
        pooled=shim.home is not None,
        tenants=[v1.Tenant(namespace=each.key.namespace, id=each.key.id) for each in tenants],
    )
