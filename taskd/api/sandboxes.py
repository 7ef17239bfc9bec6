"""``containerd.services.sandbox.v1``; sources: ``services/sandbox/store_service.go`` and
``controller_service.go``, ``sandbox/helpers.go``.
"""

from __future__ import annotations

import time
from collections.abc import Mapping

from taskd.api import request
from taskd.api.mounts import mounts
from taskd.errors import NotFound, Unknown
from taskd.metadata import Sandbox, SandboxStore
from taskd.proto.containerd import types
from taskd.proto.containerd.services.sandbox import v1
from taskd.proto.google.protobuf import Any
from taskd.sandboxes import Controller, State, Wanted
from taskd.types import TypedValue
from taskd.wellknown import GO_ZERO, from_any, timestamp, to_any

__all__ = ["Controllers", "Sandboxes"]


class Sandboxes(v1.StoreBase):
    """What is known of sandboxes; no events tell of it, as in containerd."""

    def __init__(self, store: SandboxStore) -> None:
        self._store = store

    async def create(self, message: v1.StoreCreateRequest) -> v1.StoreCreateResponse:
        sandbox = await self._store.create(request.namespace(), _from_message(message.sandbox))
        return v1.StoreCreateResponse(sandbox=_to_message(sandbox))

    async def update(self, message: v1.StoreUpdateRequest) -> v1.StoreUpdateResponse:
        sandbox = _from_message(message.sandbox)
        sandbox = await self._store.update(request.namespace(), sandbox, message.fields)
        return v1.StoreUpdateResponse(sandbox=_to_message(sandbox))

    async def delete(self, message: v1.StoreDeleteRequest) -> v1.StoreDeleteResponse:
        await self._store.delete(request.namespace(), message.sandbox_id)
        return v1.StoreDeleteResponse()

    async def list(self, message: v1.StoreListRequest) -> v1.StoreListResponse:
        sandboxes = await self._store.list(request.namespace(), message.filters)
        return v1.StoreListResponse(list=[_to_message(each) for each in sandboxes])

    async def get(self, message: v1.StoreGetRequest) -> v1.StoreGetResponse:
        sandbox = self._store.get(request.namespace(), message.sandbox_id)
        return v1.StoreGetResponse(sandbox=_to_message(sandbox))


class Controllers(v1.ControllerBase):
    """Sandboxes themselves, by the name of what makes them.

    containerd 1.7, whose clients send no name, has one controller: it is the first of ours.
    """

    def __init__(self, store: SandboxStore, controllers: Mapping[str, Controller]) -> None:
        self._store = store
        self._controllers = controllers

    def _get(self, name: str) -> Controller:
        if not name:
            return next(iter(self._controllers.values()))
        if (found := self._controllers.get(name)) is None:
            words = f"not found: failed to get sandbox controller by {name}"
            raise NotFound(words, verbatim=True)
        return found

    async def create(self, message: v1.ControllerCreateRequest) -> v1.ControllerCreateResponse:
        """The sandbox is as the request has it, or else as the store."""
        controller, namespace = self._get(message.sandboxer), request.namespace()
        request.subject.set(message.sandbox_id)
        if message.sandbox is not None:
            sandbox = _from_message(message.sandbox)
        else:
            try:
                sandbox = self._store.get(namespace, message.sandbox_id)
            except NotFound as exc:
                raise exc.within("failed to query sandbox metadata from store") from None
        wanted = Wanted(
            from_any(message.options),
            mounts(message.rootfs),
            message.netns_path,
            message.annotations,
        )
        await controller.create(namespace, sandbox, wanted)
        return v1.ControllerCreateResponse(sandbox_id=message.sandbox_id)

    async def start(self, message: v1.ControllerStartRequest) -> v1.ControllerStartResponse:
        request.subject.set(message.sandbox_id)
        found = await self._get(message.sandboxer).start(request.namespace(), message.sandbox_id)
        return v1.ControllerStartResponse(
            sandbox_id=message.sandbox_id, pid=found.pid, created_at=timestamp(found.created_at)
        )

    async def platform(
        self, message: v1.ControllerPlatformRequest
    ) -> v1.ControllerPlatformResponse:
        controller = self._get(message.sandboxer)
        found = await controller.platform(request.namespace(), message.sandbox_id)
        system, architecture, variant = found
        platform = types.Platform(os=system, architecture=architecture, variant=variant)
        return v1.ControllerPlatformResponse(platform=platform)

    async def stop(self, message: v1.ControllerStopRequest) -> v1.ControllerStopResponse:
        controller = self._get(message.sandboxer)
        await controller.stop(request.namespace(), message.sandbox_id, message.timeout_secs)
        return v1.ControllerStopResponse()

    async def wait(self, message: v1.ControllerWaitRequest) -> v1.ControllerWaitResponse:
        found = await self._get(message.sandboxer).wait(request.namespace(), message.sandbox_id)
        return v1.ControllerWaitResponse(
            exit_status=found.status, exited_at=timestamp(found.exited_at)
        )

    async def status(self, message: v1.ControllerStatusRequest) -> v1.ControllerStatusResponse:
        """One that is not there has exited just now."""
        controller = self._get(message.sandboxer)
        found = await controller.status(
            request.namespace(), message.sandbox_id, verbose=message.verbose
        )
        if found is None:
            now = time.time_ns()
            found = State(message.sandbox_id, created_at=GO_ZERO, exited_at=now)
        return v1.ControllerStatusResponse(
            sandbox_id=found.id,
            pid=found.pid,
            state=found.state,
            info=dict(found.info),
            created_at=timestamp(found.created_at),
            exited_at=timestamp(found.exited_at),
            extra=to_any(found.extra) or Any(),
        )

    async def shutdown(
        self, message: v1.ControllerShutdownRequest
    ) -> v1.ControllerShutdownResponse:
        controller = self._get(message.sandboxer)
        await controller.shutdown(request.namespace(), message.sandbox_id)
        return v1.ControllerShutdownResponse()

    async def metrics(self, message: v1.ControllerMetricsRequest) -> v1.ControllerMetricsResponse:
        controller = self._get(message.sandboxer)
        found = await controller.metrics(request.namespace(), message.sandbox_id)
        if found is None:
            return v1.ControllerMetricsResponse()
        at = timestamp(found.collected_at)
        metric = types.Metric(timestamp=at, id=found.id, data=to_any(found.data))
        return v1.ControllerMetricsResponse(metrics=metric)

    async def update(self, message: v1.ControllerUpdateRequest) -> v1.ControllerUpdateResponse:
        """Nothing is done, as in containerd: shims have no such call."""
        self._get(message.sandboxer)
        if message.sandbox is None:
            raise Unknown("sandbox can not be nil")
        return v1.ControllerUpdateResponse()


def _to_message(sandbox: Sandbox) -> types.Sandbox:
    return types.Sandbox(
        sandbox_id=sandbox.id,
        runtime=types.SandboxRuntime(
            name=sandbox.runtime_name, options=to_any(sandbox.runtime_options)
        ),
        spec=to_any(sandbox.spec),
        labels=dict(sandbox.labels),
        created_at=timestamp(sandbox.created_at),
        updated_at=timestamp(sandbox.updated_at),
        extensions={
            name: Any(type_url=extension.type_url, value=extension.value)
            for name, extension in sandbox.extensions.items()
        },
        sandboxer=sandbox.sandboxer,
    )


def _from_message(message: types.Sandbox | None) -> Sandbox:
    """The record that a client sends; the times are not its to say."""
    if message is None:
        return Sandbox("")
    runtime = message.runtime or types.SandboxRuntime()
    return Sandbox(
        id=message.sandbox_id,
        runtime_name=runtime.name,
        runtime_options=from_any(runtime.options),
        spec=from_any(message.spec),
        labels=message.labels,
        extensions={
            name: TypedValue(extension.type_url, extension.value)
            for name, extension in message.extensions.items()
        },
        sandboxer=message.sandboxer,
    )
