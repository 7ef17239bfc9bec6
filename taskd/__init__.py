"""containerd's task service as an asyncio daemon."""

__version__ = "0.1.0"
__revision__ = ""
"""Commit that this was built from; builds fill it in."""
