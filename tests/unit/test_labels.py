"""What a label may name: an image can have set it."""

from __future__ import annotations

from pathlib import Path

import pytest

from taskd.client import logs
from taskd.client.streams import home
from taskd.labels import LOG, REMOVE, is_to_go, log_of


def test_where_the_client_keeps_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for user in (0, 1000):
        monkeypatch.setattr("os.geteuid", lambda user=user: user)
        path = logs.usual("space", "one")
        assert log_of({LOG: str(path)}, "space", "one") == path
        assert log_of({LOG: str(path)}, "space", "two") is None
        assert log_of({LOG: str(path)}, "other", "one") is None


@pytest.mark.parametrize(
    "path",
    [
        "",
        "/",
        "/var/lib/file",
        "/var/lib/taskd-logs/space/one/one-json.log",
        "/var/lib/taskd-logs/space/one-1/file",
        "/var/lib/taskd-logs/space/one-1/../one-json.log",
        "/var/lib/taskd-logs/space/one-1/one-json.log/..",
        "/var/lib/logs/space/one-1/one-json.log",
        "taskd-logs/space/one-1/one-json.log",
    ],
)
def test_what_is_somewhere_else(path: str) -> None:
    assert log_of({LOG: path}, "space", "one") is None
    assert log_of({}, "space", "one") is None


def test_a_container_of_another_kind_of_name() -> None:
    path = Path("/x/taskd-logs/n/a-b-c-12/a-b-c-json.log")
    assert log_of({LOG: str(path)}, "n", "a-b-c") == path


def test_an_image_cannot_have_containers_removed() -> None:
    assert is_to_go({REMOVE: "one"}, "one")
    for value in ("", "true", "two"):
        assert not is_to_go({REMOVE: value}, "one")
    assert not is_to_go({}, "one")


def test_no_two_containers_have_their_streams_in_one_folder() -> None:
    """Whoever removes one of them removes the folder."""
    address = Path("/run/taskd/taskd.sock")
    names = [("a", "b-c"), ("a-b", "c"), ("a", "b"), ("a-b-c", "d"), ("a-b", "c-d")]
    assert len({home(address, *each) for each in names}) == len(names)
