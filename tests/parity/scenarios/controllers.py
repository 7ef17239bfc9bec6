"""Sandboxes' lives, and tasks in them: with 1.7 through its own shim, with 2.x through ours."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import anyio
from parity.recorder import RUNC, Recorder
from parity.scenarios import scenario
from parity.scenarios.sandboxes import SINCE, sandbox

from taskd import wellknown
from taskd.proto.containerd.runc.v1 import Options
from taskd.proto.containerd.types import Sandbox

SHIM = "shim"


def made(r: Recorder, name: str = "s", **fields: Any) -> Sandbox:
    """A sandbox whose runtime's shims have them."""
    return sandbox(name, **{"runtime": r.sandbox_runtime, "sandboxer": SHIM, **fields})


async def ask(r: Recorder, method: str, name: str = "s", **fields: Any) -> Any:
    request = {"sandbox_id": name, "sandboxer": SHIM, **fields}
    answer = await getattr(r.controllers, method)(**request)
    if method == "stop" and r.sandbox_runtime == RUNC:
        await anyio.sleep(0.5)  # 1.7's shim ends then, which containerd has to notice
    return answer


async def create(r: Recorder, name: str = "s", **fields: Any) -> None:
    each = made(r, name, spec=r.spec(name), **fields)
    await r.sandboxes.create(sandbox=each)
    await ask(r, "create", name, sandbox=each)


async def started(r: Recorder, name: str = "s", **fields: Any) -> None:
    await create(r, name, **fields)
    await ask(r, "start", name)


async def end(r: Recorder, name: str = "s") -> None:
    await ask(r, "stop", name)
    await ask(r, "shutdown", name)
    await r.sandboxes.delete(sandbox_id=name)


async def container(r: Recorder, name: str, within: str, command: str = "sleep 1000") -> None:
    await r.container(name, command, runtime=r.sandbox_runtime, sandbox=within)


async def running(r: Recorder, name: str, within: str = "s", command: str = "sleep 1000") -> None:
    await container(r, name, within, command)
    await r.tasks.create(container_id=name)
    await r.tasks.start(container_id=name)


@scenario(generations=SINCE, controllers=True)
async def a_life(r: Recorder) -> None:
    await create(r)
    await ask(r, "status")
    await ask(r, "start")
    await ask(r, "platform")
    await ask(r, "status")
    await ask(r, "status", verbose=True)
    await ask(r, "metrics")
    await ask(r, "update", sandbox=made(r), fields=["labels"])
    await ask(r, "update")
    await ask(r, "stop", timeout_secs=5)
    await ask(r, "wait")
    await ask(r, "shutdown")
    await ask(r, "status")
    await ask(r, "shutdown")
    await r.sandboxes.list()
    await r.sandboxes.delete(sandbox_id="s")


@scenario(generations=SINCE, controllers=True)
async def before_there_is_one(r: Recorder) -> None:
    for method in ("start", "platform", "stop", "wait", "status", "shutdown", "metrics"):
        await ask(r, method)
    await ask(r, "update", sandbox=made(r))
    async with r.within(None) as nobody:
        for method in ("stop", "wait", "status", "shutdown", "metrics"):
            await ask(nobody, method)


@scenario(generations=("2",), controllers=True)
async def names_of_controllers(r: Recorder) -> None:
    for method in ("create", "start", "platform", "stop", "wait", "status", "shutdown", "metrics"):
        await ask(r, method, sandboxer="nosuch")
    await ask(r, "update", sandboxer="nosuch")


@scenario(generations=("2",), controllers=True)
async def without_a_record(r: Recorder) -> None:
    await ask(r, "create", sandbox=made(r, spec=r.spec("s")))
    await ask(r, "start")
    await end(r)


@scenario(generations=SINCE, controllers=True)
async def twice(r: Recorder) -> None:
    await create(r)
    await create(r)
    await ask(r, "start")
    await ask(r, "start")
    await ask(r, "stop")
    await ask(r, "stop")
    await ask(r, "shutdown")
    await ask(r, "shutdown")


@scenario(generations=SINCE, controllers=True)
async def what_cannot_be_made(r: Recorder) -> None:
    for name, fields in (
        ("a/b", {}),
        ("", {}),
        ("none", {"runtime": "io.example.none.v7"}),
        ("nameless", {"runtime": ""}),
        ("odd", {"runtime": "odd"}),
    ):
        each = made(r, name, **{"spec": r.spec("x"), **fields})
        await r.sandboxes.create(sandbox=each)
        await ask(r, "create", name, sandbox=each)
        await ask(r, "status", name)
    await r.sandboxes.list()


@scenario(generations=("2",), controllers=True)
async def without_a_specification(r: Recorder) -> None:
    await r.sandboxes.create(sandbox=made(r))
    await ask(r, "create", sandbox=made(r))
    await ask(r, "start")
    await end(r)


@scenario(generations=("2",), controllers=True)
async def what_is_waited_for(r: Recorder) -> None:
    await create(r)
    async with r.meanwhile(ask(r, "wait"), ask(r, "wait"), head_start=0.3):
        await ask(r, "start")
        await ask(r, "stop")
    await ask(r, "status")
    await ask(r, "shutdown")


@scenario(generations=SINCE, controllers=True)
async def tasks(r: Recorder) -> None:
    await started(r)
    await running(r, "one")
    await running(r, "two")
    await r.tasks.list()
    await r.tasks.get(container_id="one")
    await r.tasks.list_pids(container_id="one")
    await r.end("one")
    await ask(r, "status")
    await running(r, "three")
    await r.end("two")
    await r.end("three")
    await r.tasks.list()
    await ask(r, "status")
    await end(r)


@scenario(generations=SINCE, controllers=True)
async def a_task_and_a_sandbox_of_one_name(r: Recorder) -> None:
    await started(r)
    await container(r, "s", "s")
    await r.tasks.create(container_id="s")
    await end(r)
    await r.running("t")
    await create(r, "t")
    await r.end("t")


@scenario(generations=SINCE, controllers=True)
async def tasks_that_cannot_be_made(r: Recorder) -> None:
    await started(r)
    await r.container("bad", ["/no/such"], runtime=r.sandbox_runtime, sandbox="s")
    await r.tasks.create(container_id="bad")
    await ask(r, "status")
    await running(r, "two")
    await r.end("two")
    await end(r)


@scenario(generations=SINCE, controllers=True)
async def tasks_of_one_that_was_not_made(r: Recorder) -> None:
    await r.sandboxes.create(sandbox=made(r, spec=r.spec("s")))
    await container(r, "one", "s")
    await r.tasks.create(container_id="one")


@scenario(generations=("2",), controllers=True)
async def tasks_of_one_that_nobody_knows(r: Recorder) -> None:
    await running(r, "one", "nosuch")
    await r.end("one")


@scenario(generations=("2",), controllers=True)
async def addresses_of_task_services(r: Recorder) -> None:
    await started(r)
    bundle = r.daemon.state / "io.containerd.sandbox.controller.v1.shim" / r.namespace / "s"
    address = json.loads(Path(bundle, "bootstrap.json").read_text())["address"]
    for name, given, version in (
        ("one", f"ttrpc+{address}", 3),
        ("two", address, 3),
        ("three", "ttrpc+unix:///no/such/socket", 3),
        ("four", f"odd+{address}", 3),
        ("five", f"ttrpc+{address}", 4),
    ):
        await r.container(name, sandbox="s")
        # Up to 2.2 it is among runc's options.
        options = Options(task_api_address=given, task_api_version=version)
        await r.tasks.create(container_id=name, options=wellknown.to_any(wellknown.pack(options)))
        await r.tasks.get(container_id=name)
    await r.tasks.start(container_id="one")
    await r.end("one")
    await ask(r, "status")
    # Without a sandbox they mean nothing.
    await r.container("six")
    options = Options(task_api_address="x", task_api_version=7)
    await r.tasks.create(container_id="six", options=wellknown.to_any(wellknown.pack(options)))
    await r.end("six")
    await end(r)
