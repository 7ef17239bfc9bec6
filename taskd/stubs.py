"""The bases of the generated stubs and services, without grpclib until one of them is used.

Whoever needs messages alone, as a shim does, imports the same modules, and grpclib with h2 is a
third of what they would cost him.
"""

from __future__ import annotations

from abc import ABCMeta
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from importlib import import_module
from typing import Any

__all__ = ["ServiceBase", "ServiceStub", "grpclib"]


class ServiceStub:
    """betterproto2's, to which it becomes when it is made."""

    def __new__(cls, *_: object, **__: object) -> Any:
        return object.__new__(_whole(cls))


_whole_stubs: dict[type, Any] = {}


def _whole(stub: type) -> Any:
    if (found := _whole_stubs.get(stub)) is None:
        from betterproto2.grpclib import ServiceStub as Base

        found = stub
        if not issubclass(stub, Base):
            found = ABCMeta(stub.__name__, (stub, Base), {"__module__": stub.__module__})
        _whole_stubs[stub] = found
    return found


class ServiceBase:
    """What a service inherits."""

    async def _call_rpc_handler_server_stream(
        self, handler: Callable[[Any], AsyncGenerator[Any]], stream: Any, message: Any
    ) -> None:
        """betterproto2's leaves the end of a generator to the garbage collector.

        What it holds must be free when its call has ended: a client may come again at once.
        """
        async with aclosing(handler(message)) as responses:
            async for response in responses:
                await stream.send_message(response)


class _Grpclib:
    """The module, which is loaded when it is looked into."""

    def __getattr__(self, name: str) -> Any:
        import_module("grpclib.const")
        return getattr(import_module("grpclib"), name)


grpclib: Any = _Grpclib()
