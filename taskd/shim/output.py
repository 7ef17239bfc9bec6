"""What a client names for a process's standard output.

Source: containerd's ``pkg/process/io.go``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self
from urllib.parse import parse_qsl, unquote, urlsplit

from taskd.errors import Unknown

__all__ = ["Output"]


@dataclass(frozen=True, slots=True)
class Output:
    """A path, or what a URI says; names in it may be any bytes, as `os.fsdecode` has them."""

    path: str
    scheme: str = ""
    arguments: Sequence[str] = ()
    """What a ``binary://`` URI asks."""

    @classmethod
    def named(cls, text: str) -> Self:
        """Raises `Unknown` for a URI that is none."""
        try:
            url = urlsplit(text)
        except ValueError as exc:
            raise _bad(text, str(exc)) from exc
        if not url.scheme:
            return cls(text)
        # urlsplit would take some of them away.
        if any(each < " " or each == "\x7f" for each in text):
            raise _bad(text, "invalid control character in URL")
        asked = parse_qsl(url.query, keep_blank_values=True, errors="surrogateescape")
        arguments = [each for key, value in asked for each in ((key, value) if value else (key,))]
        path = unquote(url.path, errors="surrogateescape")
        if "\0" in path or any("\0" in each for each in arguments):
            raise _bad(text, "invalid argument")
        return cls(path, url.scheme, arguments)


def _bad(text: str, words: str) -> Unknown:
    doing = "failed to create init process I/O: unable to parse stdout uri"
    return Unknown(f"{doing}: {text}: {words}")
