"""The task service: what containerd calls ``services/tasks/local.go``."""

from taskd.tasks.archive import Checkpoints
from taskd.tasks.endpoint import Endpoint
from taskd.tasks.monitor import Monitor
from taskd.tasks.rootfs import Rootfs
from taskd.tasks.service import Metric, TaskService

__all__ = ["Checkpoints", "Endpoint", "Metric", "Monitor", "Rootfs", "TaskService"]
