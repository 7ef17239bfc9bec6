"""The hand-written protobuf, with Google's as the oracle."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message, message_factory
from hypothesis import example, given
from hypothesis import strategies as st

from taskd.ttrpc.frames import ProtocolError
from taskd.ttrpc.messages import KeyValue, Request, Response

TYPES = {"string": 9, "bytes": 12, "int32": 5, "int64": 3}
MESSAGES = {
    "Status": [("code", 1, "int32"), ("message", 2, "string")],
    "KeyValue": [("key", 1, "string"), ("value", 2, "string")],
    "Request": [
        ("service", 1, "string"),
        ("method", 2, "string"),
        ("payload", 3, "bytes"),
        ("timeout_nano", 4, "int64"),
        ("metadata", 5, "KeyValue"),
    ],
    "Response": [("status", 1, "Status"), ("payload", 2, "bytes")],
}


def oracle(name: str) -> Any:
    file = descriptor_pb2.FileDescriptorProto(name="o.proto", package="o", syntax="proto3")
    for each, fields in MESSAGES.items():
        described = file.message_type.add(name=each)
        for field, number, kind in fields:
            added = described.field.add(name=field, number=number, label=1)
            if kind in TYPES:
                added.type = TYPES[kind]
            else:
                added.type, added.type_name = 11, f".o.{kind}"
            if kind == "KeyValue":
                added.label = 3
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(f"o.{name}"))


TheirRequest, TheirResponse = oracle("Request"), oracle("Response")

TEXT = st.text(max_size=20)
REQUESTS = st.builds(
    Request,
    TEXT,
    TEXT,
    st.binary(max_size=300),
    st.integers(-(2**63), 2**63 - 1),
    st.lists(st.builds(KeyValue, TEXT, TEXT), max_size=3).map(tuple),
)
RESPONSES = st.builds(Response, st.integers(-(2**31), 2**31 - 1), TEXT, st.binary(max_size=300))


def damaged(messages: st.SearchStrategy[Any]) -> st.SearchStrategy[bytes]:
    """Bytes that are almost a message."""

    def damage(encoded: bytes, place: int, instead: bytes, length: int) -> bytes:
        place %= len(encoded) + 1
        return encoded[:place] + instead + encoded[place + length :]

    return st.builds(
        damage,
        messages.map(lambda message: message.encode()),
        st.integers(0, 1000),
        st.binary(max_size=4),
        st.integers(0, 4),
    )


def theirs_of_request(data: bytes) -> Request | None:
    try:
        found = TheirRequest.FromString(data)
    except message.DecodeError:
        return None
    metadata = tuple(KeyValue(entry.key, entry.value) for entry in found.metadata)
    return Request(found.service, found.method, found.payload, found.timeout_nano, metadata)


def theirs_of_response(data: bytes) -> Response | None:
    try:
        found = TheirResponse.FromString(data)
    except message.DecodeError:
        return None
    return Response(found.status.code, found.status.message, found.payload)


@given(REQUESTS)
def test_request(request: Request) -> None:
    assert Request.decode(request.encode()) == request
    assert theirs_of_request(request.encode()) == request


@given(RESPONSES)
def test_response(response: Response) -> None:
    assert Response.decode(response.encode()) == response
    assert theirs_of_response(response.encode()) == response


@given(st.one_of(st.binary(max_size=60), damaged(REQUESTS)))
@example(b"\x08\x01\x12\x01a")
def test_request_from_anywhere(data: bytes) -> None:
    try:
        ours = Request.decode(data)
    except ProtocolError:
        return  # Google's Python takes numbers of more than 64 bits, Go's does not
    assert ours == theirs_of_request(data)


@given(st.one_of(st.binary(max_size=60), damaged(RESPONSES)))
@example(b"\x0a\x02\x08\x05\x0a\x03\x12\x01a")
@example(b"\x0b\x13\x14\x0c\x12\x01a")
def test_response_from_anywhere(data: bytes) -> None:
    try:
        ours = Response.decode(data)
    except ProtocolError:
        return
    assert ours == theirs_of_response(data)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        ("0a", "truncated number"),
        ("0a0261", "truncated field"),
        ("0a01ff", "text that is not UTF-8"),
        ("0001", "field number 0"),
        ("20ffffffffffffffffff02", "number of more than 64 bits"),
        ("20ffffffffffffffffffff01", "number of more than 64 bits"),
        ("0f", "wire type 7"),
        ("34", "wire type 4"),
        ("333c", "wire type 4"),
        ("33", "truncated number"),
        ("31000000", "truncated field"),
        ("2a030a01ff", "text that is not UTF-8"),
    ],
)
def test_malformed(data: str, reason: str) -> None:
    with pytest.raises(ProtocolError) as caught:
        Request.decode(bytes.fromhex(data))
    # Where a group is cut off, what is missing is the next tag.
    assert caught.value.message == f"malformed message: {reason}"


def test_unknown_fields_are_skipped() -> None:
    # 6: number, 7: 64 bits, 8: bytes, 9: 32 bits, 10: a group that holds a group
    unknown = "3001" + "390102030405060708" + "420161" + "4d01020304" + "53530801" + "5454"
    assert Request.decode(bytes.fromhex(f"0a0161{unknown}120162")) == Request("a", "b")


def test_text_that_is_no_unicode_reaches_the_peer() -> None:
    response = Response(2, "no such file: \udcff")
    assert Response.decode(response.encode()).message == "no such file: \\udcff"
