"""What generations of containerd's shims, and others, are known to do otherwise than the rest."""

from __future__ import annotations

from taskd.check.registry import Difference

__all__ = ["DIFFERENCES"]

_GO, _RECENT, _NEW = "containerd's", "containerd 1.7 and 2.x", "containerd 2.x"

VERSION_3 = Difference(_NEW, "answers version 3 whatever the daemon knows")
OPTIONS_FOR_PARAMETERS = Difference(
    "containerd 2.3", "takes an older daemon's options for parameters: one shim for all containers"
)
NO_OLD_DAEMONS = Difference("containerd 2.4", "refuses to be started by a daemon before 2.3")
NO_NEW_DAEMONS = Difference("containerd 1.6", "refuses to be started by a daemon of 2.3 and later")
NO_ADDRESS_FILE = Difference(_NEW, "leaves it to the daemon to note the address")
NO_RUNTIME_FILE = Difference("containerd 1.x", "delete fails where there never was a container")
TWICE = Difference(_GO, "leaves it to the runtime to refuse a second Create: UNKNOWN")
COLLISION = Difference(_GO, "several Creates of one id at once may leave no container")
CLOSE_IO = Difference(_GO, "answers UNKNOWN to CloseIO of an exec that is not there")
ONE_FILE = Difference(_GO, "may lose the last of one stream when both go to one file")
LATE_EVENTS = Difference(_GO, "sends what the daemon missed in any order")
STREAM_IDS = Difference("containerd 1.6", "takes a stream's id that is lower than the last")
ORPHANED_SOCKET = Difference(
    _GO, "leaves the socket of a shim that was killed to the next start to remove"
)
GROUP_SOCKET = Difference(_NEW, "leaves the socket of a group's shim")
SANDBOX_PAUSE = Difference("containerd 1.7", "tells nothing of a sandbox, and is not waited for")
SANDBOX_STOP = Difference("containerd 1.7", "ends when a sandbox is to stop")
DATA_PANIC = Difference(_RECENT, "panics when data comes on a stream that there is not")
SECOND_START_PANIC = Difference(
    _RECENT, "panics at the end of a container with an exec whose second Start was refused"
)
NO_PROCESS_YET = Difference("a shim that begins in Start", "has no process to kill before")
NO_CGROUP = Difference("a shim without a cgroup", "has nothing to set limits on")

DIFFERENCES = [each for each in vars().values() if isinstance(each, Difference)]
