#!/bin/sh
# grpclib 0.4.9 on h2 4.4.1, as a client of a call with a stream of requests that has not ended it.
#
# Guess: a server that has its answer before it has all requests sends that, the trailers with status 0, and a
# RST_STREAM of NO_ERROR, as RFC 9113, 8.1, has it ("clients MUST NOT discard responses as a result") and as grpc-go
# does; the client gets the answer, as it does without the reset.
# Seen: where the reset is read together with the answer, the whole answer is gone, and the call ends with
# StreamTerminatedError ("Stream reset by remote party, error_code: 0"): an error whose code says that there is none.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check grpclib==0.4.9 h2==4.4.1
"$folder/venv/bin/python" - <<'PYTHON'
import asyncio
import sys

import h2.config
import h2.connection
import h2.events
from grpclib.client import Channel
from grpclib.const import Cardinality
from grpclib.encoding.base import CodecBase
from grpclib.exceptions import StreamTerminatedError

HEADERS = [(":status", "200"), ("content-type", "application/grpc+bytes")]


class Bytes(CodecBase):
    __content_subtype__ = "bytes"

    def encode(self, message, message_type):
        return message

    def decode(self, data, message_type):
        return data


def server(reset):
    async def serve(reader, writer):
        connection = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False))
        connection.initiate_connection()
        while True:
            writer.write(connection.data_to_send())
            data = await reader.read(65536)
            if not data:
                break
            for event in connection.receive_data(data):
                if isinstance(event, h2.events.DataReceived) and event.data:
                    connection.send_headers(event.stream_id, HEADERS)
                    connection.send_data(event.stream_id, b"\0\0\0\0\x06answer")
                    connection.send_headers(event.stream_id, [("grpc-status", "0")], end_stream=True)
                    if reset:
                        connection.reset_stream(event.stream_id, 0)
        writer.close()

    return serve


async def ask(reset):
    async with await asyncio.start_server(server(reset), "127.0.0.1", 0) as listening:
        channel = Channel("127.0.0.1", listening.sockets[0].getsockname()[1], codec=Bytes())
        try:
            async with channel.request("/a/b", Cardinality.STREAM_UNARY, bytes, bytes) as stream:
                await stream.send_message(b"one of some")
                answer = await stream.recv_message()
                if not reset:
                    await stream.end()
            return answer.decode()
        except StreamTerminatedError as error:
            return f"{type(error).__name__}: {error}"
        finally:
            channel.close()
            await asyncio.sleep(0.1)


found = {reset: asyncio.run(ask(reset)) for reset in (False, True)}
print("without a reset:", found[False])
print("with a reset of NO_ERROR after the answer:", found[True])
lost = "StreamTerminatedError: Stream reset by remote party, error_code: 0"
sys.exit(found != {False: "answer", True: lost})
PYTHON
