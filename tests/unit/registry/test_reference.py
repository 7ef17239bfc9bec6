from __future__ import annotations

import pytest

from taskd.errors import InvalidArgument, Unknown
from taskd.registry.reference import familiar, normalized, oci_name, parse

DIGEST = f"sha256:{'a' * 64}"


@pytest.mark.parametrize(
    ("text", "locator", "tag", "digest"),
    [
        ("docker.io/library/redis:6", "docker.io/library/redis", "6", ""),
        (f"docker.io/library/redis@{DIGEST}", "docker.io/library/redis", "", DIGEST),
        (f"h:5000/a/b:t@{DIGEST}", "h:5000/a/b", "t", DIGEST),
        ("localhost:5000/a", "localhost:5000/a", "", ""),
        ("[::1]:5000/a:t", "[::1]:5000/a", "t", ""),
        ("h", "h", "", ""),
        ("h//a/./b:t", "h/a/b", "t", ""),
    ],
)
def test_parts(text: str, locator: str, tag: str, digest: str) -> None:
    found = parse(text)
    assert (found.locator, found.tag, found.digest) == (locator, tag, digest)


def test_host_and_repository() -> None:
    found = parse("127.0.0.1:5000/a/b:t")
    assert (found.host, found.hostname, found.repository) == ("127.0.0.1:5000", "127.0.0.1", "a/b")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "/a:t",
        "https://h/a:t",
        "h/../a:t",
        "h:port/a:t",
        "u@h/a:t",
        "h/a b:t",
        "h\n/a",
        "h:-1/a",
    ],
)
def test_what_is_no_reference(text: str) -> None:
    with pytest.raises(Unknown):
        parse(text)


@pytest.mark.parametrize(
    ("short", "long"),
    [
        ("busybox:latest", "docker.io/library/busybox:latest"),
        ("someone/thing:1", "docker.io/someone/thing:1"),
        ("localhost/thing:1", "localhost/thing:1"),
        ("h.example:5000/a/b:t", "h.example:5000/a/b:t"),
        ("Host/a:t", "Host/a:t"),
        (f"busybox@{DIGEST}", f"docker.io/library/busybox@{DIGEST}"),
    ],
)
def test_dockers_names(short: str, long: str) -> None:
    assert normalized(short) == long
    assert familiar(long) == short


def test_dockers_names_that_are_changed() -> None:
    assert normalized("busybox") == "docker.io/library/busybox:latest"
    assert normalized("index.docker.io/busybox:1") == "docker.io/library/busybox:1"
    assert normalized(f"busybox:1@{DIGEST}") == f"docker.io/library/busybox@{DIGEST}"


@pytest.mark.parametrize(
    "text",
    ["", ":t", "a/B:t", "a..b", "a:t:t", "a@sha256:1", "a:" + "t" * 129, "a" * 300, "a/../b"],
)
def test_what_is_none_of_dockers_names(text: str) -> None:
    with pytest.raises(InvalidArgument, match="invalid reference format"):
        normalized(text)


def test_names_in_annotations() -> None:
    assert oci_name("docker.io/library/redis:6") == "6"
    assert oci_name(f"docker.io/library/redis@{DIGEST}") == f"docker.io/library/redis@{DIGEST}"
    assert oci_name("thing") == "thing"
