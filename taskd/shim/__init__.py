"""What shim authors import: subclass `Container`, and `run` it. See docs/writing-a-shim.md."""

from __future__ import annotations

from importlib import import_module

TYPE_CHECKING = False  # as of `typing`, which a shim's `delete` does without
if TYPE_CHECKING:
    from typing import Any

    from taskd.shim.command import run
    from taskd.shim.container import Container
    from taskd.shim.process import Process, Status
    from taskd.shim.reaper import Completed, Ended
    from taskd.shim.sandbox import Sandbox, Wanted
    from taskd.shim.stdio import Pipes, Stdio

__all__ = [
    "Completed",
    "Container",
    "Ended",
    "Pipes",
    "Process",
    "Sandbox",
    "Status",
    "Stdio",
    "Wanted",
    "run",
]

_HOMES = {
    "run": "command",
    "Container": "container",
    **dict.fromkeys(("Process", "Status"), "process"),
    **dict.fromkeys(("Completed", "Ended"), "reaper"),
    **dict.fromkeys(("Sandbox", "Wanted"), "sandbox"),
    **dict.fromkeys(("Pipes", "Stdio"), "stdio"),
}


def __getattr__(name: str) -> Any:
    """Imported when it is asked for: a shim's ``delete`` takes less time than most of these."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
