"""Quality of service by class: an annotation names a class, and the class fills in the spec."""

from taskd.qos.classes import Qos

__all__ = ["Qos"]
