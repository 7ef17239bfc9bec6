from __future__ import annotations

import tracemalloc
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ttrpc_peer import header

from taskd.errors import ResourceExhausted
from taskd.ttrpc import frames
from taskd.ttrpc.frames import MAX_PAYLOAD, Decoder, Frame, OversizedFrame, ProtocolError

FRAMES = st.builds(
    Frame,
    stream_id=st.integers(0, 2**32 - 1),
    type=st.sampled_from((1, 2, 3)),
    flags=st.integers(0, 255),
    payload=st.binary(max_size=300),
)

# Bytes that look enough like frames to get somewhere.
WIRE = st.lists(
    st.one_of(
        st.binary(max_size=20),
        st.builds(
            header,
            st.one_of(st.integers(0, 30), st.integers(0, 2**32 - 1)),
            st.integers(0, 2**32 - 1),
            st.integers(0, 255),
            st.integers(0, 255),
        ),
        FRAMES.map(lambda frame: encoded(frame)),
    ),
    max_size=8,
).map(b"".join)


def encoded(frame: Frame) -> bytes:
    return frames.encode(frame.stream_id, frame.type, frame.flags, frame.payload)


def chunks(data: bytes, cuts: list[int]) -> list[bytes]:
    places = sorted({cut % (len(data) + 1) for cut in cuts} | {0, len(data)})
    return [data[start:end] for start, end in pairwise(places)]


def decode(parts: list[bytes]) -> tuple[list[Frame | OversizedFrame], str]:
    """The frames, and what was wrong with the bytes after them."""
    decoder = Decoder()
    found: list[Frame | OversizedFrame] = []
    try:
        for part in parts:
            for frame in decoder.feed(part):
                found.append(frame)
        decoder.feed_eof()
    except ProtocolError as exc:
        return found, exc.message
    return found, ""


@given(st.lists(FRAMES, max_size=6), st.lists(st.integers(0, 5000), max_size=12))
def test_what_is_encoded_is_decoded(sent: list[Frame], cuts: list[int]) -> None:
    wire = b"".join(map(encoded, sent))
    assert decode(chunks(wire, cuts)) == (sent, "")


@given(WIRE, st.lists(st.integers(0, 5000), max_size=12))
def test_chunking_makes_no_difference_and_only_its_own_error_comes(
    wire: bytes, cuts: list[int]
) -> None:
    whole = decode([wire])
    assert decode(chunks(wire, cuts)) == whole
    assert decode([bytes((byte,)) for byte in wire]) == whole


@pytest.mark.parametrize("kind", [0, 4, 255])
def test_unknown_type_is_malformed(kind: int) -> None:
    with pytest.raises(ProtocolError, match=f"malformed header: unknown message type {kind}"):
        list(Decoder().feed(header(0, 1, kind)))


def test_frames_before_a_malformed_header_are_delivered() -> None:
    good = Frame(1, 1, 0, b"good")
    found = decode([encoded(good) + header(0, 3, 9)])
    assert found == ([good], "malformed header: unknown message type 9")


@pytest.mark.parametrize("cut", [1, 9, 10, 12])
def test_truncated(cut: int) -> None:
    assert decode([encoded(Frame(1, 1, 0, b"abc"))[:cut]]) == ([], "truncated frame")


def test_oversized_frame_is_passed_over_without_keeping_it() -> None:
    length = MAX_PAYLOAD + 1
    decoder = Decoder()
    found = list(decoder.feed(header(length, 7, 3, 1)))
    part = bytes(1 << 16)
    tracemalloc.start()
    try:
        for _ in range(length // len(part)):
            assert list(decoder.feed(part)) == []
        assert tracemalloc.get_traced_memory()[1] < len(part)
    finally:
        tracemalloc.stop()
    found += decoder.feed(b"\0" + encoded(Frame(9, 1, 0, b"next")))
    assert found == [OversizedFrame(7, 3, 1, length), Frame(9, 1, 0, b"next")]


def test_truncated_within_an_oversized_frame() -> None:
    assert decode([header(MAX_PAYLOAD + 1, 1, 1) + b"abc"]) == ([], "truncated frame")


def test_limit() -> None:
    payload = bytes(MAX_PAYLOAD)
    wire = frames.encode(1, 1, 0, payload)
    assert decode(chunks(wire, list(range(0, len(wire), 100_000)))) == (
        [Frame(1, 1, 0, payload)],
        "",
    )
    with pytest.raises(
        ResourceExhausted, match="message length 4194305 exceed maximum message size of 4194304"
    ):
        frames.encode(1, 1, 0, bytes(MAX_PAYLOAD + 1))
