from __future__ import annotations

import uuid
from pathlib import Path

import pytest

from taskd.daemon import _identity


@pytest.mark.parametrize("content", [None, "", "\n", "no uuid", "123e4567-e89b", "\0" * 36])
def test_one_that_was_cut_short_is_made_anew_and_stays(
    tmp_path: Path, content: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "uuid"
    if content is not None:
        file.write_text(content)
    made = _identity(file).read_text()
    assert str(uuid.UUID(made)) == made
    assert (f"{file} is no UUID" in caplog.text) == (content is not None)
    assert _identity(file).read_text() == made
    assert [*tmp_path.iterdir()] == [file]
