"""`taskd.client`: images, content, leases and namespaces, on taskd and on each containerd."""

from __future__ import annotations

from pathlib import Path

import pytest
from harness import images
from harness.servers import Server

from taskd.client import Client
from taskd.client.images import normalised
from taskd.errors import FailedPrecondition, NotFound, Unimplemented


async def test_a_container_of_an_image(client: Client, server: Server, rootfs: Path) -> None:
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
    try:
        async with client.run("busy", env={"B": "own"}) as container:
            done = await container.communicate()
            assert container.image == "docker.io/library/busy:latest"
            assert done.text == "second layer\n7\n/tmp\nimage own\n", done
        async with client.run("busy", ["echo x > /x; cat /x"], user="0") as container:
            assert (await container.communicate()).text == "x\n"
    except Unimplemented as exc:
        # The daemon's, and not the client's.
        assert server.is_taskd, exc
        assert "unknown service containerd.services.diff.v1.Diff" in str(exc)
    await client.images.remove("busy", sync=True)
    with pytest.raises(NotFound, match="busy"):
        await client.images.get("busy")


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
