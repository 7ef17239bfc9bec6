"""The task service: what containerd calls ``services/tasks/local.go``."""

from taskd.tasks.service import Metric, TaskService, publish_loss

__all__ = ["Metric", "TaskService", "publish_loss"]
