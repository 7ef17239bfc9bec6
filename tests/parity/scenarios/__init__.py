"""Scenarios: each drives a daemon through gRPC with a `Recorder`."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from harness.generations import GENERATIONS, Generation
from parity.recorder import Recorder

__all__ = ["Play", "Scenario", "collected", "scenario"]

Play = Callable[[Recorder], Awaitable[None]]


ALL = tuple(generation.name for generation in GENERATIONS)

_WITHOUT_SHIMS = {
    *("containers", "content", "diffs", "garbage", "images", "leases", "namespaces", "sandboxes"),
    *("controllers", "snapshots", "transfer"),
    *("task no container", "task no task", "task deleted"),
}


@dataclass(frozen=True)
class Scenario:
    name: str
    play: Play
    alone: bool = False
    """It looks at what all namespaces share, so it needs daemons that nobody else has used."""
    generations: tuple[str, ...] = ALL
    """The containerds that can do what it is about."""
    controllers: bool = False
    """It needs the controllers of sandboxes, which 2.1 has with its CRI alone."""

    def concerns(self, generation: Generation) -> bool:
        """Whether it shows something of `generation`: of a shim of our own, what shims do."""
        if generation.own_shim and self.name.partition(":")[0] in _WITHOUT_SHIMS:
            return False
        return generation.name in self.generations


_SCENARIOS: dict[str, Scenario] = {}


def scenario(
    name: str = "",
    *,
    alone: bool = False,
    generations: tuple[str, ...] = ALL,
    controllers: bool = False,
) -> Callable[[Play], Play]:
    """Add a scenario; it is called what its module and function are unless `name` is given."""

    def add(play: Play) -> Play:
        module = play.__module__.rpartition(".")[2]
        called = name or f"{module}: {play.__name__.replace('_', ' ')}"
        assert called not in _SCENARIOS, called
        _SCENARIOS[called] = Scenario(called, play, alone, generations, controllers)
        return play

    return add


def collected() -> list[Scenario]:
    """Every scenario there is."""
    for module in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{module.name}")  # which adds its scenarios
    return list(_SCENARIOS.values())
