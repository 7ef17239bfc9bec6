"""What shim authors import: subclass `Container`, and `run` it. See docs/writing-a-shim.md."""

from taskd.shim.command import run
from taskd.shim.container import Container, Process, Status
from taskd.shim.reaper import Completed, Ended
from taskd.shim.stdio import Pipes, Stdio

__all__ = ["Completed", "Container", "Ended", "Pipes", "Process", "Status", "Stdio", "run"]
