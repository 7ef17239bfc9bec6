"""Images: what they are called, what they say of their containers, and their file systems."""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from taskd import platforms
from taskd.client.channel import Channel, naming
from taskd.client.cleanup import whatever_happens
from taskd.client.stores import Content, Leases, Snapshots
from taskd.errors import AlreadyExists, FailedPrecondition, NotFound
from taskd.proto.containerd.services.diff.v1 import ApplyRequest, DiffStub
from taskd.proto.containerd.services.images.v1 import (
    CreateImageRequest,
    DeleteImageRequest,
    GetImageRequest,
    Image,
    ImagesStub,
    ListImagesRequest,
    UpdateImageRequest,
)
from taskd.proto.containerd.types import Descriptor

if TYPE_CHECKING:
    from taskd.client.transfer import Credentials, Progress

__all__ = ["Contents", "Images", "normalised"]

_INDEXES = (
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
)


@dataclass(frozen=True, slots=True)
class Contents:
    """What an image is for this machine."""

    config: Descriptor
    layers: tuple[Descriptor, ...]
    document: Mapping[str, Any]
    """Its configuration, as the OCI image specification has it."""

    @property
    def process(self) -> Mapping[str, Any]:
        """``Env``, ``Cmd``, ``Entrypoint``, ``User``, ``WorkingDir``, ``StopSignal``."""
        found: Mapping[str, Any] = self.document.get("config") or {}
        return found

    @property
    def chain(self) -> list[str]:
        """Of the layers, each upon the ones before: names of snapshots. Source: OCI, ChainID."""
        names: list[str] = []
        for diff in self.document.get("rootfs", {}).get("diff_ids", ()):
            if names:
                diff = f"sha256:{hashlib.sha256(f'{names[-1]} {diff}'.encode()).hexdigest()}"
            names.append(diff)
        return names


class Images:
    """The images of a namespace."""

    def __init__(self, channel: Channel, content: Content, leases: Leases) -> None:
        self._channel = channel
        self._stub = ImagesStub(channel)
        self._content = content
        self._leases = leases

    async def list(self, *filters: str) -> list[Image]:
        request = ListImagesRequest(filters=list(filters))
        found: list[Image] = (await self._stub.list(request)).images
        return found

    async def get(self, name: str) -> Image:
        """The image of this name, or of the one that Docker takes it for. Raises `NotFound`."""
        full = normalised(name)
        for each in dict.fromkeys((name, full)):
            with suppress(NotFound):
                found: Image = (await self._stub.get(GetImageRequest(name=each))).image
                return found
        known = "" if name == full else f" (nor {full})"
        raise NotFound(f'image "{name}"{known}')

    async def put(
        self, name: str, target: Descriptor, labels: Mapping[str, str] | None = None
    ) -> Image:
        """Have `name` be `target`, whatever it was before."""
        image = Image(name=name, target=target, labels=dict(labels or {}))
        try:
            made: Image = (await self._stub.create(CreateImageRequest(image=image))).image
        except AlreadyExists:
            made = (await self._stub.update(UpdateImageRequest(image=image))).image
        return made

    async def pull(
        self,
        name: str,
        *,
        credentials: Credentials | None = None,
        plain_http: bool = False,
        hosts: Path | str = "",
        progress: Callable[[Progress], object] | None = None,
    ) -> Image:
        """Have the daemon fetch an image from its registry, for ``alpine`` from Docker's.

        `credentials` are user and password, `hosts` is a folder as containerd has it for registries
        (``/etc/containerd/certs.d``); `progress` is called with each step. Raises `Unimplemented`
        where the daemon does not do that.
        """
        from taskd.client import transfer

        await transfer.pull(
            self._channel,
            normalised(name),
            credentials=credentials,
            plain_http=plain_http,
            hosts=str(hosts),
            progress=progress,
        )
        return await self.get(normalised(name))

    async def push(
        self,
        name: str,
        reference: str = "",
        *,
        credentials: Credentials | None = None,
        plain_http: bool = False,
        hosts: Path | str = "",
        progress: Callable[[Progress], object] | None = None,
    ) -> None:
        """Have the daemon store an image in a registry, under its own name or as `reference`."""
        from taskd.client import transfer

        image = await self.get(name)
        await transfer.push(
            self._channel,
            image.name,
            normalised(reference or image.name),
            credentials=credentials,
            plain_http=plain_http,
            hosts=str(hosts),
            progress=progress,
        )

    async def import_(self, archive: Path | str, name: str = "") -> Sequence[Image]:
        """The images of an archive: an OCI layout in a tar, or what ``docker save`` writes.

        `name` is for an archive that names none, or instead of the one in it. Raises
        `InvalidArgument` for another file, OSError.
        """
        from taskd.client import archives

        async with self._leases.hold():
            found = await archives.import_(self._content, Path(archive))
            if name:
                found = [(normalised(name), target) for _, target in found[:1]]
            return [await self.put(normalised(each), target) for each, target in found]

    async def export(self, archive: Path | str, *names: str) -> None:
        """Write images to an archive that Docker, containerd and `import_` can read."""
        from taskd.client import archives

        found = [await self.get(name) for name in names]
        targets = [(image.name, image.target) for image in found if image.target is not None]
        await archives.export(self._content, targets, Path(archive))

    async def remove(self, name: str, *, sync: bool = False) -> None:
        """With `sync`, what it alone has held is gone when it returns. Raises `NotFound`."""
        image = await self.get(name)
        await self._stub.delete(DeleteImageRequest(name=image.name, sync=sync))

    async def contents(self, image: Image) -> Contents:
        """What it is for this machine. Raises `NotFound` if it is for others, or not all there."""
        assert image.target is not None
        with naming("image", image.name):
            target = image.target
            document = await self._json(target.digest)
            while target.media_type in _INDEXES or "manifests" in document:
                chosen = _for_this_machine(document["manifests"])
                if chosen is None:
                    raise NotFound(f"a manifest for {_platform()}")
                target = _descriptor(chosen)
                document = await self._json(target.digest)
            config = _descriptor(document["config"])
            layers = tuple(map(_descriptor, document["layers"]))
            return Contents(config, layers, await self._json(config.digest))

    async def unpack(self, image: Image, snapshots: Snapshots) -> Contents:
        """See to it that its layers are in `snapshots`, the last under the last name of its chain.

        Raises `Unimplemented` where the daemon has no snapshots.
        """
        contents = await self.contents(image)
        if len(contents.chain) != len(contents.layers):
            raise FailedPrecondition(f'image "{image.name}": layers and diff_ids do not fit')
        parent = ""
        async with self._leases.hold():
            for name, layer in zip(contents.chain, contents.layers, strict=True):
                await self._unpack(layer, name, parent, snapshots)
                parent = name
            if parent:
                label = f"containerd.io/gc.ref.snapshot.{snapshots.name}"
                await self._content.label(contents.config.digest, {label: parent})
        return contents

    async def _unpack(
        self, layer: Descriptor, name: str, parent: str, snapshots: Snapshots
    ) -> None:
        with suppress(NotFound):
            await snapshots.stat(name)
            return
        key = f"extract-{uuid.uuid4().hex[:12]} {name}"
        mounts = await snapshots.prepare(key, parent)
        try:
            await DiffStub(self._channel).apply(ApplyRequest(diff=layer, mounts=mounts))
            await snapshots.commit(name, key)
        except BaseException as exc:
            await whatever_happens(snapshots.remove(key))
            if not isinstance(exc, AlreadyExists):  # somebody else was quicker
                raise

    async def _json(self, digest: str) -> Any:
        return json.loads(await self._content.read(digest))


def normalised(name: str) -> str:
    """As Docker has it: ``alpine`` is ``docker.io/library/alpine:latest``."""
    first, slash, _ = name.partition("/")
    if not slash:
        name = f"docker.io/library/{name}"
    elif not ("." in first or ":" in first or first == "localhost"):
        name = f"docker.io/{name}"
    path = name.rpartition("/")[2]
    return name if ":" in path or "@" in path else f"{name}:latest"


def _platform() -> str:
    return "/".join(platforms.here())


def _for_this_machine(manifests: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    wanted = _platform()
    for each in manifests:
        about = each.get("platform")
        if about is None or f"{about.get('os')}/{about.get('architecture')}" == wanted:
            return each
    return None


def _descriptor(document: Mapping[str, Any]) -> Descriptor:
    return Descriptor(
        media_type=document.get("mediaType", ""),
        digest=document["digest"],
        size=document.get("size", 0),
        annotations=document.get("annotations") or {},
    )
