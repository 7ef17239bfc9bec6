"""Images from the shell, with a real registry on loopback."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pexpect
import pytest
from harness.daemons import Taskd
from harness.real import need
from harness.registry import PASSWORD, USER, Image, Registry, busybox_layers, program
from harness.shell import Shell, environment

pytestmark = pytest.mark.skipif("TASKD_VM" in os.environ, reason="there is no docker-registry")


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    need("busybox")
    program()
    with Registry(tmp_path_factory.mktemp("registry"), tls=True, password=True) as registry:
        registry.put(Image(busybox_layers()), "library/busybox:latest")
        yield registry


@pytest.fixture
def run(daemon: Taskd, namespace: str) -> Shell:
    return Shell(environment(daemon, namespace))


def access(registry: Registry) -> list[str]:
    return ["--hosts-dir", str(registry.hosts_folder()), "--user", f"{USER}:{PASSWORD}"]


def test_an_image_from_its_registry_to_a_container_and_back(
    run: Shell, registry: Registry, tmp_path: Path
) -> None:
    name = registry.name("library/busybox:latest")
    done = run("pull", *access(registry), name)
    assert done.stdout == f"{name}\n"
    assert "complete: layer " in done.stderr
    assert name in run("images").stdout
    assert run("run", "--rm", name, "echo", "hello").stdout == "hello\n"
    run("run", "-d", "--name", "web", name, "sleep", "1000")
    (tmp_path / "in").write_text("from here")
    run("cp", tmp_path / "in", "web:/there")
    assert run("exec", "web", "cat", "/there").stdout == "from here"
    run("exec", "web", "sh", "-c", "mkdir /d; echo back > /d/file")
    run("cp", "web:/d", tmp_path / "out")
    assert (tmp_path / "out/file").read_text() == "back\n"
    assert "one of the two is" in run("cp", "web:/a", "web:/b", status=1).stderr
    run("rm", "-f", "web")

    other = registry.name("other:1")
    run("tag", name, other)
    assert run("push", *access(registry), other).stdout == f"{other}\n"
    run("save", "-o", tmp_path / "archive.tar", name, other)
    run("rmi", name, other)
    assert run("images", "-q").stdout == ""
    assert sorted(run("load", "-i", tmp_path / "archive.tar").stdout.split()) == [name, other]
    run("rmi", name, other)
    run("pull", "-q", *access(registry), other)
    assert run("images", "-q").stdout == f"{other}\n"
    run("rmi", other)


def test_bars_and_a_password_at_a_terminal(run: Shell, registry: Registry) -> None:
    name = registry.name("library/busybox:latest")
    options = ["--hosts-dir", str(registry.hosts_folder()), "--user", USER]
    for password, expected in (("wrong", "(?i)unauthorized|authori"), (PASSWORD, "100|KiB|MiB")):
        typed = run.at_terminal("pull", *options, name)
        typed.expect(f"password of {USER}: ")
        typed.sendline(password)
        typed.expect(expected)
        typed.expect(pexpect.EOF)
        typed.close()
        assert (typed.exitstatus == 0) is (password == PASSWORD)


def test_what_is_not_there(run: Shell, registry: Registry, tmp_path: Path) -> None:
    name = registry.name("nosuch:1")
    assert name in run("pull", *access(registry), name, status=1).stderr
    missing = run("run", "--pull", "never", name, "true", status=125).stderr
    assert f'image "{name}"' in missing
    assert "not found" in run("rmi", name, status=1).stderr
    assert "nosuch.tar" in run("load", "-i", tmp_path / "nosuch.tar", status=1).stderr
    (tmp_path / "bad.tar").write_text("no archive")
    assert "bad.tar" in run("load", "-i", tmp_path / "bad.tar", status=1).stderr
    assert "not found" in run("save", "-o", tmp_path / "x", name, status=1).stderr
    assert not (tmp_path / "x").exists()
