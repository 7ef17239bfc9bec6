"""The task service: what containerd calls ``services/tasks/local.go``."""

from taskd.tasks.archive import Checkpoints
from taskd.tasks.service import Metric, TaskService, publish_loss

__all__ = ["Checkpoints", "Metric", "TaskService", "publish_loss"]
