from __future__ import annotations

from pathlib import Path

import pytest

from taskd.errors import InvalidArgument
from taskd.registry.hosts import Capability, Host, find

EVERYTHING = Capability.PULL | Capability.RESOLVE | Capability.PUSH | Capability.REFERRERS


def addresses(hosts: list[Host]) -> list[str]:
    return [f"{host.scheme}://{host.name}{host.path}" for host in hosts]


@pytest.mark.parametrize(
    ("name", "scheme", "found"),
    [
        ("docker.io", "", "https://registry-1.docker.io/v2"),
        ("registry.example", "", "https://registry.example/v2"),
        ("registry.example:5000", "http", "http://registry.example:5000/v2"),
        ("localhost", "", "https://localhost/v2"),
        ("127.0.0.1:443", "", "https://127.0.0.1:443/v2"),
        ("localhost:80", "", "http://localhost:80/v2"),
        ("localhost:5000", "", "https://localhost:5000/v2"),
        ("localhost:5000", "http", "http://localhost:5000/v2"),
        ("[::1]:5000", "", "https://[::1]:5000/v2"),
    ],
)
def test_without_a_file(name: str, scheme: str, found: str) -> None:
    assert addresses(find(name, None, scheme)) == [found]


def test_this_machine_is_asked_without_tls_if_it_speaks_none() -> None:
    (host,) = find("localhost:5000", None)
    assert (host.skip_verify, host.plain_after_tls) == (True, True)
    (host,) = find("registry.example", None)
    assert (host.skip_verify, host.plain_after_tls) == (None, False)


def put(root: Path, name: str, text: str) -> Path:
    folder = root / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "hosts.toml").write_text(text)
    return folder


def test_hosts_are_asked_in_the_files_order_and_the_server_last(tmp_path: Path) -> None:
    put(
        tmp_path,
        "r.example",
        """
        server = "https://r.example"
        [host."http://one.example:5000"]
        capabilities = ["pull", "resolve"]
        [host."https://two.example/some/v2"]
        override_path = true
        [host."three.example/other"]
        [host."https://one.more".header]
        X-One = "1"
        X-Two = ["2", "3"]
        """,
    )
    hosts = find("r.example", tmp_path)
    assert addresses(hosts) == [
        "http://one.example:5000/v2",
        "https://two.example/some/v2",
        "https://three.example/other/v2",
        "https://one.more/v2",
        "https://r.example/v2",
    ]
    assert hosts[0].capabilities == Capability.PULL | Capability.RESOLVE
    assert hosts[1].capabilities == EVERYTHING
    assert hosts[3].headers == {"X-One": ("1",), "X-Two": ("2", "3")}


def test_a_file_without_a_server_leaves_the_registry_itself_last(tmp_path: Path) -> None:
    put(tmp_path, "_default", '[host."https://mirror.example"]\n')
    assert addresses(find("r.example", tmp_path)) == [
        "https://mirror.example/v2",
        "https://r.example/v2",
    ]


@pytest.mark.parametrize("folder", ["r.example:5000", "r.example_5000_"])
def test_folders_of_a_registry_with_a_port(tmp_path: Path, folder: str) -> None:
    put(tmp_path, folder, 'server = "http://r.example:5000"\n')
    assert addresses(find("r.example:5000", tmp_path)) == ["http://r.example:5000/v2"]


def test_certificates(tmp_path: Path) -> None:
    folder = put(
        tmp_path,
        "r.example",
        'server = "https://r.example"\nca = "ca.pem"\nskip_verify = false\ndial_timeout = "1m"\n'
        'client = ["one.pem", ["two.pem", "/two.key"]]\n',
    )
    (host,) = find("r.example", tmp_path)
    assert host.authorities == (folder / "ca.pem",)
    assert host.pairs == ((folder / "one.pem", None), (folder / "two.pem", Path("/two.key")))
    assert (host.skip_verify, host.dial_timeout) == (False, 60)


def test_dockers_files_of_certificates(tmp_path: Path) -> None:
    folder = tmp_path / "r.example"
    folder.mkdir()
    for name in ("ca.crt", "one.cert", "one.key", "two.cert"):
        (folder / name).write_text("")
    (host,) = find("r.example", tmp_path)
    assert host.authorities == (folder / "ca.crt",)
    assert host.pairs == ((folder / "one.cert", folder / "one.key"), (folder / "two.cert", None))


@pytest.mark.parametrize(
    ("text", "about"),
    [
        ("server = 1", "server"),
        ('server = "https://"', "server"),
        ("host = 1", "host"),
        ('[host."https://a"]\ncapabilities = ["fly"]', "fly"),
        ('[host."https://a"]\nca = 1', "ca"),
        ('[host."https://a"]\nclient = 1', "client"),
        ('[host."https://a"]\nclient = [["one", "two", "three"]]', "client"),
        ('[host."https://a"]\nskip_verify = "no"', "skip_verify"),
        ('[host."https://a"]\nheader = 1', "header"),
        ('[host."https://a".header]\nX = 1', "header.X"),
        ('[host."https://a"]\ndial_timeout = "soon"', "dial_timeout"),
        ("no toml", "hosts.toml"),
    ],
)
def test_a_file_that_is_wrong_is_named(tmp_path: Path, text: str, about: str) -> None:
    put(tmp_path, "r.example", text)
    with pytest.raises(InvalidArgument, match=about) as caught:
        find("r.example", tmp_path)
    assert str(tmp_path / "r.example/hosts.toml") in str(caught.value)
