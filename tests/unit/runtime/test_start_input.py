"""What shims of every generation understand of what they are told at their start."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness.starting_shims import GENERATIONS, install, understood

from taskd import plugins
from taskd.codec import decode, encode
from taskd.errors import Unknown
from taskd.proto.containerd.runc.v1 import Options
from taskd.proto.containerd.runtime.bootstrap.v1 import BootstrapParams, LogLevel
from taskd.runtime.binary import Daemon, ShimBinary
from taskd.runtime.bundle import Bundle
from taskd.runtime.request import Form, Forms, StartRequest
from taskd.runtime.types import CreateOptions
from taskd.types import TypedValue

RUNC = "containerd.runc.v1.Options"
VALUE = encode(Options(shim_cgroup="/shims"))


class Starter:
    """Starts shims as one daemon does."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.forms = Forms()
        self.addresses: list[str] = []

    async def start(self, path: Path, id: str, options: TypedValue | None) -> Bundle:  # noqa: A002
        bundle = Bundle.create(self.folder / "state", self.folder / "root", "ns", id, b"{}")
        daemon = Daemon(str(self.folder / "d.sock"), "/e.sock", "/bin/true")
        binary = ShimBinary(path, bundle, daemon, forms=self.forms)
        bootstrap = await binary.start(CreateOptions(str(path), runtime_options=options))
        self.addresses.append(bootstrap.address)
        return bundle


@pytest.fixture
def starter(folder: Path) -> Iterator[Starter]:
    starter = Starter(folder)
    yield starter
    for pid in folder.rglob("shim.pid"):
        os.kill(int(pid.read_text()), signal.SIGKILL)
    for address in set(starter.addresses):
        Path(address.removeprefix("unix://")).unlink(missing_ok=True)


@pytest.mark.parametrize("generation", GENERATIONS)
async def test_each_container_has_a_shim_and_its_options(starter: Starter, generation: str) -> None:
    path = install(starter.folder, generation)
    for id, options in (  # noqa: A001
        ("one", TypedValue(RUNC, VALUE)),
        ("two", TypedValue(RUNC, VALUE)),
        ("three", None),
        ("four", TypedValue(f"types.containerd.io/{RUNC}", VALUE)),
    ):
        bundle = await starter.start(path, id, options)
        given = (options.type_url, options.value) if options else ("", b"")
        assert understood(bundle.path) == (id, *given)
    assert len(set(starter.addresses)) == 4
    expected = Form.PARAMETERS if generation >= "2.3" else Form.OPTIONS
    assert starter.forms.of(path) is expected


@pytest.mark.parametrize("generation", ["2.3", "2.4"])
async def test_the_first_start_may_be_without_options(starter: Starter, generation: str) -> None:
    path = install(starter.folder, generation)
    assert understood((await starter.start(path, "one", None)).path) == ("one", "", b"")


async def test_a_shim_that_is_replaced_by_an_older_one(starter: Starter) -> None:
    for number, generation in enumerate(("2.4", "1.6", "2.3", "2.4")):
        path = install(starter.folder, generation, "containerd-shim-runc-v2")
        bundle = await starter.start(path, f"c{number}", TypedValue(RUNC, VALUE))
        assert understood(bundle.path) == (f"c{number}", RUNC, VALUE)


@pytest.mark.parametrize("name", ["containerd-shim-runc-v1", "my-shim-runhcs-v1"])
async def test_to_some_containerd_gives_nothing_but_options(starter: Starter, name: str) -> None:
    path = install(starter.folder, "2.3", name)
    for id in ("one", "two"):  # noqa: A001
        await starter.start(path, id, TypedValue(RUNC, VALUE))
    assert starter.forms.of(path) is Form.OPTIONS


async def test_what_a_shim_says_to_parameters_is_told(starter: Starter) -> None:
    """And not that it was asked in another way before."""
    path = starter.folder / "shim"
    path.write_text(
        "#!/bin/sh\n[ $(wc -c) = 0 ] && echo built against the new API && exit 1\necho no; exit 2"
    )
    path.chmod(0o755)
    with pytest.raises(Unknown, match=r"^no\n: exit status 2$"):
        await starter.start(path, "one", None)


def test_our_own_shims_are_told_all_at_once() -> None:
    for name in plugins.installed():
        assert Forms().of(plugins.executable(name)) is Form.PARAMETERS


def test_all_that_there_is_to_say() -> None:
    request = StartRequest(
        "one", "ns", TypedValue(RUNC, VALUE), "/d", "/e", "/bin/taskd", True, Path("/run/s")
    )
    params = decode(BootstrapParams, request.encode(Form.PARAMETERS))
    (extension,) = params.extensions
    assert extension.value is not None
    assert (extension.value.type_url, extension.value.value) == (RUNC, VALUE)
    assert (params.instance_id, params.namespace) == ("one", "ns")
    assert (params.containerd_grpc_address, params.containerd_ttrpc_address) == ("/d", "/e")
    assert (params.containerd_binary, params.socket_dir) == ("/bin/taskd", "/run/s")
    assert params.log_level is LogLevel.DEBUG
