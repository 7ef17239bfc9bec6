"""The event bus: everything that happens to containers and tasks, told to whoever subscribes."""

from taskd.events.bus import Bus, Subscription
from taskd.events.envelope import Envelope, validate_topic

__all__ = ["Bus", "Envelope", "Subscription", "validate_topic"]
