#!/bin/sh
# ngh2 0.3.0 (libnghttp2 as a sans-I/O library) beside h2 4.4.1, both as servers.
#
# Guess: a whole answer (HEADERS with END_STREAM) and after it a RST_STREAM of NO_ERROR, which is what
# RFC 9113, 8.1, has for a server that does not wait for the rest of a request, and what gRPC servers do,
# arrive in that order, as they do with h2.
# Seen: with ngh2 the answer is dropped if both are submitted before the bytes are taken: the client gets
# the reset alone. Taking the bytes between the two keeps the answer.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check ngh2==0.3.0 h2==4.4.1
"$folder/venv/bin/python" - <<'PYTHON'
import sys

import h2.config
import h2.connection
import h2.events
import ngh2

REQUEST = [(b":method", b"POST"), (b":scheme", b"http"), (b":path", b"/a/b"), (b":authority", b"l")]
ANSWER = [(b":status", b"200"), (b"grpc-status", b"12")]
SHOWN = (h2.events.ResponseReceived, h2.events.StreamReset)


def seen(answer):
    config = h2.config.H2Configuration(client_side=True, header_encoding=None)
    client = h2.connection.H2Connection(config)
    client.initiate_connection()
    client.send_headers(1, REQUEST)  # the request has not ended
    events = client.receive_data(answer(client.data_to_send()))
    return [type(event).__name__ for event in events if isinstance(event, SHOWN)]


def with_h2(request):
    server = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False))
    server.initiate_connection()
    server.receive_data(request)
    server.send_headers(1, ANSWER, end_stream=True)
    server.reset_stream(1, 0)
    return server.data_to_send()


def with_ngh2(request, *, between=False):
    server = ngh2.Connection(ngh2.Role.SERVER)
    server.initiate_connection({})
    server.receive_data(request)
    server.events()
    server.send_response(1, ANSWER, end_stream=True)
    first = server.data_to_send() if between else b""
    server.reset_stream(1, 0)
    return first + server.data_to_send()


found = {
    "h2": seen(with_h2),
    "ngh2": seen(with_ngh2),
    "ngh2, bytes taken between": seen(lambda request: with_ngh2(request, between=True)),
}
for who, events in found.items():
    print(f"{who}: {', '.join(events)}")
both = ["ResponseReceived", "StreamReset"]
sys.exit(list(found.values()) != [both, ["StreamReset"], both])
PYTHON
