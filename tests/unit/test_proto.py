"""The generated messages: up to date, lossless, and the same on the wire as Google's."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from pathlib import Path
from typing import Any

import betterproto2
import betterproto2.grpclib
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import DecodeError, Message
from hypothesis import given
from hypothesis import strategies as st

import taskd.message
import taskd.proto
from taskd import codec
from taskd.proto.containerd.services.tasks.v1 import GetResponse, ListTasksResponse, TasksStub
from taskd.proto.containerd.task.v2 import StateResponse
from taskd.proto.containerd.v1.types import Process
from taskd.proto.google.protobuf import Timestamp
from taskd.proto.message_pool import default_message_pool

GENERATED = Path(taskd.proto.__file__).parent
ROOT = GENERATED.parents[1]
GO_ZERO = Timestamp(seconds=-62135596800)


def test_the_generated_code_is_not_stale() -> None:
    script = GENERATED.parents[1] / "protos/generate.py"
    done = subprocess.run([sys.executable, str(script), "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("time", [GO_ZERO, Timestamp(seconds=1, nanos=123456789)])
def test_times_keep_what_datetime_would_lose(time: Timestamp) -> None:
    state = StateResponse(exited_at=time)
    assert StateResponse.parse(bytes(state)).exited_at == time
    got = GetResponse.parse(bytes(GetResponse(process=Process(exited_at=time))))
    assert got.process is not None
    assert got.process.exited_at == time
    assert StateResponse.parse(b"").exited_at is None


def test_unknown_fields_pass_through() -> None:
    data = b"\x0a\x03one\xfa\x07\x04more"
    assert bytes(StateResponse.parse(data)) == data


def test_a_message_is_made_once_whoever_uses_it_first() -> None:
    """It becomes a dataclass when it is first used, in whichever thread."""
    threads = 8
    together = threading.Barrier(threads)

    class Fresh(taskd.message.Message):
        name: str = betterproto2.field(1, betterproto2.TYPE_STRING)
        numbers: list[int] = betterproto2.field(2, betterproto2.TYPE_INT32, repeated=True)

    def use(number: int) -> bytes:
        together.wait()
        return bytes(Fresh("it", numbers=[number]))

    with ThreadPoolExecutor(threads) as pool:
        made = list(pool.map(use, range(threads)))
    assert made == [b"\x0a\x02it\x12\x01" + bytes([number]) for number in range(threads)]


@pytest.mark.parametrize(
    "module", ["containerd.services.tasks.v1", "containerd.task.v2", "taskd.v1"]
)
def test_whoever_needs_messages_alone_does_not_load_grpclib(module: str) -> None:
    """A shim's start is mostly imports."""
    source = (
        f"import sys, taskd.proto.{module}, taskd.shim\n"
        "print(*({'grpclib', 'h2', 'hpack', 'multidict'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True)
    assert (done.stdout.strip(), done.stderr) == ("", "")


def test_a_stub_is_betterproto2s_when_it_is_made() -> None:
    channel: Any = object()
    stub = TasksStub(channel, timeout=3)
    assert isinstance(stub, betterproto2.grpclib.ServiceStub)
    assert (stub.channel, stub.timeout) == (channel, 3)
    assert type(TasksStub(channel)) is type(stub)
    assert type(type(stub)(channel)) is type(stub)


def test_what_a_message_consists_of_is_known_before_its_first_use() -> None:
    class Fresh(taskd.message.Message):
        name: str = betterproto2.field(1, betterproto2.TYPE_STRING)

    assert [field.name for field in dataclasses.fields(Fresh)] == ["name"]
    assert Fresh() == Fresh(name="")
    assert not dataclasses.is_dataclass(taskd.message.Message)


def test_decoded_messages_share_nothing() -> None:
    one, other = (codec.decode(ListTasksResponse, b"") for _ in range(2))
    one.tasks.append(Process())
    assert other.tasks == []


POOL = descriptor_pool.DescriptorPool()
FILES = descriptor_pb2.FileDescriptorSet.FromString((GENERATED / "descriptors.binpb").read_bytes())
for file in FILES.file:
    POOL.Add(file)


def messages() -> Iterator[str]:
    """Full names of all messages that are ours."""

    def nested(prefix: str, found: descriptor_pb2.DescriptorProto) -> Iterator[str]:
        if not found.options.map_entry:
            yield f"{prefix}.{found.name}"
            for inner in found.nested_type:
                yield from nested(f"{prefix}.{found.name}", inner)

    for file in FILES.file:
        if not file.name.startswith("google/protobuf/"):
            for found in file.message_type:
                yield from nested(file.package, found)


def fill(message: Message, depth: int = 3) -> None:
    """Give every field a value that is not its default (of a oneof, the last field)."""
    for field in message.DESCRIPTOR.fields:
        if field.type == FieldDescriptor.TYPE_MESSAGE:
            if field.message_type.GetOptions().map_entry:
                value = field.message_type.fields_by_name["value"]
                if value.type == FieldDescriptor.TYPE_MESSAGE:
                    fill(getattr(message, field.name)["key"], depth - 1)
                else:
                    getattr(message, field.name)["key"] = scalar(value)
            elif depth:
                target = getattr(message, field.name)
                fill(target.add() if field.is_repeated else target, depth - 1)
                if not field.is_repeated:
                    target.SetInParent()
        elif field.is_repeated:
            getattr(message, field.name).extend([scalar(field), scalar(field)])
        else:
            setattr(message, field.name, scalar(field))


def scalar(field: FieldDescriptor) -> object:
    match field.type:
        case FieldDescriptor.TYPE_STRING:
            return "text é"
        case FieldDescriptor.TYPE_BYTES:
            return b"\x00\xff"
        case FieldDescriptor.TYPE_BOOL:
            return True
        case FieldDescriptor.TYPE_ENUM:
            return field.enum_type.values[-1].number
        case FieldDescriptor.TYPE_INT32 | FieldDescriptor.TYPE_INT64:
            return -7
        case FieldDescriptor.TYPE_UINT64:
            return 2**64 - 1
        case FieldDescriptor.TYPE_UINT32:
            return 2**32 - 1
        case FieldDescriptor.TYPE_DOUBLE:
            return 0.25
    raise AssertionError(f"a type that no message had so far: {field.full_name}")


@pytest.mark.parametrize("name", sorted(messages()))
def test_googles_runtime_reads_and_writes_the_same(name: str) -> None:
    google = message_factory.GetMessageClass(POOL.FindMessageTypeByName(name))
    theirs = google()
    fill(theirs)
    ours = codec.decode(python_type(name), theirs.SerializeToString())
    assert not ours._unknown_fields
    assert ours == python_type(name).parse(theirs.SerializeToString())
    assert google.FromString(codec.encode(ours)) == theirs
    assert codec.encode(python_type(name)()) == b""


TYPES = sorted(messages())


@pytest.mark.parametrize("name", TYPES)
def test_one_message_after_another_is_merged_as_google_does(name: str) -> None:
    google = message_factory.GetMessageClass(POOL.FindMessageTypeByName(name))
    theirs = google()
    fill(theirs)
    twice = theirs.SerializeToString() * 2
    assert google.FromString(codec.encode(codec.decode(python_type(name), twice))) == (
        google.FromString(twice)
    )


@given(st.data())
def test_damaged_bytes_are_refused_or_mean_the_same_to_google(data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(TYPES))
    google = message_factory.GetMessageClass(POOL.FindMessageTypeByName(name))
    theirs = google()
    fill(theirs)
    whole = theirs.SerializeToString()
    start = data.draw(st.integers(0, len(whole)))
    end = data.draw(st.integers(start, len(whole)))
    damaged = whole[:start] + data.draw(st.binary(max_size=8)) + whole[end:]
    try:
        ours = codec.encode(codec.decode(python_type(name), damaged))
        theirs = google.FromString(damaged)
    except (codec.MalformedMessage, DecodeError):
        return
    if not has_map(theirs):  # Google drops an entry with an unknown field in it
        assert google.FromString(ours) == theirs


def has_map(message: Message) -> bool:
    types = [field.message_type for field in message.DESCRIPTOR.fields if field.message_type]
    return any(
        found.GetOptions().map_entry or any(inner.message_type for inner in found.fields)
        for found in types
    )


@pytest.mark.parametrize("name", ["containerd.task.v2.StateResponse", "containerd.types.Mount"])
def test_what_google_refuses_of_a_cut_off_message_is_refused(name: str) -> None:
    google = message_factory.GetMessageClass(POOL.FindMessageTypeByName(name))
    theirs = google()
    fill(theirs)
    whole = theirs.SerializeToString()
    for length in range(len(whole)):
        try:
            google.FromString(whole[:length])
        except DecodeError:
            with pytest.raises(codec.MalformedMessage):
                codec.decode(python_type(name), whole[:length])
        else:
            codec.decode(python_type(name), whole[:length])


def test_a_message_in_parts_is_put_together() -> None:
    parts = b"R\x02\x08\x01R\x02\x10\x02"
    assert codec.decode(StateResponse, parts).exited_at == Timestamp(seconds=1, nanos=2)
    unknown = b"R\x03\xfa\x3f\x00" * 2
    assert codec.encode(codec.decode(StateResponse, unknown)) == b"R\x06" + b"\xfa\x3f\x00" * 2
    with pytest.raises(codec.MalformedMessage, match="truncated number"):
        codec.decode(StateResponse, b"R\x01\x08R\x01\x01")


def python_type(name: str) -> type[betterproto2.Message]:
    for file in FILES.file:
        if name.startswith(f"{file.package}."):
            import_module(f"taskd.proto.{file.package}")
    return default_message_pool.url_to_type[f"type.googleapis.com/{name}"]


def test_wheels_have_what_other_languages_generate_from(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if name.startswith("taskd/protos/")]
        archive.extractall(tmp_path, names)
    found = {str(Path(name).relative_to("taskd/protos")) for name in names}
    assert found == {
        str(each.relative_to(ROOT / "protos")) for each in ROOT.glob("protos/**/*.proto")
    }
    protoc = [sys.executable, "-m", "grpc_tools.protoc", f"-I{tmp_path}/taskd/protos"]
    protoc += [f"--descriptor_set_out={tmp_path}/set", *sorted(found)]
    subprocess.run(protoc, check=True)
    assert (tmp_path / "set").stat().st_size > 1000
