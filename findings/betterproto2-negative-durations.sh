#!/bin/sh
# betterproto2 0.10.0, beside Google's protobuf 7.36.2: a google.protobuf.Duration below zero.
#
# Guess: a timedelta below zero is written as duration.proto has it, nanos of the sign of seconds, and what was parsed is
# written as it was, so that -0.5 s stays -0.5 s.
# Seen: seconds are cut off towards zero, while nanos are timedelta's own microseconds, which count upwards: -0.5 s is
# written as 0 s and +500,000,000 ns, which is half a second in the future; -2.25 s as -2 s and +750,000,000 ns,
# which is no valid duration (and -2.75s in JSON). Parsing is right, so that a message that is only passed on is changed.
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
import "google/protobuf/duration.proto";
message Wait {
  google.protobuf.Duration time = 1;
}
PROTO
python -m grpc_tools.protoc -I . --python_betterproto2_out=better --python_out=. sample.proto >protoc.log 2>&1
python - <<'PYTHON'
import sys
from datetime import timedelta

import sample_pb2
from better.sample import Wait

found = []
for seconds in (1.5, -1.0, -0.5, -2.25):
    google = sample_pb2.Wait()
    google.time.FromTimedelta(timedelta(seconds=seconds))
    parsed = Wait.parse(google.SerializeToString())
    assert parsed.time == timedelta(seconds=seconds)
    passed_on = sample_pb2.Wait.FromString(bytes(parsed)).time
    found.append((seconds, (passed_on.seconds, passed_on.nanos), parsed.to_dict()["time"]))
    print(f"{google.time.seconds} s {google.time.nanos} ns -> {passed_on.seconds} s {passed_on.nanos} ns,",
          f"in JSON {found[-1][2]}")
sys.exit(
    found
    != [
        (1.5, (1, 500_000_000), "1.500s"),
        (-1.0, (-1, 0), "-1s"),
        (-0.5, (0, 500_000_000), "0.500s"),
        (-2.25, (-2, 750_000_000), "-2.750s"),
    ]
)
PYTHON
