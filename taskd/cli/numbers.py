"""Numbers on a command line."""

from __future__ import annotations

import argparse

__all__ = ["count", "port"]


def count(text: str) -> int:
    """One or more; what argparse makes an error of."""
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no number such as 10")
    return int(text)


def port(text: str) -> int:
    """Of TCP; 0 for any that is free."""
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is no port such as 8080")
    return int(text)
