"""Server reflection: a client without our protos learns the whole interface."""

from __future__ import annotations

from google.protobuf import descriptor_pb2, descriptor_pool
from grpclib.reflection.v1.reflection_grpc import ServerReflectionStub
from grpclib.reflection.v1.reflection_pb2 import ServerReflectionRequest
from harness.daemons import Taskd, client

SERVICES = {
    *(f"containerd.services.{name}.v1" for name in ("containers", "events", "introspection")),
    *(f"containerd.services.{name}.v1" for name in ("leases", "namespaces", "tasks", "version")),
    "taskd.v1",
}


async def test_every_service_can_be_looked_up(daemon: Taskd) -> None:
    async with client(daemon.address, "any") as channel:
        stub = ServerReflectionStub(channel)
        async with stub.ServerReflectionInfo.open() as stream:

            async def ask(**request: str) -> object:
                await stream.send_message(ServerReflectionRequest(**request))
                return await stream.recv_message()

            listed = await ask(list_services="")
            names = {service.name for service in listed.list_services_response.service}
            assert {name.rpartition(".")[0] for name in names} >= SERVICES
            assert "grpc.health.v1.Health" in names

            pool = descriptor_pool.DescriptorPool()
            added: set[str] = set()

            async def add(**request: str) -> None:
                answer = await ask(**request)
                for data in answer.file_descriptor_response.file_descriptor_proto:
                    file = descriptor_pb2.FileDescriptorProto.FromString(data)
                    for needed in file.dependency:
                        if needed not in added:
                            await add(file_by_filename=needed)
                    if file.name not in added:
                        added.add(file.name)
                        pool.Add(file)

            for name in sorted(names):
                if name.startswith(("containerd.", "taskd.")):
                    await add(file_containing_symbol=name)
            found = pool.FindServiceByName("containerd.services.tasks.v1.Tasks")
            assert len(found.methods) == 17
            unknown = await ask(file_containing_symbol="no.such.Thing")
            assert unknown.error_response.error_code == 5
            await stream.end()
