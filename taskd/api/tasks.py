"""``containerd.services.tasks.v1.Tasks``."""

from __future__ import annotations

from taskd.api.descriptors import descriptor, descriptor_message
from taskd.api.mounts import mounts
from taskd.api.request import lease, namespace, subject
from taskd.proto.containerd.services.tasks.v1 import (
    CheckpointTaskRequest,
    CheckpointTaskResponse,
    CloseIoRequest,
    CreateTaskRequest,
    CreateTaskResponse,
    DeleteProcessRequest,
    DeleteResponse,
    DeleteTaskRequest,
    ExecProcessRequest,
    GetRequest,
    GetResponse,
    KillRequest,
    ListPidsRequest,
    ListPidsResponse,
    ListTasksRequest,
    ListTasksResponse,
    MetricsRequest,
    MetricsResponse,
    PauseTaskRequest,
    ResizePtyRequest,
    ResumeTaskRequest,
    StartRequest,
    StartResponse,
    TasksBase,
    UpdateTaskRequest,
    WaitRequest,
    WaitResponse,
)
from taskd.proto.containerd.types import Metric as MetricMessage
from taskd.proto.containerd.v1.types import Process, ProcessInfo
from taskd.proto.containerd.v1.types import Status as StatusMessage
from taskd.proto.google.protobuf import Empty
from taskd.runtime.types import Stdio, TaskState
from taskd.tasks import Endpoint, TaskService
from taskd.wellknown import from_any, timestamp, to_any

__all__ = ["Tasks"]


class Tasks(TasksBase):
    def __init__(self, tasks: TaskService) -> None:
        self._tasks = tasks

    async def create(self, message: CreateTaskRequest) -> CreateTaskResponse:
        subject.set(message.container_id)
        pid = await self._tasks.create(
            namespace(),
            message.container_id,
            rootfs=mounts(message.rootfs),
            stdio=Stdio(message.stdin, message.stdout, message.stderr, message.terminal),
            options=from_any(message.options),
            runtime_path=message.runtime_path,
            checkpoint=descriptor(message.checkpoint) if message.checkpoint else None,
            endpoint=Endpoint(message.task_api_address, message.task_api_version),
        )
        return CreateTaskResponse(container_id=message.container_id, pid=pid)

    async def start(self, message: StartRequest) -> StartResponse:
        subject.set(" ".join(filter(None, (message.container_id, message.exec_id))))
        pid = await self._tasks.start(namespace(), message.container_id, message.exec_id)
        return StartResponse(pid=pid)

    async def delete(self, message: DeleteTaskRequest) -> DeleteResponse:
        subject.set(message.container_id)
        found = await self._tasks.delete(namespace(), message.container_id)
        return DeleteResponse(
            pid=found.pid, exit_status=found.status, exited_at=timestamp(found.exited_at)
        )

    async def delete_process(self, message: DeleteProcessRequest) -> DeleteResponse:
        found = await self._tasks.delete_process(namespace(), message.container_id, message.exec_id)
        return DeleteResponse(
            id=message.exec_id,
            pid=found.pid,
            exit_status=found.status,
            exited_at=timestamp(found.exited_at),
        )

    async def get(self, message: GetRequest) -> GetResponse:
        state = await self._tasks.get(namespace(), message.container_id, message.exec_id)
        return GetResponse(process=_process(message.exec_id or message.container_id, state))

    async def list(self, message: ListTasksRequest) -> ListTasksResponse:
        states = await self._tasks.states(namespace())
        return ListTasksResponse(tasks=[_process(id, state) for id, state in states])  # noqa: A001

    async def kill(self, message: KillRequest) -> Empty:
        await self._tasks.kill(
            namespace(), message.container_id, message.exec_id, message.signal, message.all
        )
        return Empty()

    async def exec(self, message: ExecProcessRequest) -> Empty:
        subject.set(f"{message.container_id} {message.exec_id}")
        await self._tasks.exec(
            namespace(),
            message.container_id,
            message.exec_id,
            from_any(message.spec),
            Stdio(message.stdin, message.stdout, message.stderr, message.terminal),
        )
        return Empty()

    async def resize_pty(self, message: ResizePtyRequest) -> Empty:
        await self._tasks.resize_pty(
            namespace(), message.container_id, message.exec_id, message.width, message.height
        )
        return Empty()

    async def close_io(self, message: CloseIoRequest) -> Empty:
        await self._tasks.close_io(
            namespace(), message.container_id, message.exec_id, stdin=message.stdin
        )
        return Empty()

    async def pause(self, message: PauseTaskRequest) -> Empty:
        await self._tasks.pause(namespace(), message.container_id)
        return Empty()

    async def resume(self, message: ResumeTaskRequest) -> Empty:
        await self._tasks.resume(namespace(), message.container_id)
        return Empty()

    async def list_pids(self, message: ListPidsRequest) -> ListPidsResponse:
        processes = await self._tasks.pids(namespace(), message.container_id)
        return ListPidsResponse(
            processes=[
                ProcessInfo(pid=process.pid, info=to_any(process.info)) for process in processes
            ]
        )

    async def checkpoint(self, message: CheckpointTaskRequest) -> CheckpointTaskResponse:
        stored = await self._tasks.checkpoint(
            namespace(), message.container_id, from_any(message.options), lease()
        )
        return CheckpointTaskResponse(
            descriptors=[descriptor_message(descriptor) for descriptor in stored]
        )

    async def update(self, message: UpdateTaskRequest) -> Empty:
        await self._tasks.update(
            namespace(), message.container_id, from_any(message.resources), message.annotations
        )
        return Empty()

    async def metrics(self, message: MetricsRequest) -> MetricsResponse:
        metrics = await self._tasks.metrics(namespace(), message.filters)
        return MetricsResponse(
            metrics=[
                MetricMessage(
                    timestamp=timestamp(metric.collected_at), id=metric.id, data=to_any(metric.data)
                )
                for metric in metrics
            ]
        )

    async def wait(self, message: WaitRequest) -> WaitResponse:
        found = await self._tasks.wait(namespace(), message.container_id, message.exec_id)
        return WaitResponse(exit_status=found.status, exited_at=timestamp(found.exited_at))


def _process(id: str, state: TaskState) -> Process:  # noqa: A002
    stdio = state.stdio
    return Process(
        id=id,
        pid=state.pid,
        status=StatusMessage(state.status),
        stdin=stdio.stdin,
        stdout=stdio.stdout,
        stderr=stdio.stderr,
        terminal=stdio.terminal,
        exit_status=state.exit_status,
        exited_at=timestamp(state.exited_at),
    )
