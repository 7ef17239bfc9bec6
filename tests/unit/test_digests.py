from __future__ import annotations

import pytest

from taskd import digests
from taskd.errors import InvalidArgument


@pytest.mark.parametrize(
    "digest",
    ["sha256:" + "a" * 64, "sha384:" + "0" * 96, "sha512:" + "f" * 128, digests.of(b"")],
)
def test_valid(digest: str) -> None:
    digests.validate(digest)


@pytest.mark.parametrize(
    ("digest", "problem"),
    [
        ("", "invalid checksum digest format"),
        ("foo", "invalid checksum digest format"),
        (":x", "invalid checksum digest format"),
        ("sha256:", "invalid checksum digest format"),
        ("sha256:abc", "invalid checksum digest length"),
        ("sha256:../../../../etc/passwd", "invalid checksum digest length"),
        ("sha256:" + "../" * 21 + "x", "invalid checksum digest format"),
        ("sha256:" + "A" * 64, "invalid checksum digest format"),
        ("sha256:" + "a" * 63 + "\n", "invalid checksum digest format"),
        ("sha256:" + "٣" * 32, "invalid checksum digest format"),
        ("md5:" + "a" * 32, "unsupported digest algorithm"),
        ("../x:" + "a" * 64, "invalid checksum digest format"),
        ("md5!:" + "a" * 32, "invalid checksum digest format"),
    ],
)
def test_invalid(digest: str, problem: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        digests.validate(digest)
    assert caught.value.message == problem


def test_of() -> None:
    assert digests.of(b"") == (
        "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    )
