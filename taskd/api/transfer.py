"""``containerd.services.transfer.v1.Transfer``; source: ``services/transfer/service.go``."""

from __future__ import annotations

from pathlib import Path
from typing import Any as AnyType

from taskd.api import request
from taskd.codec import MalformedMessage, decode
from taskd.errors import NotFound, Unimplemented, Unknown
from taskd.proto.containerd.services.transfer.v1 import TransferBase, TransferRequest
from taskd.proto.containerd.types.transfer import (
    HttpDebug,
    ImageExportStream,
    ImageImportStream,
    ImageStore,
    OciRegistry,
    RegistryResolver,
)
from taskd.proto.google.protobuf import Any, Empty
from taskd.proto.message_pool import default_message_pool
from taskd.transfer.exporting import Options
from taskd.transfer.progress import Progress
from taskd.transfer.service import Caller, ExportStream, ImportStream, RegistryImage, Transfers
from taskd.transfer.store import Store, platform
from taskd.transfer.streams import Stream, Streams

__all__ = ["Transfer"]

_HOST = "type.googleapis.com/"


class Transfer(TransferBase):
    def __init__(self, transfers: Transfers, streams: Streams) -> None:
        self._transfers = transfers
        self._streams = streams

    async def transfer(self, message: TransferRequest) -> Empty:
        """What both ends are says what is done; any other two of them cannot be connected."""
        name = message.options.progress_stream if message.options else ""
        stream = self._streams.get(request.namespace_if_any(), name) if name else None
        try:
            source, target = message.source or Any(), message.destination or Any()
            try:
                await self._transfer(source, target, Progress(stream))
            except Unimplemented:
                raise Unimplemented(
                    f"method Transfer not implemented for {source.type_url} to {target.type_url}",
                    verbatim=True,
                ) from None
        finally:
            if stream is not None:
                stream.close()
        return Empty()

    async def _transfer(self, source: Any, target: Any, progress: Progress) -> None:
        ends = self._end(source), self._end(target)
        match ends:
            case ImportStream() as archive, ExportStream() as sent:
                await self._transfers.echo(archive, sent)
                return
        caller = Caller(request.namespace(), request.lease(), progress)
        match ends:
            case RegistryImage() as image, Store() as store:
                await self._transfers.pull(image, store, caller)
            case Store() as store, RegistryImage() as image:
                await self._transfers.push(store, image, caller)
            case ImportStream() as archive, Store() as store:
                await self._transfers.import_archive(archive, store, caller)
            case Store() as store, ExportStream() as sent:
                await self._transfers.export_archive(store, sent, caller)
            case Store() as store, Store() as other:
                await self._transfers.tag(store, other, caller)
            case _:
                raise Unimplemented

    def _end(self, value: Any) -> object:
        """What a transfer is from or to; raises `Unknown` for what nobody knows, `NotFound`."""
        message = _decoded(value)
        if value.type_url.startswith(_HOST):
            return message  # containerd knows them without a host alone
        namespace = request.namespace_if_any()
        match message:
            case ImageStore():
                return Store.from_message(message)
            case OciRegistry():
                return self._registry(namespace, message)
            case ImageImportStream():
                stream = self._streams.get(namespace, message.stream)
                return ImportStream(stream, message.media_type, message.force_compress)
            case ImageExportStream():
                options = Options(
                    tuple(map(platform, message.platforms)),
                    message.all_platforms,
                    message.skip_compatibility_manifest,
                    message.skip_non_distributable,
                )
                return ExportStream(self._streams.get(namespace, message.stream), options)
        return message

    def _registry(self, namespace: str, message: OciRegistry) -> RegistryImage:
        resolver = message.resolver or RegistryResolver()
        stream = resolver.auth_stream
        return RegistryImage(
            message.reference,
            Path(resolver.host_dir) if resolver.host_dir else None,
            resolver.default_scheme,
            resolver.headers,
            self._streams.get(namespace, stream) if stream else None,
            resolver.http_debug in (HttpDebug.DEBUG, HttpDebug.BOTH),
            resolver.http_debug in (HttpDebug.TRACE, HttpDebug.BOTH),
            self._logs(namespace, resolver),
        )

    def _logs(self, namespace: str, resolver: RegistryResolver) -> Stream | None:
        if not resolver.logs_stream or resolver.http_debug is HttpDebug.DISABLED:
            return None
        try:
            return self._streams.get(namespace, resolver.logs_stream)
        except NotFound as exc:
            raise exc.within("failed to get stream for HTTP debug logs") from None


def _decoded(value: Any) -> AnyType:
    kind = default_message_pool.url_to_type.get(f"{_HOST}{value.type_url.removeprefix(_HOST)}")
    if kind is None:
        raise Unknown(f"type with url {value.type_url}: not found")
    try:
        return decode(kind, value.value)
    except MalformedMessage as exc:
        raise Unknown(str(exc)) from None
