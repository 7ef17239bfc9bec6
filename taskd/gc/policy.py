"""When garbage is collected, as the configuration has it. Loads nothing: every command reads it."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["MAX_PAUSE_THRESHOLD", "Policy"]

MAX_PAUSE_THRESHOLD = 0.5


@dataclass(frozen=True, slots=True)
class Policy:
    """Names and defaults are containerd's (``gc/scheduler/scheduler.go``); delays are seconds."""

    pause_threshold: float = 0.02
    """Share of time, at most `MAX_PAUSE_THRESHOLD`, for which collections may hold up writers.

    0 lets a second pass between two collections, however long they take.
    """
    deletion_threshold: int = 0
    """Deletions after which a collection need not wait for its turn; 0: it always does."""
    mutation_threshold: int = 100
    """Changes after which there is a collection without any deletion; 0: there is none."""
    schedule_delay: float = 0.0
    """From what gives cause for a collection to its begin; more may happen in between."""
    startup_delay: float = 0.1
    """From the daemon's start to its first collection; 0: it has to be given cause."""
