"""The log of an OCI runtime: which error containerd's shim would tell."""

from __future__ import annotations

from pathlib import Path

import pytest
from taskd_oci.runtime import Runtime

RUNC = '{"level":"warning","msg":"w","time":"t"}\n{"level":"error","msg":"%s","time":"t"}\n'
CRUN = """{
	"msg": "%s",
	"level": "error",
	"time": "2026-11-27T13:07:00.000000Z"
}
"""


def last_error(folder: Path, text: bytes) -> str:
    (folder / "log.json").write_bytes(text)
    return Runtime("runc", folder, folder / "log.json").last_error()


WORDS = ["plain", "next\u0085line", "a\u2028b\u2029c", "a\u000bb\u000cc\u001cd", "caf\u00e9"]


@pytest.mark.parametrize("words", WORDS)
@pytest.mark.parametrize("form", [RUNC, CRUN])
def test_entries_of_one_line_or_several(tmp_path: Path, form: str, words: str) -> None:
    # Control characters but these are escaped in JSON.
    escaped = (
        words.replace("\u000b", "\\u000b").replace("\u000c", "\\f").replace("\u001c", "\\u001c")
    )
    assert last_error(tmp_path, (form % escaped).encode()) == words
    assert last_error(tmp_path, (form % "before" + form % escaped).encode()) == words
    assert last_error(tmp_path, (RUNC % "before" + CRUN % escaped + " \r\n").encode()) == words


def test_what_is_not_utf8(tmp_path: Path) -> None:
    assert last_error(tmp_path, (RUNC % "NAME").encode().replace(b"NAME", b"\xff!")) == "\ufffd!"


@pytest.mark.parametrize(
    "text", [b"", b"\n", b'{"level":"info","msg":"x"}', b'[] 7 null {"level": "error"}']
)
def test_without_an_error(tmp_path: Path, text: bytes) -> None:
    assert last_error(tmp_path, text) == ""


@pytest.mark.parametrize("text", [b"{", b'{"level":"error","msg":"x"} and words', b"{} {"])
def test_what_is_no_json(tmp_path: Path, text: bytes) -> None:
    with pytest.raises(ValueError, match=r"line \d"):
        last_error(tmp_path, text)
