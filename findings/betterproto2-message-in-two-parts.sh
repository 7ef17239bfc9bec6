#!/bin/sh
# betterproto2 0.10.0, beside Google's protobuf 7.36.2: a field that is one message, and comes twice.
#
# Guess: as protobuf's encoding has it, parts of one message are merged, so that an encoder may append a field of an
# embedded message to bytes that it has already (and a proxy may join two messages by joining their bytes).
# Seen: the second part takes the place of the first, whose fields are gone; so it is with a message in a oneof.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
export PATH="$folder/venv/bin:$PATH"
pip install --quiet --disable-pip-version-check \
    betterproto2==0.10.0 betterproto2-compiler==0.10.1 grpcio-tools==1.85.1 protobuf==7.36.2 ruff==0.17.6
mkdir better
cat >sample.proto <<'PROTO'
syntax = "proto3";
package sample;
message Container {
  string id = 1;
  string image = 2;
}
message Request {
  Container container = 1;
  oneof what {
    Container other = 2;
    string text = 3;
  }
}
PROTO
python -m grpc_tools.protoc -I . --python_betterproto2_out=better --python_out=. sample.proto >protoc.log 2>&1
python - <<'PYTHON'
import sys

import sample_pb2
from better.sample import Request

first, second = sample_pb2.Request(), sample_pb2.Request()
first.container.id = first.other.id = "one"
second.container.image = second.other.image = "busybox"
wire = first.SerializeToString() + second.SerializeToString()
google = sample_pb2.Request.FromString(wire)
better = Request.parse(wire)
found = [[(each.id, each.image) for each in (by.container, by.other)] for by in (google, better)]
print("protobuf:", *found[0])
print("betterproto2:", *found[1])
sys.exit(found != [[("one", "busybox")] * 2, [("", "busybox")] * 2])
PYTHON
