from __future__ import annotations

import pytest

from taskd.restarts.policy import COUNT, restarts

STOPPED = "explicitly-stopped"


@pytest.mark.parametrize(
    ("labels", "exit_status", "expected"),
    [
        ({}, 0, True),
        ({"policy": ""}, 1, True),
        ({"policy": "always", STOPPED: "true"}, 0, True),
        ({"policy": "no"}, 1, False),
        ({"policy": "on-failure"}, 0, False),
        ({"policy": "on-failure"}, 1, True),
        ({"policy": "on-failure", "count": "99"}, 1, True),
        ({"policy": "on-failure:3"}, 1, True),
        ({"policy": "on-failure:3", "count": "2"}, 1, True),
        ({"policy": "on-failure:3", "count": "3"}, 1, False),
        ({"policy": "on-failure:3:4", "count": "3"}, 1, False),
        ({"policy": "unless-stopped"}, 0, True),
        ({"policy": "unless-stopped", STOPPED: "T"}, 0, False),
        ({"policy": "unless-stopped", STOPPED: "no number"}, 0, True),
    ],
)
def test_policies(labels: dict[str, str], exit_status: int, expected: bool) -> None:
    given = {f"containerd.io/restart.{name}": value for name, value in labels.items()}
    assert restarts(given, exit_status) is expected


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        ({"policy": "nosuch"}, 'restart policy "nosuch" not supported'),
        ({"policy": "always:3"}, 'restart policy "always" not support max retry count'),
        ({"policy": ":3"}, 'restart policy "" not support max retry count'),
        ({"policy": "on-failure:x"}, "invalid max retry count: x"),
        ({"policy": "on-failure", "count": "x"}, "invalid literal"),
    ],
)
def test_what_is_none(labels: dict[str, str], words: str) -> None:
    given = {f"containerd.io/restart.{name}": value for name, value in labels.items()}
    with pytest.raises(ValueError, match=words):
        restarts(given, 1)
    assert COUNT == "containerd.io/restart.count"
