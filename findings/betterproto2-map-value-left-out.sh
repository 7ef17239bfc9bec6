#!/bin/sh
# betterproto2 0.10.0, beside Google's protobuf 7.36.2: an entry of a map whose value, an empty message, is not written.
#
# Guess: a map travels as a repeated message of two fields, and what is left out of a message has its default: prost,
# which Rust's gRPC stands on, and protobuf-c leave defaults out of entries, and other libraries read them. So the
# entry has an empty message, and can be written again.
# Seen: it is parsed without an error, into an entry that is None, where values of other kinds get their defaults; to
# write the message again is a TypeError.
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
message Limit {
  int32 most = 1;
}
message Limits {
  map<string, Limit> by_name = 1;
  map<string, string> texts = 2;
}
PROTO
python -m grpc_tools.protoc -I . --python_betterproto2_out=better --python_out=. sample.proto >protoc.log 2>&1
python - <<'PYTHON'
import sys

import sample_pb2
from better.sample import Limits

WIRE = b"\x0a\x03\x0a\x01a" + b"\x12\x03\x0a\x01b"  # an entry of each map, with a key alone
google = sample_pb2.Limits.FromString(WIRE)
assert dict(google.texts) == {"b": ""}
assert list(google.by_name) == ["a"]
assert google.by_name["a"] == sample_pb2.Limit()
better = Limits.parse(WIRE)
try:
    again = bytes(better).hex()
except TypeError as error:
    again = f"TypeError: {error}"
print("parsed:", better.by_name, better.texts)
print("written again:", again)
sys.exit(
    (better.by_name, better.texts, again)
    != ({"a": None}, {"b": ""}, "TypeError: cannot convert 'NoneType' object to bytes")
)
PYTHON
