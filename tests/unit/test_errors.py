"""The texts of errors."""

from __future__ import annotations

import os

import pytest

from taskd.errors import NotFound, Unknown
from taskd.ttrpc.messages import Response


@pytest.mark.parametrize(
    ("name", "shown"),
    [(b"plain", "plain"), (b"\xc3\xa4", "\u00e4"), (b"a\xff", "a\\udcff"), (b"\xc2\x85", "\x85")],
)
def test_names_that_are_not_utf8(name: bytes, shown: str) -> None:
    """They come from the file system, and have to travel."""
    for error in (Unknown(f"open {os.fsdecode(name)}"), NotFound(os.fsdecode(name))):
        assert shown in error.message
        assert shown in str(error)
        response = Response(code=error.code, message=error.message)
        assert Response.decode(response.encode()).message == error.message
