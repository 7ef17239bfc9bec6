"""The event bus: everything that happens to containers and tasks, told to whoever subscribes."""

from taskd.events.bus import Bus, Subscription
from taskd.events.envelope import Envelope, validate_topic
from taskd.events.journal import Entry, Journal, Retention

__all__ = [
    "Bus",
    "Entry",
    "Envelope",
    "Journal",
    "Retention",
    "Subscription",
    "validate_topic",
]
