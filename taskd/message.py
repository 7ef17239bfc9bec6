"""The base of the generated messages: dataclasses that are made when they are first used.

Of some 300 messages a daemon's life needs a few dozen, and to make all of them while their modules
are loaded took a third of its start-up.
"""

from __future__ import annotations

import dataclasses
import threading
from functools import cache
from typing import Any, dataclass_transform

import betterproto2

__all__ = ["Message"]


class _Fields:
    """A class's fields, as `dataclasses.fields` and betterproto2 look for them."""

    def __get__(self, instance: object, owner: type[Message]) -> dict[str, Any]:
        if owner is Message:
            raise AttributeError("__dataclass_fields__")  # it has none to pass on
        _make(owner)
        fields: dict[str, Any] = owner.__dict__["__dataclass_fields__"]
        return fields


@dataclass_transform(eq_default=False)
class Message(betterproto2.Message):
    """What betterproto2 generates, but for the decorator."""

    __dataclass_fields__ = _Fields()

    @classmethod
    @cache
    def _type_hints(cls) -> dict[str, type]:
        """betterproto2's, which evaluates all of a class's for each field of it."""
        return super()._type_hints()

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        _make(type(self))  # which gives it an `__init__` of its own
        self.__init__(*args, **kwargs)  # type: ignore[misc]


_making = threading.RLock()


def _make(message_type: type[Message]) -> None:
    with _making:
        if "__init__" not in message_type.__dict__:
            # For want of one, each would have its signature found out, which takes a third of this.
            message_type.__doc__ = message_type.__doc__ or message_type.__name__
            dataclasses.dataclass(eq=False, repr=False)(message_type)
