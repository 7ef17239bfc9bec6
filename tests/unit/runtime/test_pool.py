"""Which process a container goes to, and which are started and ended."""

from __future__ import annotations

import math

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    rule,
)

from taskd.runtime.pool import Member, Pool, PoolLimits


def pool(size: float = 3, lifetime: int = 100, idle: float = 10) -> Pool[Member]:
    return Pool(PoolLimits(size, lifetime, idle), Member)


def test_a_process_is_filled_before_another_one_is_started() -> None:
    one = pool(size=2)
    assert len({one.take(), one.take(), one.take()}) == 2
    assert [member.taken for member in one.members] == [2, 1]


def test_the_fullest_with_room_comes_first() -> None:
    one = pool(size=2)
    first, _, second = one.take(), one.take(), one.take()
    one.leave(first, 0)
    one.leave(second, 0)
    assert one.take() is first


def test_there_is_a_spare_when_nobody_has_room() -> None:
    one = pool(size=1)
    first = one.take()
    spare = one.spare(0)
    assert spare is not None
    assert one.spare(0) is None
    assert one.take() is spare is not first


def test_a_pool_without_bound_is_one_process() -> None:
    one = pool(size=math.inf)
    assert len({one.take() for _ in range(50)}) == 1
    assert one.spare(0) is None


@pytest.mark.parametrize("why", ["silent", "retired"])
def test_what_is_not_to_be_used_gets_nothing_new(why: str) -> None:
    one = pool()
    first = one.take()
    setattr(first, why, True)
    assert one.take() is not first
    assert one.ending(0) == []
    one.leave(first, 0)
    assert one.ending(0) == [first]


def test_what_answers_again_is_used_again() -> None:
    one = pool()
    first = one.take()
    first.silent = True
    second = one.take()
    first.silent = False
    one.leave(second, 0)
    assert one.take() is first


def test_one_that_has_had_many_is_retired() -> None:
    one = pool(lifetime=2)
    first = one.take()
    one.leave(first, 0)
    assert one.take() is first
    assert one.take() is not first
    one.leave(first, 0)
    assert one.ending(0) == [first]


def test_an_idle_one_ends_after_a_while() -> None:
    one = pool(idle=10)
    first = one.take()
    assert one.ending(100) == []
    one.leave(first, 100)
    assert one.ending(109) == []
    assert one.ending(110) == [first]
    assert one.members == []


def test_one_of_an_earlier_daemon_is_filled_up() -> None:
    one = pool(size=3)
    member = Member()
    one.adopt(member, 2, 0)
    assert one.take() is member
    assert one.take() is not member


class Life(RuleBasedStateMachine):
    """Whatever comes, in whatever order."""

    places = Bundle("places")

    @initialize(
        size=st.integers(1, 3) | st.just(math.inf),
        lifetime=st.integers(1, 6),
        idle=st.sampled_from([0.0, 5.0]),
    )
    def begin(self, size: float, lifetime: int, idle: float) -> None:
        self.pool = pool(size, lifetime, idle)
        self.now = 0.0
        self.living: dict[Member, int] = {}

    @rule(target=places)
    def take(self) -> Member:
        usable = [member for member in self.pool.members if self.pool.has_room(member)]
        member = self.pool.take()
        assert not member.silent
        assert not member.retired
        assert member in usable or not usable
        self.living[member] = self.living.get(member, 0) + 1
        return member

    @rule(member=consumes(places))
    def leave(self, member: Member) -> None:
        if member in self.living:
            self.pool.leave(member, self.now)
            self.living[member] -= 1

    @rule(member=places, silent=st.booleans())
    def falls_silent(self, member: Member, silent: bool) -> None:
        member.silent = silent

    @rule(member=places)
    def retires(self, member: Member) -> None:
        member.retired = True

    @rule(member=places)
    def dies(self, member: Member) -> None:
        self.pool.remove(member)
        self.living.pop(member, None)

    @rule()
    def spare(self) -> None:
        member = self.pool.spare(self.now)
        if member is not None:
            self.living[member] = 0
        assert any(map(self.pool.has_room, self.pool.members))
        assert self.pool.spare(self.now) is None

    @rule(seconds=st.sampled_from([1.0, 5.0]))
    def ends(self, seconds: float) -> None:
        self.now += seconds
        for member in self.pool.ending(self.now):
            assert self.living.pop(member) == 0
        # Nothing that is of no use is kept.
        for member in self.pool.members:
            assert member.taken or self.pool.has_room(member)
        if not any(self.living.values()):
            self.now += self.pool.limits.idle
            self.pool.ending(self.now)
            assert self.pool.members == []
            self.living.clear()

    @invariant()
    def adds_up(self) -> None:
        if not hasattr(self, "pool"):
            return
        assert {member: member.taken for member in self.pool.members} == self.living
        for member in self.pool.members:
            assert member.taken <= self.pool.limits.size
            assert member.taken <= member.given <= self.pool.limits.lifetime


TestLife = Life.TestCase
TestLife.settings = settings(max_examples=50, stateful_step_count=30, deadline=None)
