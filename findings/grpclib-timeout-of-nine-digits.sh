#!/bin/sh
# grpclib 0.4.9 as a client of containerd 1.6.20 (Debian 12), whose gRPC is Go's: a call with a timeout of a thousand
# million seconds, as one gives that wants "no limit". Needs root.
#
# Guess: grpclib picks the largest unit that it needs, as grpc-core and grpc-go do (gRPC's header has eight digits
# at most, and hours), so that every timeout is as good as a smaller one.
# Seen: from ten seconds on it always writes seconds, with as many digits as there are: "999999999S" is no timeout to
# grpc-go, which resets the stream with PROTOCOL_ERROR and no status: StreamTerminatedError. With 99,999,999 seconds
# the same call is answered.
set -eu
folder=$(mktemp -d)
daemon=
trap 'test -z "$daemon" || { kill "$daemon"; wait "$daemon" || true; }; rm -rf "$folder"' EXIT
cd "$folder"
chmod 755 .
apt-get download -qq 'containerd=1.6.20~ds1-1+deb12u*'
dpkg -x containerd_*.deb system
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check grpclib==0.4.9 h2==4.4.1
system/usr/bin/containerd --config /dev/null --root "$folder/root" --state "$folder/state" \
    --address "$folder/socket" >log 2>&1 &
daemon=$!
venv/bin/python - <<'PYTHON'
import asyncio
import sys
import time
from pathlib import Path

from grpclib.client import Channel
from grpclib.const import Cardinality
from grpclib.encoding.base import CodecBase
from grpclib.exceptions import StreamTerminatedError

VERSION = "/containerd.services.version.v1.Version/Version"


class Bytes(CodecBase):
    __content_subtype__ = "proto"

    def encode(self, message, message_type):
        return message

    def decode(self, data, message_type):
        return data


async def ask(channel, timeout):
    unary = (Cardinality.UNARY_UNARY, bytes, bytes)
    async with channel.request(VERSION, *unary, timeout=timeout) as stream:
        await stream.send_message(b"", end=True)
        return b"1.6.20" in await stream.recv_message()


async def main():
    end = time.monotonic() + 30
    while not Path("socket").exists() and time.monotonic() < end:
        await asyncio.sleep(0.1)
    channel = Channel(path="socket", codec=Bytes())
    found = []
    for timeout in (20, 99_999_999, 1_000_000_000):
        try:
            found.append(await ask(channel, timeout))
        except StreamTerminatedError as error:
            found.append(f"{type(error).__name__}: {error}")
        print(f"{timeout} s:", found[-1])
    channel.close()
    return found


found = asyncio.run(main())
lost = "StreamTerminatedError: Stream reset by remote party, error_code: 1"
sys.exit(found != [True, True, lost])
PYTHON
