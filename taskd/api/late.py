"""Services that are loaded when somebody first calls one, not while clients wait for the daemon.

Only their methods are known before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import cached_property, partial
from typing import Any

from grpclib.const import Cardinality, Handler

from taskd.grpc.server import Servable

__all__ = ["Late", "LateService"]


class Late:
    """What `make` returns, once it is needed."""

    def __init__(self, make: Callable[[], Iterable[Servable]]) -> None:
        self._make = make

    @cached_property
    def handlers(self) -> Mapping[str, Handler]:
        """Those that serve, by the paths of their methods."""
        return {
            path: handler
            for service in self._make()
            for path, handler in service.__mapping__().items()
        }

    def handler(
        self, path: str, cardinality: Cardinality, request_type: Any, reply_type: type = object
    ) -> Handler:
        """What stands for one of them until then."""
        return Handler(partial(self._serve, path), cardinality, request_type, reply_type)

    async def _serve(self, path: str, stream: Any) -> None:
        await self.handlers[path].func(stream)


class LateService(Late):
    """A service that has the methods of `base`."""

    def __init__(self, base: Servable, make: Callable[[], Servable]) -> None:
        super().__init__(lambda: [make()])
        self._base = base

    def __mapping__(self) -> Mapping[str, Handler]:
        return {
            path: self.handler(path, each.cardinality, each.request_type, each.reply_type)
            for path, each in self._base.__mapping__().items()
        }
