"""The checks, a module for each theme; importing this makes all of them known."""

from taskd.check.themes import (  # noqa: F401, I001 - in the order in which they are shown
    bootstrap,
    lifecycle,
    states,
    execs,
    stdio,
    events,
    concurrency,
    death,
    adoption,
    malformed,
    groups,
    sandboxes,
    leaks,
)
