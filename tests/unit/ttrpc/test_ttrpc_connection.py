"""The state machine, without sockets."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ttrpc_peer import call, header

from taskd.errors import Code, NotFound, ResourceExhausted
from taskd.ttrpc.connection import (
    ClientConnection,
    Connection,
    ConnectionClosed,
    ServerConnection,
    StreamClosed,
)
from taskd.ttrpc.events import (
    ConnectionEnded,
    DataReceived,
    Event,
    RequestReceived,
    ResponseReceived,
    StreamFailed,
    StreamState,
)
from taskd.ttrpc.frames import (
    MAX_PAYLOAD,
    NO_DATA,
    REMOTE_CLOSED,
    REMOTE_OPEN,
    Decoder,
    Frame,
    ProtocolError,
    encode,
)
from taskd.ttrpc.messages import Request, Response

REQUEST = Request("test", "Echo", b"hello")
END = REMOTE_CLOSED | NO_DATA

# Instead of `MAX_PAYLOAD`, where many oversized frames are tried.
LIMIT = 256

# Frames that a peer might send, or something like it.
WIRE = st.lists(
    st.one_of(
        st.builds(
            encode,
            st.integers(0, 9),
            st.sampled_from((1, 2, 3)),
            st.integers(0, 7),
            st.one_of(
                st.sampled_from([b"", REQUEST.encode(), Response(5, "gone", b"x").encode()]),
                st.binary(max_size=12),
            ),
        ),
        st.builds(header, st.integers(0, 2**32 - 1), st.integers(0, 9), st.integers(0, 4)),
        st.builds(
            lambda stream_id, kind: header(LIMIT + 1, stream_id, kind) + bytes(LIMIT + 1),
            st.integers(0, 9),
            st.sampled_from((1, 2, 3)),
        ),
        st.binary(max_size=12),
    ),
    max_size=10,
).map(b"".join)


def sent(connection: Connection) -> list[Frame]:
    frames = list(Decoder().feed(b"".join(connection.data_to_send())))
    assert all(isinstance(frame, Frame) for frame in frames)
    return [frame for frame in frames if isinstance(frame, Frame)]


def received(connection: Connection, data: bytes) -> list[Event]:
    return list(connection.receive_data(data))


def client(*states: StreamState) -> ClientConnection:
    """A client with streams 1, 3, … in these states."""
    connection = ClientConnection()
    for state in states:
        connection.send_request(REQUEST, state)
    connection.data_to_send()
    return connection


def server(*flags: int) -> ServerConnection:
    """A server that has received requests with these flags on streams 1, 3, …"""
    connection = ServerConnection()
    for number, flag in enumerate(flags):
        received(connection, encode(2 * number + 1, 1, flag, REQUEST.encode()))
    return connection


def refusal(connection: ServerConnection) -> tuple[int, int, str]:
    """The one answer that the connection gave by itself."""
    (frame,) = sent(connection)
    assert (frame.type, frame.flags) == (2, 0)
    response = Response.decode(frame.payload)
    return frame.stream_id, response.code, response.message


def ended(events: list[Event]) -> str:
    (event,) = events
    assert isinstance(event, ConnectionEnded)
    assert isinstance(event.reason, ProtocolError)
    return event.reason.message


@given(WIRE, st.integers(1, 50))
def test_client_survives_whatever_comes(wire: bytes, size: int) -> None:
    check(lambda: client(*StreamState), wire, size)


@given(WIRE, st.integers(1, 50))
def test_server_survives_whatever_comes(wire: bytes, size: int) -> None:
    check(ServerConnection, wire, size)
    check(lambda: server(0, REMOTE_OPEN, REMOTE_CLOSED), wire, size)


def check(make: Callable[[], Connection], wire: bytes, size: int) -> None:
    def run(parts: list[bytes]) -> tuple[list[str], bytes, dict[int, StreamState]]:
        connection = make()
        events = [event for part in parts for event in received(connection, part)]
        streams = dict(connection.streams)
        events += connection.receive_eof()
        assert isinstance(events[-1], ConnectionEnded)
        assert sum(isinstance(event, ConnectionEnded) for event in events) == 1
        assert connection.closed
        assert not connection.streams
        assert received(connection, wire) == connection.receive_eof() == []
        # Errors have no equality.
        return [repr(event) for event in events], b"".join(connection.data_to_send()), streams

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("taskd.ttrpc.frames.MAX_PAYLOAD", LIMIT)
        assert run([wire]) == run([wire[at : at + size] for at in range(0, len(wire), size)])


class TestClient:
    def test_ids_are_odd_and_grow(self) -> None:
        connection = ClientConnection()
        assert [connection.send_request(REQUEST) for _ in range(3)] == [1, 3, 5]
        assert [(f.stream_id, f.type, f.flags) for f in sent(connection)] == [
            (1, 1, 0),
            (3, 1, 0),
            (5, 1, 0),
        ]

    def test_answers_in_any_order(self) -> None:
        connection = client(StreamState.UNARY, StreamState.UNARY)
        second, first = Response(payload=b"second"), Response(5, "gone")
        wire = encode(3, 2, 0, second.encode()) + encode(1, 2, 0, first.encode())
        assert received(connection, wire) == [
            ResponseReceived(3, second),
            ResponseReceived(1, first),
        ]
        assert not connection.streams

    def test_streams(self) -> None:
        connection = client(StreamState.OPEN)
        connection.send_data(1, b"up")
        connection.close_send(1)
        assert sent(connection) == [Frame(1, 3, 0, b"up"), Frame(1, 3, END, b"")]
        with pytest.raises(StreamClosed, match="ttrpc: stream closed"):
            connection.send_data(1, b"more")
        assert received(connection, encode(1, 3, 0, b"a") + encode(1, 3, 0)) == [
            DataReceived(1, b"a", False),
            DataReceived(1, b"", False),
        ]
        assert received(connection, encode(1, 3, END)) == [DataReceived(1, None, True)]
        assert not connection.streams

    def test_last_message_may_come_with_the_end(self) -> None:
        connection = client(StreamState.HALF_CLOSED)
        assert received(connection, encode(1, 3, REMOTE_CLOSED, b"a")) == [
            DataReceived(1, b"a", True)
        ]

    @pytest.mark.parametrize("state", StreamState)
    def test_what_comes_for_a_call_given_up_is_ignored(self, state: StreamState) -> None:
        connection = client(state)
        connection.forget(1)
        connection.forget(1)
        assert not connection.streams
        assert bool(sent(connection)) == (state is StreamState.OPEN)
        late = encode(1, 3, 0, b"a") + encode(1, 2, 0, b"\xff") + encode(99, 2, 0)
        assert received(connection, late + header(MAX_PAYLOAD + 1, 1, 2)) == []
        assert not connection.closed

    def test_data_on_a_unary_stream_fails_the_call(self) -> None:
        connection = client(StreamState.UNARY)
        (event,) = received(connection, encode(1, 3, 0, b"a"))
        assert isinstance(event, StreamFailed)
        assert isinstance(event.error, ProtocolError)
        assert not connection.streams

    def test_garbage_fails_the_call_alone(self) -> None:
        connection = client(StreamState.UNARY, StreamState.UNARY)
        (event,) = received(connection, encode(1, 2, 0, b"\xff"))
        assert isinstance(event, StreamFailed)
        assert isinstance(event.error, ProtocolError)
        assert list(connection.streams) == [3]

    @pytest.mark.parametrize("state", StreamState)
    def test_oversized_answer_fails_the_call_alone(self, state: StreamState) -> None:
        connection = client(state, StreamState.UNARY)
        received(connection, header(MAX_PAYLOAD + 5, 1, 2))
        assert list(connection.streams) == [1, 3]
        (event,) = received(connection, bytes(MAX_PAYLOAD + 5))
        assert isinstance(event, StreamFailed)
        assert isinstance(event.error, ResourceExhausted)
        assert list(connection.streams) == [3]

    @pytest.mark.parametrize("stream_id", [0, 2, 99])
    @pytest.mark.parametrize("kind", [1, 2, 3])
    def test_what_comes_on_a_stream_that_there_is_not_is_ignored(
        self, stream_id: int, kind: int
    ) -> None:
        connection = client(StreamState.UNARY)
        assert received(connection, encode(stream_id, kind, 0, b"a")) == []
        assert received(connection, encode(1, 2, 0)) == [ResponseReceived(1, Response())]

    @pytest.mark.parametrize("state", StreamState)
    def test_a_request_fails_the_call_alone(self, state: StreamState) -> None:
        connection = client(state, StreamState.UNARY)
        (event,) = received(connection, encode(1, 1, 0, REQUEST.encode()))
        assert isinstance(event, StreamFailed)
        assert event.error.message == "request received from a server"
        assert list(connection.streams) == [3]

    def test_oversized_request_is_not_sent(self) -> None:
        connection = ClientConnection()
        with pytest.raises(ResourceExhausted, match="exceed maximum message size"):
            connection.send_request(Request("test", "Echo", bytes(MAX_PAYLOAD)))
        assert connection.data_to_send() == []
        assert connection.send_request(REQUEST) == 1

    def test_ids_run_out(self) -> None:
        connection = ClientConnection()
        connection._next_stream_id = 2**32 - 1
        assert connection.send_request(REQUEST) == 2**32 - 1
        with pytest.raises(ResourceExhausted):
            connection.send_request(REQUEST)

    @pytest.mark.parametrize(
        ("wire", "reason"),
        [
            (header(0, 1, 7), "malformed header: unknown message type 7"),
            (header(0, 2, 0), "malformed header: unknown message type 0"),
        ],
    )
    def test_ends(self, wire: bytes, reason: str) -> None:
        connection = client(StreamState.UNARY)
        assert ended(received(connection, wire)) == reason
        with pytest.raises(ConnectionClosed, match="ttrpc: closed"):
            connection.send_request(REQUEST)
        with pytest.raises(ConnectionClosed):
            connection.send_data(1, b"")
        with pytest.raises(ConnectionClosed):
            connection.close_send(1)
        connection.forget(1)

    def test_truncated(self) -> None:
        connection = client(StreamState.UNARY)
        received(connection, b"\0")
        assert ended(connection.receive_eof()) == "truncated frame"

    def test_hang_up(self) -> None:
        assert client().receive_eof() == [ConnectionEnded(None)]


class TestServer:
    @pytest.mark.parametrize(
        ("flags", "state"),
        [
            (0, StreamState.UNARY),
            (REMOTE_OPEN, StreamState.OPEN),
            (REMOTE_CLOSED, StreamState.HALF_CLOSED),
            (REMOTE_OPEN | REMOTE_CLOSED, StreamState.HALF_CLOSED),
            (0x80, StreamState.UNARY),
        ],
    )
    def test_request(self, flags: int, state: StreamState) -> None:
        connection = ServerConnection()
        assert received(connection, encode(5, 1, flags, REQUEST.encode())) == [
            RequestReceived(5, REQUEST, state)
        ]
        assert connection.streams == {5: state}

    def test_answers(self) -> None:
        connection = server(0, REMOTE_CLOSED, 0)
        connection.send_data(3, b"a")
        connection.send_response(1, Response(payload=b"hi"))
        connection.send_end(3)
        connection.fail(5, NotFound("task x"))
        connection.fail(5, NotFound("once is enough"))
        assert sent(connection) == [
            Frame(3, 3, 0, b"a"),
            Frame(1, 2, 0, Response(payload=b"hi").encode()),
            Frame(3, 3, END, b""),
            Frame(5, 2, 0, Response(5, "task x: not found").encode()),
        ]
        assert not connection.streams
        for send in (
            lambda: connection.send_response(1, Response()),
            lambda: connection.send_data(3, b""),
            lambda: connection.send_end(3),
        ):
            with pytest.raises(StreamClosed):
                send()

    def test_client_stream(self) -> None:
        connection = server(REMOTE_OPEN)
        wire = encode(1, 3, 0, b"a") + encode(1, 3, NO_DATA) + encode(1, 3, END)
        assert received(connection, wire) == [
            DataReceived(1, b"a", False),
            DataReceived(1, None, True),
        ]
        assert received(connection, encode(1, 3, END)) == []
        assert connection.streams == {1: StreamState.HALF_CLOSED}

    def test_data_on_an_unknown_or_finished_stream(self) -> None:
        connection = server(0)
        connection.send_response(1, Response())
        connection.data_to_send()
        for stream_id in (1, 99):
            assert received(connection, encode(stream_id, 3, 0, b"a")) == []
            assert refusal(connection) == (
                stream_id,
                Code.INVALID_ARGUMENT,
                "StreamID is no longer active",
            )
        assert not connection.closed

    @pytest.mark.parametrize(
        ("flags", "data", "message"),
        [
            (0, encode(1, 3, 0, b"a"), "data handling error: ttrpc: stream closed"),
            (REMOTE_CLOSED, encode(1, 3, 0, b""), "data handling error: ttrpc: stream closed"),
            (
                REMOTE_OPEN,
                encode(1, 3, REMOTE_CLOSED, b"a"),
                "data close message cannot include data",
            ),
        ],
    )
    def test_data_that_must_not_be_fails_the_stream(
        self, flags: int, data: bytes, message: str
    ) -> None:
        connection = server(flags)
        (event,) = received(connection, data)
        assert isinstance(event, StreamFailed)
        assert refusal(connection) == (1, Code.INVALID_ARGUMENT, message)
        assert not connection.streams
        assert not connection.closed

    def test_garbage_for_a_request(self) -> None:
        connection = ServerConnection()
        assert received(connection, encode(1, 1, 0, b"\x0a")) == []
        assert refusal(connection) == (
            1,
            Code.INVALID_ARGUMENT,
            "unmarshal request error: malformed message: truncated number",
        )
        assert not connection.streams
        assert len(received(connection, call(3))) == 1

    @pytest.mark.parametrize("kind", [1, 3])
    def test_oversized(self, kind: int) -> None:
        connection = ServerConnection()
        length = MAX_PAYLOAD + 1
        assert received(connection, header(length, 1, kind)) == []
        assert connection.data_to_send() == []
        assert received(connection, bytes(length)) == []
        assert refusal(connection) == (
            1,
            Code.RESOURCE_EXHAUSTED,
            "message length 4194305 exceed maximum message size of 4194304",
        )
        assert len(received(connection, call(3))) == 1

    def test_oversized_data_fails_its_stream(self) -> None:
        connection = server(REMOTE_OPEN)
        length = MAX_PAYLOAD + 1
        (event,) = received(connection, header(length, 1, 3) + bytes(length))
        assert isinstance(event, StreamFailed)
        assert refusal(connection)[1] == Code.RESOURCE_EXHAUSTED
        assert not connection.streams

    def test_oversized_answer_is_not_sent(self) -> None:
        connection = server(REMOTE_CLOSED)
        with pytest.raises(ResourceExhausted):
            connection.send_response(1, Response(payload=bytes(MAX_PAYLOAD)))
        with pytest.raises(ResourceExhausted):
            connection.send_data(1, bytes(MAX_PAYLOAD + 1))
        assert connection.data_to_send() == []
        assert connection.streams

    def test_error_text_of_any_length_is_sent(self) -> None:
        connection = server(0)
        connection.fail(1, NotFound("\udcff" * MAX_PAYLOAD))
        assert refusal(connection)[1] == Code.NOT_FOUND

    @pytest.mark.parametrize("stream_id", [0, 2, 100])
    @pytest.mark.parametrize("kind", [0, 1, 2, 3, 4, 255])
    def test_an_even_stream_id_is_refused(self, stream_id: int, kind: int) -> None:
        connection = server(0)
        assert received(connection, encode(stream_id, kind, 0, REQUEST.encode())) == []
        assert refusal(connection) == (
            stream_id,
            Code.INVALID_ARGUMENT,
            "StreamID must be odd for client initiated streams",
        )
        assert len(received(connection, call(3))) == 1

    @pytest.mark.parametrize("stream_id", [1, 3])
    def test_a_stream_id_that_does_not_grow_is_refused(self, stream_id: int) -> None:
        connection = server(0, 0)
        assert received(connection, call(stream_id)) == []
        assert refusal(connection) == (
            stream_id,
            Code.INVALID_ARGUMENT,
            "StreamID cannot be re-used and must increment",
        )
        # What is under way goes on.
        connection.send_response(1, Response())
        connection.send_response(3, Response())
        assert len(received(connection, call(5))) == 1

    @pytest.mark.parametrize("kind", [0, 2, 4, 255])
    def test_what_a_client_does_not_send_is_ignored(self, kind: int) -> None:
        connection = server(0)
        assert received(connection, encode(1, kind, 0, b"a") + encode(3, kind, 0, b"a")) == []
        assert sent(connection) == []
        assert list(connection.streams) == [1]
        assert len(received(connection, call(3))) == 1

    @pytest.mark.parametrize("kind", [0, 2, 4])
    def test_what_a_client_does_not_send_has_a_limit_too(self, kind: int) -> None:
        connection = ServerConnection()
        length = MAX_PAYLOAD + 1
        assert received(connection, header(length, 2, kind) + bytes(length)) == []
        assert refusal(connection)[:2] == (2, Code.RESOURCE_EXHAUSTED)
        assert len(received(connection, call(1))) == 1

    @pytest.mark.parametrize("wire", [b"\0", call(5)[:-1], header(MAX_PAYLOAD + 1, 5, 1)])
    def test_ends(self, wire: bytes) -> None:
        connection = ServerConnection()
        received(connection, call(3))
        received(connection, wire)
        assert ended(connection.receive_eof()) == "truncated frame"
        with pytest.raises(ConnectionClosed):
            connection.send_response(3, Response())
        connection.fail(3, NotFound())
        assert connection.data_to_send() == []

    def test_what_an_answer_decides_about_the_next_frame(self) -> None:
        connection = ServerConnection()
        codes = []
        for event in connection.receive_data(call(1) + encode(1, 3, 0, b"a") + call(3)):
            assert isinstance(event, RequestReceived)
            connection.fail(event.stream_id, NotFound())
        for frame in sent(connection):
            codes.append((frame.stream_id, Response.decode(frame.payload).code))
        assert codes == [
            (1, Code.NOT_FOUND),
            (1, Code.INVALID_ARGUMENT),
            (3, Code.NOT_FOUND),
        ]

    def test_what_comes_after_the_end_is_left_alone(self) -> None:
        connection = ServerConnection()
        for number, _ in enumerate(connection.receive_data(call(1) + call(3))):
            assert number == 0
            connection.close()
