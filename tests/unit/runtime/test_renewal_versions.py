"""Which versions are renewed."""

from __future__ import annotations

import pytest

from taskd.runtime.renewal import is_older


@pytest.mark.parametrize(
    ("version", "installed", "older"),
    [
        ("0.1.9", "0.1.10", True),
        ("0.2.0rc1", "0.2.0", True),
        ("0.2.0", "0.2.0", False),
        # Nobody knows whether that one could go on.
        ("0.2.0", "0.1.0", False),
        ("", "0.1.0", False),
        ("0.1.0", "what?", False),
    ],
)
def test_versions(version: str, installed: str, older: bool) -> None:
    assert is_older(version, installed) is older
