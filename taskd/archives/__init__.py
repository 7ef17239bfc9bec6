"""Unpacking archives that anybody may have made: in a child that can be killed."""

from taskd.archives.unpacking import Limits, unpack

__all__ = ["Limits", "unpack"]
