#!/bin/sh
# grpcio 1.85.3 as a server, beside ngh2 0.3.0, h2 4.4.1, grpclib 0.4.9 and grpcio as clients: the text of an error that
# ends with a space, as "exit status 1: " does where a program has said nothing.
#
# Guess: the text arrives. gRPC has a percent-encoding for it, and so whatever HTTP/2 does not take is encoded.
# Seen: gRPC's encoding leaves spaces as they are, and RFC 9113, 8.2.1, has a value that ends with one for malformed.
# grpcio sends it so. grpcio and grpclib, which has h2 check nothing, get it; ngh2 resets the stream, and the
# status is gone with the text; h2 as it is takes it for an error of the connection, with all of its streams.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
    grpcio==1.85.3 grpclib==0.4.9 h2==4.4.1 ngh2==0.3.0
"$folder/venv/bin/python" - <<'PYTHON'
import asyncio
import sys

import grpc
import h2.config
import h2.connection
import h2.events
import h2.exceptions
import ngh2
from grpclib.client import Channel
from grpclib.const import Cardinality
from grpclib.encoding.base import CodecBase
from grpclib.exceptions import GRPCError

METHOD = "/sample.Sample/Fail"


class Fails(grpc.GenericRpcHandler):
    def service(self, details):
        async def fail(request, context):
            await context.abort(grpc.StatusCode.UNKNOWN, request.decode())

        return grpc.unary_unary_rpc_method_handler(fail)


class Bytes(CodecBase):
    __content_subtype__ = "proto"

    def encode(self, message, message_type):
        return message

    def decode(self, data, message_type):
        return data


async def with_grpcio(port, text):
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        try:
            await channel.unary_unary(METHOD)(text.encode())
        except grpc.RpcError as error:
            return error.details()


async def with_grpclib(port, text):
    channel = Channel("127.0.0.1", port, codec=Bytes())
    try:
        async with channel.request(METHOD, Cardinality.UNARY_UNARY, bytes, bytes) as stream:
            await stream.send_message(text.encode(), end=True)
            await stream.recv_message()
    except GRPCError as error:
        return error.message
    finally:
        channel.close()


def request(port):
    host = f"127.0.0.1:{port}".encode()
    return [
        (b":method", b"POST"),
        (b":scheme", b"http"),
        (b":path", METHOD.encode()),
        (b":authority", host),
        (b"te", b"trailers"),
        (b"content-type", b"application/grpc"),
    ]


def framed(text):
    return b"\0" + len(text).to_bytes(4, "big") + text.encode()


async def events_of(connection, port, parsed, late):
    """What is told of what has come, and of what is sent."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        while True:
            writer.write(connection.data_to_send())
            for event in late():
                yield event
            for event in parsed(await reader.read(65536)):
                yield event
    finally:
        writer.close()


def message_of(headers):
    return dict(headers)[b"grpc-message"].decode()


async def with_ngh2(port, text):
    client = ngh2.Connection(ngh2.Role.CLIENT)
    client.initiate_connection({})
    stream = client.send_request(request(port))
    client.send_data(stream, framed(text), end_stream=True)

    def parsed(data):
        client.receive_data(data)
        return client.events()

    async for event in events_of(client, port, parsed, client.events):
        if isinstance(event, (ngh2.ResponseReceived, ngh2.TrailersReceived)) and event.end_stream:
            return message_of(event.headers)
        if isinstance(event, ngh2.StreamClosed):
            return f"stream closed, error_code {event.error_code}"


async def with_h2(port, text):
    config = h2.config.H2Configuration(client_side=True, header_encoding=None)
    client = h2.connection.H2Connection(config)
    client.initiate_connection()
    client.send_headers(1, request(port))
    client.send_data(1, framed(text), end_stream=True)
    try:
        async for event in events_of(client, port, client.receive_data, list):
            if isinstance(event, (h2.events.ResponseReceived, h2.events.TrailersReceived)):
                if event.stream_ended:
                    return message_of(event.headers)
    except h2.exceptions.ProtocolError as error:
        return f"ProtocolError: {error}"


CLIENTS = {"grpcio": with_grpcio, "grpclib": with_grpclib, "ngh2": with_ngh2, "h2": with_h2}


async def main():
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((Fails(),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    found = {}
    for name, ask in CLIENTS.items():
        async with asyncio.timeout(20):
            found[name] = [await ask(port, text) for text in ("exit status 1", "exit status 1: ")]
        print(f"{name}:", *map(repr, found[name]))
    await server.stop(None)
    return found


found = asyncio.run(main())
right = ["exit status 1", "exit status 1: "]
sys.exit(
    found
    != {
        "grpcio": right,
        "grpclib": right,
        "ngh2": ["exit status 1", "stream closed, error_code 1"],
        "h2": [
            "exit status 1",
            "ProtocolError: Received header value surrounded by whitespace b'exit status 1: '",
        ],
    }
)
PYTHON
