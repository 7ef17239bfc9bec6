#!/bin/sh
# grpclib 0.4.9 on h2 4.4.1, and grpcio 1.85.3, as servers: two values of one binary header, joined with a comma.
#
# Guess: they are two values, as if the header came twice: gRPC over HTTP/2 has it that values of one name may be joined
# on the way, and that binary ones "must" be split at commas before they are decoded.
# Seen: neither splits. grpcio refuses the call as INTERNAL, "illegal base64 encoding". grpclib hands on one value, with
# no error, and which depends on padding: with it the first value alone; without it, bytes that nobody has sent, since
# the comma is passed over and what comes after it is decoded as if it went on. Two headers of the name are two
# values to both.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check grpcio==1.85.3 grpclib==0.4.9 h2==4.4.1
"$folder/venv/bin/python" - <<'PYTHON'
import ast
import asyncio
import sys

import grpc
import h2.config
import h2.connection
import h2.events
from grpclib.const import Cardinality, Handler
from grpclib.encoding.base import CodecBase
from grpclib.server import Server

METHOD = "/sample.Sample/Tell"
NAME = "sample-bin"


def told(metadata):
    return repr([value for name, value in metadata if name == NAME]).encode()


class WithGrpcio(grpc.GenericRpcHandler):
    def service(self, details):
        async def tell(request, context):
            return told(context.invocation_metadata())

        return grpc.unary_unary_rpc_method_handler(tell)


class WithGrpclib:
    async def tell(self, stream):
        await stream.recv_message()
        await stream.send_message(told(stream.metadata.items()))

    def __mapping__(self):
        return {METHOD: Handler(self.tell, Cardinality.UNARY_UNARY, bytes, bytes)}


class Bytes(CodecBase):
    __content_subtype__ = "proto"

    def encode(self, message, message_type):
        return message

    def decode(self, data, message_type):
        return data


async def ask(port, *values):
    """What the server says that it was given, or its status and message."""
    client = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True, header_encoding="utf-8"))
    client.initiate_connection()
    headers = {":method": "POST", ":scheme": "http", ":path": METHOD, ":authority": "localhost", "te": "trailers"}
    headers["content-type"] = "application/grpc"
    client.send_headers(1, [*headers.items(), *((NAME, value) for value in values)])
    client.send_data(1, bytes(5), end_stream=True)
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    message, fields = b"", {}
    try:
        while True:
            writer.write(client.data_to_send())
            for event in client.receive_data(await reader.read(65536)):
                if isinstance(event, h2.events.DataReceived):
                    message += event.data
                elif isinstance(event, (h2.events.ResponseReceived, h2.events.TrailersReceived)):
                    fields.update(event.headers)
                elif isinstance(event, h2.events.StreamEnded):
                    if fields["grpc-status"] == "0":
                        return ast.literal_eval(message[5:].decode())
                    return fields["grpc-status"], fields["grpc-message"].rpartition(": ")[2]
    finally:
        writer.close()


# One byte, 1, and another one, 2; with and without padding.
ASKED = {"twice": ("AQ", "Ag"), "joined": ("AQ,Ag",), "joined, padded": ("AQ==,Ag==",)}


async def main():
    grpclib = Server([WithGrpclib()], codec=Bytes())
    await grpclib.start("127.0.0.1", 0)
    grpcio = grpc.aio.server()
    grpcio.add_generic_rpc_handlers((WithGrpcio(),))
    ports = {"grpclib": grpclib._server.sockets[0].getsockname()[1], "grpcio": grpcio.add_insecure_port("127.0.0.1:0")}
    await grpcio.start()
    found = {}
    for name, port in ports.items():
        for how, values in ASKED.items():
            async with asyncio.timeout(20):
                found[name, how] = await ask(port, *values)
            print(f"{name}, {how}:", found[name, how])
    grpclib.close()
    await grpclib.wait_closed()
    await grpcio.stop(None)
    return found


refused = ("13", "illegal base64 encoding")
sys.exit(
    list(asyncio.run(main()).values())
    != [[b"\1", b"\2"], [b"\1\0 "], [b"\1"], [b"\1", b"\2"], refused, refused]
)
PYTHON
