"""The process that forks shims, on a machine that is slow."""

from __future__ import annotations

import json
import socket
import subprocess
import sys

import pytest

from taskd import plugins

PROCESS = plugins.executable("io.taskd.process.v1")


@pytest.mark.parametrize(
    "slow",
    [
        # No call of the rehearsal is answered in time.
        "rehearsal._CALL_SECONDS = 1e-9",
        # There is no time for another life after the first one.
        "rehearsal._SECONDS = -1",
    ],
)
def test_shims_are_forked_although_the_rehearsal_is_cut_short(slow: str) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    script = f"""
import socket
from taskd.shim import rehearsal, warm
{slow}
warm.serve(socket.socket(fileno={theirs.fileno()}))
"""
    command = [sys.executable, "-P", "-c", script]
    with ours, subprocess.Popen(command, pass_fds=[theirs.fileno()]) as process:
        theirs.close()
        ours.settimeout(60)
        assert str(PROCESS.resolve()) in json.loads(ours.recv(65536))
        answers, given = socket.socketpair()
        with answers, given:
            call = {"command": [str(PROCESS.resolve()), "-v"], "cwd": "/", "env": {}, "stdin": ""}
            socket.send_fds(ours, [json.dumps(call).encode()], [given.fileno()])
            given.close()
            answers.settimeout(60)
            assert json.loads(answers.recv(65536))["status"] == 0
        ours.close()
        assert process.wait(60) == 0
