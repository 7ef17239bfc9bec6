"""`taskd.client`: images, content, leases and namespaces, on taskd and on each containerd."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from harness import images
from harness.registry import PASSWORD, USER, Image, Registry, busybox_layers
from harness.servers import Server

from taskd.client import Client
from taskd.client.images import normalised
from taskd.client.transfer import Progress
from taskd.errors import (
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    TaskdError,
    Unimplemented,
)


async def test_a_container_of_an_image(client: Client, rootfs: Path) -> None:
    await images.put(
        client,
        "docker.io/library/busy:latest",
        rootfs,
        Env=["PATH=/bin", "A=image", "B=image"],
        Entrypoint=["/bin/sh", "-c"],
        Cmd=["cat /second; id -u; pwd; echo $A $B"],
        WorkingDir="/tmp",
        User="7:8",
    )
    async with client.run("busy", env={"B": "own"}) as container:
        done = await container.communicate()
        assert container.image == "docker.io/library/busy:latest"
        assert done.text == "second layer\n7\n/tmp\nimage own\n", done
    async with client.run("busy", ["echo x > /x; cat /x"], user="0") as container:
        assert (await container.communicate()).text == "x\n"
    await client.images.remove("busy", sync=True)
    with pytest.raises(NotFound, match="busy"):
        await client.images.get("busy")


async def test_one_that_is_removed_when_it_has_ended(
    client: Client, server: Server, rootfs: Path
) -> None:
    await images.put(client, "docker.io/library/busy:latest", rootfs)
    made = client.run("busy", ["/bin/sh", "-c", "read x; exit 3"], stdin=True, remove=True)
    if server.is_taskd:
        async with client.events('topic=="/containers/delete"') as events:
            container = await made
            await container.stdin.aclose()
            assert (await anext(aiter(events))).container_id == container.id
        assert await client.list() == []
        found = [each.name for each in await client.snapshots().list()]
        assert container.id not in found
        # Who did not wait is told by the journal.
        assert (await container.wait()).code == 3
        with pytest.raises(NotFound):
            await container.state()
    else:
        with pytest.raises(Unimplemented, match="it is no taskd"):
            await made
    await client.images.remove("busy", sync=True)


async def test_archives(client: Client, rootfs: Path, tmp_path: Path) -> None:
    await images.put(client, "docker.io/library/busy:latest", rootfs, Cmd=["/bin/cat", "/second"])
    await client.images.export(tmp_path / "tar", "busy")
    await client.images.remove("busy", sync=True)
    (image,) = await client.images.import_(tmp_path / "tar")
    assert image.name == "docker.io/library/busy:latest"
    (other,) = await client.images.import_(tmp_path / "tar", "quay.io/other:1")
    assert other.target == image.target
    async with client.run("quay.io/other:1") as container:
        assert (await container.communicate()).text == "second layer\n"
    for each in (image, other):
        await client.images.remove(each.name, sync=True)
    with pytest.raises(InvalidArgument, match="no archive of images|could not be opened"):
        await client.images.import_(rootfs / "bin/busybox")


async def test_an_archive_as_docker_wrote_it(client: Client, rootfs: Path, tmp_path: Path) -> None:
    images.docker_archive(tmp_path / "tar", "busy:old", rootfs, Cmd=["/bin/cat", "/second"])
    (image,) = await client.images.import_(tmp_path / "tar")
    assert image.name == "docker.io/library/busy:old"
    async with client.run("busy:old") as container:
        assert (await container.communicate()).text == "second layer\n"
    await client.images.remove("busy:old", sync=True)


@pytest.mark.skipif("TASKD_VM" in os.environ, reason="there is no docker-registry")
async def test_a_registry(client: Client, server: Server, tmp_path: Path) -> None:
    with Registry(tmp_path, tls=True, password=True) as registry:
        registry.put(Image(busybox_layers(), ["/bin/cat", "/etc/motd"]), "library/busy:latest")
        how: Any = {"credentials": (USER, PASSWORD), "hosts": registry.hosts_folder()}
        name = registry.name("library/busy:latest")
        told: list[Progress] = []
        generation = server.generation.name if server.generation else ""
        if generation == "1.6":
            with pytest.raises(Unimplemented, match="since 1.7"):
                await client.images.pull(name, progress=told.append, **how)
            return
        if generation == "1.7":  # it does not let clients say whom to trust, nor use plain HTTP
            with pytest.raises(TaskdError, match="unknown authority"):
                await client.images.pull(name, progress=told.append, **how)
            return
        with pytest.raises(TaskdError, match="401|[Uu]nauthorized|authorization"):
            await client.images.pull(name, hosts=registry.hosts_folder())
        image = await client.images.pull(name, progress=told.append, **how)
        assert {each.event for each in told} >= {"fetching image content", "complete"}
        async with client.run(image.name) as container:
            assert (await container.communicate()).text == "hello from a layer\n"
        await client.images.push(name, registry.name("other:2"), **how)
        await client.images.remove(name, sync=True)
        other = await client.images.pull(registry.name("other:2"), **how)
        assert other.target is not None
        assert image.target is not None
        assert other.target.digest == image.target.digest
        with pytest.raises(TaskdError, match="nosuch"):
            await client.images.pull(registry.name("nosuch"), progress=told.append, **how)
        await client.images.remove(other.name, sync=True)


async def test_content(client: Client) -> None:
    data = bytes(range(256)) * 10_000
    async with client.leases.hold() as lease:
        assert [each.id for each in await client.leases.list()] == [lease]
        digest = await client.content.write(data, labels={"a": "b"})
        assert await client.content.write(data, labels={"c": "d"}) == digest
        assert await client.content.read(digest) == data
        info = await client.content.info(digest)
        assert (info.size, info.labels) == (len(data), {"a": "b", "c": "d"})
        with pytest.raises(FailedPrecondition, match="digest"):
            await client.content.write(b"x", digest=digest.replace(digest[-4:], "0000"))
        assert [each.digest for each in await client.content.list("labels.a==b")] == [digest]
        await client.content.delete(digest)
    with pytest.raises(NotFound, match=digest):
        await client.content.read(digest)
    assert not await client.leases.list()


async def test_namespaces(client: Client) -> None:
    name = f"{client.namespace}-n"
    await client.namespaces.create(name, {"a": "b"})
    assert {"a": "b"} in [
        each.labels for each in await client.namespaces.list() if each.name == name
    ]
    await client.namespaces.delete(name)
    with pytest.raises(NotFound, match=name):
        await client.namespaces.delete(name)


@pytest.mark.parametrize(
    ("name", "full"),
    [
        ("alpine", "docker.io/library/alpine:latest"),
        ("alpine:3", "docker.io/library/alpine:3"),
        ("a/b", "docker.io/a/b:latest"),
        ("quay.io/a/b:1", "quay.io/a/b:1"),
        ("localhost:5000/a", "localhost:5000/a:latest"),
        ("a@sha256:00", "docker.io/library/a@sha256:00"),
    ],
)
def test_names(name: str, full: str) -> None:
    assert normalised(name) == full
