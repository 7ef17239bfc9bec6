"""Sandboxes: processes of shims in which containers are made, as clients want them."""

from taskd.sandboxes.client import State
from taskd.sandboxes.controller import Controller, Wanted

__all__ = ["Controller", "State", "Wanted"]
