"""Prometheus and OpenTelemetry, with real containers; containerd's metrics beside ours."""

from __future__ import annotations

import http.server
import json
import os
import re
import signal
import socket
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import anyio
import pytest
import yaml
from grpclib.exceptions import GRPCError
from harness.containers import spec
from harness.daemons import Containerd, Daemon, Taskd, client
from harness.leaks import traces
from harness.real import need
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from prometheus_client.parser import text_string_to_metric_families

from taskd.observe.containers import _KINDS
from taskd.proto.containerd.services.containers.v1 import (
    Container,
    ContainerRuntime,
    ContainersStub,
    CreateContainerRequest,
    DeleteContainerRequest,
)
from taskd.proto.containerd.services.tasks.v1 import (
    CreateTaskRequest,
    DeleteTaskRequest,
    GetRequest,
    KillRequest,
    StartRequest,
    TasksStub,
    WaitRequest,
)

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class MeteredContainerd(Containerd):
    port = 0

    def command(self) -> list[str]:
        command = super().command()
        config = self.folder / "config.toml"
        more = f'[metrics]\naddress = "127.0.0.1:{self.port}"\ngrpc_histogram = true\n'
        config.write_text(config.read_text() + more)
        return command


@pytest.fixture
def port() -> int:
    return free_port()


@pytest.fixture
def metered(folder: Path, port: int) -> Iterator[Taskd]:
    need("containerd-shim-runc-v2", "runc")
    settings = f'[metrics]\naddress = "127.0.0.1:{port}"\n'
    with Taskd(folder / "taskd", settings=settings) as running:
        yield running


def scrape(port: int) -> Samples:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/metrics", timeout=20) as answer:
        assert answer.headers["Content-Type"].startswith("text/plain")
        text = answer.read().decode()
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


async def start(daemon: Daemon, namespace: str, rootfs: Path, name: str = "one") -> None:
    async with client(daemon.address, namespace) as channel:
        record = Container(
            id=name,
            runtime=ContainerRuntime(name="io.containerd.runc.v2"),
            spec=spec(rootfs, ["sleep", "1000"]),
        )
        await ContainersStub(channel).create(CreateContainerRequest(container=record))
        await TasksStub(channel).create(CreateTaskRequest(container_id=name))
        await TasksStub(channel).start(StartRequest(container_id=name))


async def stop(daemon: Daemon, namespace: str, name: str = "one") -> None:
    async with client(daemon.address, namespace) as channel:
        await TasksStub(channel).kill(KillRequest(container_id=name, signal=9))
        await TasksStub(channel).wait(WaitRequest(container_id=name))
        await TasksStub(channel).delete(DeleteTaskRequest(container_id=name))
        await ContainersStub(channel).delete(DeleteContainerRequest(id=name))


async def test_containers_have_containerds_metrics(
    metered: Taskd, port: int, folder: Path, namespace: str, rootfs: Path
) -> None:
    need("containerd")
    theirs = MeteredContainerd(folder / "containerd")
    theirs.port = free_port()
    found = []
    with theirs:
        for daemon, where, space in ((theirs, theirs.port, "theirs"), (metered, port, "ours")):
            await start(daemon, f"{namespace}-{space}", rootfs)
            # containerd measures when it likes.
            with anyio.fail_after(20):
                while not (samples := containers(await anyio.to_thread.run_sync(scrape, where))):
                    await anyio.sleep(0.2)
            found.append(samples)
            await stop(daemon, f"{namespace}-{space}")
    reference, ours = found
    assert shape(ours) == shape(reference)
    assert len(ours) > 50
    used = [value for (name, _), value in ours.items() if name == "container_cpu_total_nanoseconds"]
    assert len(used) == 1
    assert used[0] > 0


def containers(samples: Samples) -> Samples:
    return {key: value for key, value in samples.items() if key[0].startswith("container_")}


def shape(samples: Samples) -> set[tuple[str, tuple[tuple[str, str], ...]]]:
    return {
        (name, tuple((key, value) for key, value in labels if key != "namespace"))
        for name, labels in samples
    }


async def test_what_the_daemon_does(
    metered: Taskd, port: int, namespace: str, rootfs: Path
) -> None:
    await start(metered, namespace, rootfs)
    async with client(metered.address, namespace) as channel:
        with pytest.raises(GRPCError):
            await TasksStub(channel).get(GetRequest(container_id="two"))
    await stop(metered, namespace)
    samples = await anyio.to_thread.run_sync(scrape, port)
    # The shim tells each step, too, in its own time; its last words may die with it.
    with anyio.fail_after(10):
        while samples["taskd_events_repeated_total", ()] < 2:
            samples = await anyio.to_thread.run_sync(scrape, port)

    def value(name: str, **labels: str) -> float:
        return samples[name, tuple(sorted(labels.items()))]

    create = {
        "grpc_type": "unary",
        "grpc_service": "containerd.services.tasks.v1.Tasks",
        "grpc_method": "Create",
    }
    assert value("grpc_server_started_total", **create) == 1
    assert value("grpc_server_handled_total", **create, grpc_code="OK") == 1
    assert value("grpc_server_handling_seconds_count", **create) == 1
    assert value("grpc_server_handling_seconds_sum", **create) > 0
    get = {**create, "grpc_method": "Get", "grpc_code": "NotFound"}
    assert value("grpc_server_handled_total", **get) == 1
    assert value("taskd_shim_starts_total", outcome="started") == 1
    assert value("taskd_shim_start_seconds_count") == 1
    assert value("taskd_shim_rpc_seconds_count", method="Create", code="OK") == 1
    for step in ("create", "start", "exit", "delete"):
        assert value("taskd_events_total", topic=f"/tasks/{step}") == 1
    assert value("taskd_journal_last_position") >= 6
    assert value("taskd_journal_size_bytes") > 0
    assert value("taskd_subscribers") == 0
    assert value("process_open_fds") > 0


async def test_a_hung_shim_costs_its_own_metrics(
    metered: Taskd, port: int, namespace: str, rootfs: Path
) -> None:
    for name in ("one", "two"):
        await start(metered, namespace, rootfs, name)
    [shim] = [
        int(line.split()[0])
        for line in traces(metered.state, metered.root, namespace).processes
        if f"-namespace {namespace} " in line and "-id one " in line
    ]
    os.kill(shim, signal.SIGSTOP)
    try:
        began = time.monotonic()
        samples = await anyio.to_thread.run_sync(scrape, port)
        assert time.monotonic() - began < 6
    finally:
        os.kill(shim, signal.SIGCONT)
    assert {dict(labels)["container_id"] for _, labels in containers(samples)} == {"two"}
    for name in ("one", "two"):
        await stop(metered, namespace, name)


def test_an_address_that_is_taken(folder: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        settings = f'[metrics]\naddress = "127.0.0.1:{port}"\n'
        with Taskd(folder / "taskd", settings=settings) as daemon:
            daemon.process.wait(20)
            assert f"metrics on 127.0.0.1:{port}: Address already in use" in daemon.log.read_text()


class Collector(http.server.BaseHTTPRequestHandler):
    spans: list[Span]

    def do_POST(self) -> None:
        assert self.path == "/v1/traces"
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers.get("Content-Encoding") == "gzip":
            import gzip

            body = gzip.decompress(body)
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            for scope in resource.scope_spans:
                self.spans.extend(scope.spans)
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def collector() -> Iterator[tuple[int, list[Span]]]:
    """An OTLP collector on loopback, and the spans it has."""
    spans: list[Span] = []
    handler = type("Handler", (Collector,), {"spans": spans})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server.server_port, spans
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


async def test_the_board_and_the_rules_ask_for_what_there_is(
    metered: Taskd, port: int, namespace: str, rootfs: Path
) -> None:
    """Grafana's board and Prometheus's rules, in monitoring/."""
    folder = Path(__file__).parents[2] / "monitoring"
    board = json.loads((folder / "grafana.json").read_text())
    asked = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    asked += [each["query"] for each in board["templating"]["list"]]
    rules = yaml.safe_load((folder / "alerts.yaml").read_text())
    asked += [rule["expr"] for group in rules["groups"] for rule in group["rules"]]
    names = set(re.findall(r"\b(?:container|grpc|process|taskd)_\w+", " ".join(asked)))
    assert len(asked) > 20

    await start(metered, namespace, rootfs)
    there = {name for name, _ in scrape(port)}
    await stop(metered, namespace)
    for _, values in _KINDS.values():  # of both versions of cgroups
        there |= {"_".join(filter(None, ("container", each.name, each.unit))) for each in values}
    # Nothing has failed, and nobody reads the journal.
    there |= {"taskd_cursor_lag_events"}
    labels = {"container_id", "grpc_method", "grpc_code"}
    assert names - there - labels == set()


async def test_a_trace_goes_on_into_the_shim(folder: Path, namespace: str, rootfs: Path) -> None:
    need("containerd-shim-runc-v2", "runc")
    trace, parent = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
    with collector() as (port, spans):
        settings = f'[tracing]\nendpoint = "http://127.0.0.1:{port}"\n'
        with Taskd(folder / "taskd", settings=settings) as daemon:
            await start(daemon, namespace, rootfs)
            async with client(daemon.address, namespace) as channel:
                await TasksStub(channel).get(
                    GetRequest(container_id="one"),
                    metadata={
                        "traceparent": f"00-{trace}-{parent}-01",
                        "containerd-namespace": namespace,
                    },
                )
                with pytest.raises(GRPCError):
                    await TasksStub(channel).get(GetRequest(container_id="two"))
            await stop(daemon, namespace)
    ours = [span for span in spans if span.trace_id.hex() == trace]
    [get] = [span for span in ours if span.parent_span_id.hex() == parent]
    assert get.name == "containerd.services.tasks.v1.Tasks/Get"
    assert get.kind == Span.SPAN_KIND_SERVER
    [state] = [span for span in ours if span.parent_span_id == get.span_id]
    assert (state.name, state.kind) == ("containerd.task.v2.Task/State", Span.SPAN_KIND_CLIENT)
    [failed] = [
        span for span in spans if span.name == get.name and span.status.message.startswith("cont")
    ]
    assert failed.status.code == failed.status.STATUS_CODE_ERROR
    assert failed.trace_id != get.trace_id


async def test_a_collector_that_is_not_there(folder: Path, namespace: str, rootfs: Path) -> None:
    """Neither calls nor the end of the daemon wait for it."""
    settings = f'[tracing]\nendpoint = "http://127.0.0.1:{free_port()}"\n'
    with Taskd(folder / "taskd", settings=settings) as daemon:
        await start(daemon, namespace, rootfs)
        await stop(daemon, namespace)
        began = time.monotonic()
        assert daemon.stop() == 0
        assert time.monotonic() - began < 10


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ('[metrics]\naddress = "x"', "metrics: address: 'x' is not an address"),
        ('[metrics]\naddress = "127.0.0.1:99999"', "metrics: address: '127.0.0.1:99999' is not"),
        ("[tracing]", "tracing: endpoint: is missing"),
        ('[tracing]\nendpoint = "x"', "tracing: endpoint: 'x' is not a URL"),
        (
            '[tracing]\nendpoint = "http://x"\nsampling_ratio = 2',
            "tracing: sampling_ratio: 2 is not a share",
        ),
    ],
)
def test_bad_settings(folder: Path, settings: str, reason: str) -> None:
    with pytest.raises(RuntimeError) as caught:
        Taskd(folder / "taskd", settings=settings).start()
    assert reason in str(caught.value)
