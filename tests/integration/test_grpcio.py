"""A client that is not ours, generated from our protos: deadlines, cancellation, bad bytes."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib import import_module, invalidate_caches
from pathlib import Path
from typing import Any

import grpc
import pytest
from harness.containers import spec
from harness.daemons import Taskd

pytestmark = pytest.mark.usefixtures("clean")

PROTOS = Path(__file__).parents[2] / "protos"


@pytest.fixture(scope="session")
def stubs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """Google's own generator and runtime on our protos."""
    out = tmp_path_factory.mktemp("grpcio")
    sources = [str(path) for path in PROTOS.glob("containerd/**/*.proto")]
    sources += [str(path) for path in PROTOS.glob("google/rpc/*.proto")]
    command = [sys.executable, "-m", "grpc_tools.protoc", f"-I{PROTOS}"]
    subprocess.run(
        [*command, f"--python_out={out}", f"--grpc_python_out={out}", *sources], check=True
    )
    sys.path.insert(0, str(out))
    invalidate_caches()
    try:
        yield {
            kind + name: import_module(f"containerd.services.{name}.v1.{name}_pb2{kind}")
            for name in ("tasks", "containers", "events")
            for kind in ("", "_grpc")
        }
    finally:
        sys.path.remove(str(out))


class Client:
    def __init__(self, stubs: dict[str, Any], daemon: Taskd, namespace: str) -> None:
        self.channel = grpc.insecure_channel(f"unix:{daemon.address}")
        self.metadata = (("containerd-namespace", namespace),)
        self.api = stubs["tasks"]
        self.containers_api = stubs["containers"]
        self.tasks = stubs["_grpctasks"].TasksStub(self.channel)
        self.containers = stubs["_grpccontainers"].ContainersStub(self.channel)

    def start(self, name: str, rootfs: Path, *arguments: str) -> int:
        container = self.containers_api.Container(id=name)
        container.runtime.name = "io.containerd.runc.v2"
        document = spec(rootfs, arguments)
        container.spec.type_url, container.spec.value = document.type_url, document.value
        request = self.containers_api.CreateContainerRequest(container=container)
        self.containers.Create(request, metadata=self.metadata)
        self.tasks.Create(self.api.CreateTaskRequest(container_id=name), metadata=self.metadata)
        request = self.api.StartRequest(container_id=name)
        pid: int = self.tasks.Start(request, metadata=self.metadata).pid
        return pid

    def end(self, name: str) -> Any:
        request = self.api.KillRequest(container_id=name, signal=9)
        self.tasks.Kill(request, metadata=self.metadata)
        self.tasks.Wait(self.api.WaitRequest(container_id=name), metadata=self.metadata)
        request = self.api.DeleteTaskRequest(container_id=name)
        found = self.tasks.Delete(request, metadata=self.metadata)
        request = self.containers_api.DeleteContainerRequest(id=name)
        self.containers.Delete(request, metadata=self.metadata)
        return found


@pytest.fixture
def client(stubs: dict[str, Any], daemon: Taskd, namespace: str) -> Iterator[Client]:
    made = Client(stubs, daemon, namespace)
    yield made
    made.channel.close()


def test_life_of_a_task(client: Client, rootfs: Path) -> None:
    pid = client.start("one", rootfs, "/bin/sleep", "1000")
    request = client.api.GetRequest(container_id="one")
    state = client.tasks.Get(request, metadata=client.metadata).process
    assert (state.id, state.pid, state.status) == ("one", pid, 2)
    # Go's zero time, as containerd sends it for a process that has not exited.
    assert (state.exited_at.seconds, state.exited_at.nanos) == (-62135596800, 0)
    before = time.time()
    found = client.end("one")
    assert (found.pid, found.exit_status) == (pid, 137)
    assert before - 1 < found.exited_at.seconds < time.time() + 1
    assert found.exited_at.nanos % 1000, "nanoseconds were cut off"


def test_a_deadline_ends_a_wait_and_nothing_else(client: Client, rootfs: Path) -> None:
    client.start("one", rootfs, "/bin/sleep", "1000")
    request = client.api.WaitRequest(container_id="one")
    begin = time.monotonic()
    with pytest.raises(grpc.RpcError) as caught:
        client.tasks.Wait(request, metadata=client.metadata, timeout=0.3)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert time.monotonic() - begin < 5
    client.end("one")


def test_a_cancelled_wait_leaves_the_others(client: Client, rootfs: Path) -> None:
    client.start("one", rootfs, "/bin/sleep", "1000")
    request = client.api.WaitRequest(container_id="one")
    waits = [client.tasks.Wait.future(request, metadata=client.metadata) for _ in range(20)]
    time.sleep(0.2)
    for wait in waits[:10]:
        wait.cancel()
    client.end("one")
    assert {wait.result(timeout=10).exit_status for wait in waits[10:]} == {137}


def test_a_create_that_is_given_up_leaves_nothing(client: Client, rootfs: Path) -> None:
    container = client.containers_api.Container(id="one")
    container.runtime.name = "io.containerd.runc.v2"
    document = spec(rootfs, ["/bin/sleep", "1000"])
    container.spec.type_url, container.spec.value = document.type_url, document.value
    request = client.containers_api.CreateContainerRequest(container=container)
    client.containers.Create(request, metadata=client.metadata)
    given_up = 0
    for milliseconds in range(1, 41, 2):
        request = client.api.CreateTaskRequest(container_id="one")
        try:
            client.tasks.Create(request, metadata=client.metadata, timeout=milliseconds / 1000)
        except grpc.RpcError as exc:
            # The last one may have been made just before its client gave up.
            made = exc.code() is grpc.StatusCode.ALREADY_EXISTS
            assert made or exc.code() is grpc.StatusCode.DEADLINE_EXCEEDED
            given_up += not made
        else:
            made = True
        if made:
            request = client.api.DeleteTaskRequest(container_id="one")
            client.tasks.Delete(request, metadata=client.metadata)
    assert given_up > 5
    # The next one waits for its predecessor's clean-up, and finds nothing of it.
    request = client.api.CreateTaskRequest(container_id="one")
    with contextlib.suppress(grpc.RpcError):
        client.tasks.Create(request, metadata=client.metadata)
    client.tasks.Start(client.api.StartRequest(container_id="one"), metadata=client.metadata)
    client.end("one")


def test_bytes_that_are_no_message(client: Client) -> None:
    call = client.channel.unary_unary("/containerd.services.tasks.v1.Tasks/Get")
    with pytest.raises(grpc.RpcError) as caught:
        call(b"\x0a\xff\xff\xff\xff\x0f", metadata=client.metadata, timeout=5)
    assert caught.value.code() is grpc.StatusCode.INTERNAL


def test_a_message_over_the_limit(client: Client) -> None:
    call = client.channel.unary_unary("/containerd.services.tasks.v1.Tasks/Get")
    with pytest.raises(grpc.RpcError) as caught:
        call(b"\x0a" + b"\x00" * (17 << 20), metadata=client.metadata, timeout=20)
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_an_unknown_method(client: Client) -> None:
    call = client.channel.unary_unary("/containerd.services.tasks.v1.Tasks/Fly")
    with pytest.raises(grpc.RpcError) as caught:
        call(b"", metadata=client.metadata, timeout=5)
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
