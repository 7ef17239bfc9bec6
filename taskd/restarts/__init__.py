"""What labels ask of the daemon: to keep containers running, or to remove what has ended."""

from taskd.restarts.monitor import RestartMonitor
from taskd.restarts.removals import Removals

__all__ = ["Removals", "RestartMonitor"]
