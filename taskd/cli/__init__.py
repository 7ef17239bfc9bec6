"""The ``taskd`` command."""

from taskd.cli.main import main

__all__ = ["main"]
