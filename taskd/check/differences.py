"""What generations of containerd's shims are known to do otherwise than the others."""

from __future__ import annotations

from taskd.check.registry import Difference

ALL_GO = "containerd's"

VERSION_3 = Difference("containerd 2.x", "answers version 3 whatever the daemon knows")
NO_ADDRESS_FILE = Difference("containerd 2.x", "leaves it to the daemon to note the address")
NO_PROCESS_YET = Difference("a shim that begins in Start", "has no process to kill before")
NO_CGROUP = Difference("a shim without a cgroup", "has nothing to set limits on")
TWICE = Difference("containerd's", "leaves it to the runtime to refuse a second Create: UNKNOWN")
CLOSE_IO = Difference("containerd's", "answers UNKNOWN to CloseIO of an exec that is not there")
INIT_EXIT_FIRST = Difference("containerd 1.6", "may tell the container's exit before its execs'")
LATE_EVENTS = Difference("containerd's", "sends what the daemon missed in any order")
DELETE_RACE = Difference("containerd's", "the second Delete at once may answer UNKNOWN")
NO_PID = Difference("containerd 1.6", "does not tell in delete which process it was")
STREAM_IDS = Difference("containerd 1.6", "takes a stream's id that is lower than the last")
ORPHANED_SOCKET = Difference(
    "containerd's", "leaves the socket of a shim that was killed to the next start to remove"
)
NO_RUNTIME_FILE = Difference("containerd 1.x", "delete fails where there never was a container")
GROUP_SOCKET = Difference("containerd 2.x", "leaves the socket of a group's shim")
DATA_PANIC = Difference(
    "containerd 1.7 and 2.x", "the shim panics when data comes on a stream that there is not"
)
SECOND_START_PANIC = Difference(
    "containerd 1.7 and 2.x",
    "the shim panics at the end of a container with an exec whose second Start was refused",
)
