"""Which of several processes the next container goes to: bookkeeping, without any I/O.

httpcore's connection pool is the model: whoever asks is told what is to be started and ended.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

__all__ = ["Member", "Pool", "PoolLimits"]


@dataclass(frozen=True)
class PoolLimits:
    size: float = 1
    """Containers that a process holds at once; infinity for any number."""
    lifetime: int = 1000
    """Containers that it is given in its life: memory that it has lost then goes with it."""
    idle: float = 60.0
    """Seconds that it goes on without any."""
    of_survivors: bool = False
    """Only containers that survive their process share one."""


class Member:
    """A process as its pool sees it, from when it is to be started."""

    def __init__(self) -> None:
        self.taken = 0
        """Containers that are in it, or about to be."""
        self.given = 0
        """Containers that it has been given in its life."""
        self.silent = False
        """It does not answer."""
        self.retired = False
        """It is to get no more containers."""
        self.shut = False
        """Nor is it, for now."""
        self.idle_since = 0.0


M = TypeVar("M", bound=Member)


class Pool(Generic[M]):
    """The processes for containers of one kind; `make` makes one that is still to be started."""

    def __init__(self, limits: PoolLimits, make: Callable[[], M]) -> None:
        self.limits = limits
        self.members: list[M] = []
        self._make = make

    def has_room(self, member: Member) -> bool:
        return (
            not member.silent
            and not member.retired
            and not member.shut
            and member.taken < self.limits.size
            and member.given < self.limits.lifetime
        )

    def take(self) -> M:
        """A place for one container, in a process that may have to be started.

        The fullest that has room: others become empty so, and end.
        """
        rooms = [member for member in self.members if self.has_room(member)]
        member = max(rooms, key=lambda each: each.taken) if rooms else self._add()
        member.taken += 1
        member.given += 1
        return member

    def leave(self, member: M, now: float) -> None:
        """Give a place back."""
        member.taken -= 1
        if not member.taken:
            member.idle_since = now

    def spare(self, now: float) -> M | None:
        """A process to be started, lest the next container has to wait for one."""
        if any(self.has_room(member) for member in self.members):
            return None
        member = self._add()
        member.idle_since = now
        return member

    def adopt(self, member: M, taken: int, now: float) -> None:
        """Take in a process that an earlier daemon has started."""
        member.taken = member.given = taken
        member.idle_since = now
        self.members.append(member)

    def remove(self, member: M) -> None:
        """It could not be started, or has died. May be called again."""
        if member in self.members:
            self.members.remove(member)

    def ending(self, now: float) -> list[M]:
        """Processes to be ended: nothing is in them, nor is to come. They are members no more."""
        ending = [
            member for member in self.members if not member.taken and self._is_over(member, now)
        ]
        for member in ending:
            self.members.remove(member)
        return ending

    def _is_over(self, member: Member, now: float) -> bool:
        return not self.has_room(member) or now - member.idle_since >= self.limits.idle

    def _add(self) -> M:
        member = self._make()
        self.members.append(member)
        return member
