"""What a part of taskd needs that is installed only with an extra."""

from __future__ import annotations

from taskd.errors import FailedPrecondition

__all__ = ["missing"]


def missing(who: str, package: str, extra: str, exc: ImportError) -> FailedPrecondition:
    """The error for `who` when the package of an extra is not installed."""
    return FailedPrecondition(
        f"{who} needs {package} (pip install 'taskd-containers[{extra}]'): {exc}", verbatim=True
    )
