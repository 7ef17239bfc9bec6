"""Sandboxes: their records in the store, which containerd has since 1.7."""

from __future__ import annotations

from typing import Any

from parity.recorder import RUNC, Recorder
from parity.scenarios import scenario
from parity.scenarios.garbage import REFERS, A, B, blob

from taskd import digests
from taskd.proto.containerd.types import Sandbox, SandboxRuntime
from taskd.proto.google import protobuf

SINCE = ("1.7", "2")


def sandbox(name: str = "s", *, runtime: str = RUNC, options: Any = None, **fields: Any) -> Sandbox:
    named = SandboxRuntime(name=runtime, options=options)
    return Sandbox(**{"sandbox_id": name, "runtime": named, **fields})


def value(text: str) -> Any:
    return protobuf.Any(type_url="x.Y", value=text.encode())


@scenario(alone=True, generations=SINCE)
async def create_nothing(r: Recorder) -> None:
    await r.sandboxes.create()


@scenario(alone=True, generations=SINCE)
async def update_nothing(r: Recorder) -> None:
    await r.sandboxes.update()


@scenario(alone=True, generations=SINCE)
async def create_without_a_runtime(r: Recorder) -> None:
    await r.sandboxes.create(sandbox=Sandbox(sandbox_id="x"))


@scenario(generations=SINCE)
async def before_there_is_one(r: Recorder) -> None:
    """There are other words where the namespace never had a sandbox."""
    for _ in range(2):
        await r.sandboxes.get(sandbox_id="s")
        await r.sandboxes.list()
        await r.sandboxes.update(sandbox=sandbox())
        await r.sandboxes.delete(sandbox_id="s")
        await r.leases.create(id="l")
    await r.sandboxes.create(sandbox=sandbox("a/b"))
    await r.sandboxes.get(sandbox_id="s")
    await r.sandboxes.create(sandbox=sandbox())
    await r.sandboxes.delete(sandbox_id="s")
    await r.sandboxes.get(sandbox_id="s")
    await r.sandboxes.list()
    await r.sandboxes.update(sandbox=sandbox())
    await r.sandboxes.delete(sandbox_id="s")
    await r.leases.delete(id="l")


@scenario(generations=SINCE)
async def records(r: Recorder) -> None:
    at = protobuf.Timestamp(seconds=5)
    await r.sandboxes.create(
        sandbox=sandbox(
            options=value("options"),
            spec=value("spec"),
            labels={"a": "1", "b": ""},
            extensions={"e": value("e"), "f": protobuf.Any()},
            created_at=at,
            updated_at=at,
            sandboxer="shim",
        )
    )
    await r.sandboxes.get(sandbox_id="s")
    await r.sandboxes.create(sandbox=sandbox())
    await r.sandboxes.create(sandbox=sandbox("", labels={"": "1"}))
    for bad in (
        sandbox(""),
        sandbox("a/b"),
        sandbox("x" * 77),
        sandbox("x", labels={"": "1"}),
        sandbox("x", extensions={"": value("e")}),
        sandbox("x", labels={"": "1"}, extensions={"": value("e")}),
        sandbox("s", labels={"": "1"}),
    ):
        await r.sandboxes.create(sandbox=bad)
        await r.sandboxes.update(sandbox=bad)
    await r.sandboxes.get(sandbox_id="")
    await r.sandboxes.create(sandbox=sandbox("bare", runtime=""))
    await r.sandboxes.create(sandbox=sandbox("long", labels={"k": "x" * 5000}))
    await r.sandboxes.list()
    async with r.within("other-" + r.namespace) as other:
        await other.sandboxes.get(sandbox_id="s")
        await other.sandboxes.list()
    async with r.within(None) as nobody:
        await nobody.sandboxes.get(sandbox_id="s")
        await nobody.sandboxes.create(sandbox=sandbox())
    for name in ("s", "s", "", "bare", "long"):
        await r.sandboxes.delete(sandbox_id=name)
    await r.sandboxes.list()


@scenario(generations=SINCE)
async def filters(r: Recorder) -> None:
    await r.sandboxes.create(sandbox=sandbox("one", labels={"a": "1"}))
    await r.sandboxes.create(sandbox=sandbox("two", labels={"a": "2", "x.y": "z"}))
    for chosen in (
        ["id==one"],
        ["id~=^t", "id==one"],
        ["labels.a==2"],
        ["labels.a"],
        ['labels."x.y"'],
        ["labels.x.y==z"],
        ["labels"],
        ["id"],
        ["runtime.name"],
        ["sandboxer"],
        [""],
        ["id=="],
        ["id==one,"],
    ):
        await r.sandboxes.list(filters=chosen)


@scenario(generations=SINCE)
async def updates(r: Recorder) -> None:
    await r.sandboxes.create(
        sandbox=sandbox(
            options=value("options"),
            spec=value("spec"),
            labels={"a": "1", "b": "2"},
            extensions={"e": value("e"), "f": value("f")},
            sandboxer="shim",
        )
    )

    async def update(each: Sandbox, *paths: str) -> None:
        await r.sandboxes.update(sandbox=each, fields=list(paths))
        await r.sandboxes.get(sandbox_id="s")

    new = sandbox(
        runtime="other",
        options=value("new"),
        spec=value("new"),
        labels={"a": "3", "c": "4", "e": ""},
        extensions={"e": value("new"), "g": value("g")},
        sandboxer="other",
    )
    await update(sandbox("missing"))
    await update(sandbox("missing"), "bad")
    await update(new, "labels.a", "labels.b")
    await update(new, "extensions.e", "extensions.f")
    await update(new, "labels")
    await update(new, "extensions")
    for path in ("spec.x", "sandboxer", "id", "labels,extensions", "created_at", ""):
        await update(new, path)
    await update(new, "labels", "sandboxer")
    await update(new)
    await update(sandbox(labels={"": "x"}), "labels")
    await update(sandbox(labels={"": "x"}), "labels.")
    await update(sandbox(extensions={"": value("x")}), "extensions")
    await update(new, "spec")
    await update(sandbox(), "spec")
    await update(new, "runtime")
    await update(sandbox(), "runtime")
    await update(sandbox(labels={"z": "1"}))


@scenario(alone=True, generations=("2",))
async def go_with_their_namespace(r: Recorder) -> None:
    """1.7 has no namespace where there is nothing but sandboxes."""
    await r.sandboxes.create(sandbox=sandbox())
    await r.namespaces.list()
    await r.namespaces.delete(name=r.namespace)
    await r.namespaces.list()
    await r.sandboxes.get(sandbox_id="s")
    await r.sandboxes.create(sandbox=sandbox())
    await r.sandboxes.list()


@scenario(alone=True, generations=("2",))
async def keep_what_their_labels_refer_to(r: Recorder) -> None:
    """A sandbox is never garbage itself. In 1.7 it keeps nothing."""
    await r.leases.create(id="l")
    await blob(r, A, "l")
    await blob(r, B, "l")
    labels = {f"{REFERS}.a": digests.of(A)}
    await r.sandboxes.create(sandbox=sandbox(labels=labels))
    await r.leases.delete(id="l", sync=True)
    await r.content.list()
    await r.sandboxes.delete(sandbox_id="s")
    await r.leases.create(id="l")
    await r.leases.delete(id="l", sync=True)
    await r.content.list()
    await r.sandboxes.list()
