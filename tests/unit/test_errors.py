"""The texts of errors."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from taskd.errors import NotFound, ResourceExhausted, TaskdError, Unknown, of_system, words
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


def test_words_for_people(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as missing:
        (tmp_path / "none").read_text()
    assert words(missing.value) == f"{tmp_path}/none: no such file or directory"
    assert words(ConnectionResetError("gone")) == "gone"
    assert words(OSError(5, "Input/output error")) == "input/output error"
    assert words(OSError(2, "No such file", "a\udcff")) == "a\\udcff: no such file"
    assert words(TimeoutError()) == "TimeoutError"


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.ENOSPC, ResourceExhausted),
        (errno.EDQUOT, ResourceExhausted),
        (errno.EMFILE, ResourceExhausted),
        (errno.EIO, Unknown),
        (errno.EROFS, Unknown),
    ],
)
def test_what_the_system_refuses(number: int, kind: type[TaskdError]) -> None:
    error = of_system(OSError(number, os.strerror(number), "/a/file"))
    assert type(error) is kind
    assert str(error).startswith(f"/a/file: {os.strerror(number).lower()}")
