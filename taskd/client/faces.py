"""The client on a thread of its own, for those who have no event loop, or another one.

`Face` stands for an object of `taskd.client` that lives there: each of its methods is run there,
and what comes back stands for what came back. `Blocking` waits for that, `Awaitable` is awaited, by
whatever loop of asyncio's.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import is_dataclass
from functools import wraps
from typing import Any, Self

from anyio.from_thread import BlockingPortal

from taskd.client.cleanup import Made

__all__ = ["Awaitable", "Blocking", "Face"]


_OURS = ("taskd.client.", "taskd.testing.")


class Face:
    """See the module. Attributes that are no methods are those of the object."""

    def __init__(self, portal: BlockingPortal, inner: Any) -> None:
        self._portal = portal
        self._inner = inner

    def __repr__(self) -> str:
        return repr(self._inner)

    def __dir__(self) -> list[str]:
        return dir(self._inner)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        # A property may need the loop that the object lives on.
        value = self._portal.call(getattr, self._inner, name)
        return self._method(value) if callable(value) else self._faced(value)

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        return self._method(self._inner)(*arguments, **options)

    def _method(self, method: Callable[..., Any]) -> Callable[..., Any]:
        raise NotImplementedError

    def _faced(self, value: Any) -> Any:
        """What stands for `value` on this side."""
        if type(value) in (list, tuple):
            return type(value)(map(self._faced, value))
        ours = type(value).__module__.startswith(_OURS) and not is_dataclass(value)
        if ours or inspect.isasyncgen(value):
            return type(self)(self._portal, value)
        return value

    def _submit(self, function: Callable[..., Any], *arguments: Any, **options: Any) -> Future[Any]:
        async def run() -> Any:
            result = function(*arguments, **options)
            return await result if inspect.isawaitable(result) else result

        return self._portal.start_task_soon(run)


class Blocking(Face):
    """Methods return when they are done; ``async for`` and ``async with`` are ``for`` and ``with``.

    What `Client.run`, `Client.create` and `Container.exec` make is there at once, and stays, unless
    it is in ``with``.
    """

    def _method(self, method: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(method, assigned=("__doc__",), updated=())
        def call(*arguments: Any, **options: Any) -> Any:
            future = self._submit(method, *arguments, **options)
            try:
                return self._faced(future.result())
            except BaseException:
                future.cancel()
                raise

        return call

    def __iter__(self) -> Iterator[Any]:
        inner = self._portal.call(aiter, self._inner)
        step = self._method(inner.__anext__)
        try:
            while True:
                try:
                    yield step()
                except StopAsyncIteration:
                    return
        finally:
            # Where it is only thrown away, that may be too late, and the loop has done it.
            with suppress(RuntimeError):
                if inspect.isasyncgen(inner):
                    self._portal.call(inner.aclose)

    def __next__(self) -> Any:
        try:
            return self._method(self._inner.__anext__)()
        except StopAsyncIteration:
            raise StopIteration from None

    def __enter__(self) -> Self:
        if hasattr(self._inner, "__aenter__"):
            self._method(self._inner.__aenter__)()
        return self

    def __exit__(self, *error: Any) -> None:
        end = getattr(self._inner, "leave", None)
        if end is not None:
            self._method(end)()
        else:
            self._method(self._inner.__aexit__)(*error)


class Awaitable(Face):
    """Methods are awaited, as those of the object itself, whatever the caller's loop."""

    def _method(self, method: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(method, assigned=("__doc__",), updated=())
        def call(*arguments: Any, **options: Any) -> Any:
            if inspect.iscoroutinefunction(method):
                return self._awaited(method, *arguments, **options)
            # In a tuple, or what can be awaited would be.
            (value,) = self._portal.call(lambda: (method(*arguments, **options),))
            return _Made(self, value) if isinstance(value, Made) else self._faced(value)

        return call

    async def _awaited(self, method: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        future = self._submit(method, *arguments, **options)
        return self._faced(await asyncio.wrap_future(future))

    async def __aiter__(self) -> AsyncIterator[Any]:
        inner = self._portal.call(aiter, self._inner)
        try:
            while True:
                try:
                    value = await self._awaited(inner.__anext__)
                except StopAsyncIteration:
                    return
                yield value
        finally:
            if inspect.isasyncgen(inner):
                await self._awaited(inner.aclose)

    async def __anext__(self) -> Any:
        return await self._awaited(self._inner.__anext__)

    async def __aenter__(self) -> Self:
        await self._awaited(self._inner.__aenter__)
        return self

    async def __aexit__(self, *error: Any) -> None:
        await self._awaited(self._inner.__aexit__, *error)


class _Made:
    """`Made`, on the other side."""

    def __init__(self, face: Awaitable, made: Made[Any]) -> None:
        self._face = face
        self._made = made
        self._value: Any = None

    def __await__(self) -> Any:
        return self._make().__await__()

    async def _make(self) -> Any:
        return await self._face._awaited(lambda: self._made)

    async def __aenter__(self) -> Any:
        self._value = await self._make()
        return self._value

    async def __aexit__(self, *_: object) -> None:
        await asyncio.shield(self._face._awaited(self._value._inner.leave))
