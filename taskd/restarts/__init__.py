"""The restart monitor: containers whose labels say that they are to run, or not to, do so."""

from taskd.restarts.monitor import RestartMonitor

__all__ = ["RestartMonitor"]
