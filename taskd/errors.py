"""The domain's errors: one class for each error kind that containerd knows.

Every floor raises these and no other; `taskd.api` turns them into gRPC statuses and
`taskd.ttrpc` into ttrpc statuses, and `from_status` turns a shim's status back into one.

The texts are containerd's (its ``errdefs`` package): an error's message ends in its kind, so
``NotFound('container "a"')`` reads ``container "a": not found``.
"""

from __future__ import annotations

import enum
import errno

TYPE_CHECKING = False  # as of `typing`, which a shim's `delete` does without
if TYPE_CHECKING:
    from typing import ClassVar

__all__ = [
    "Aborted",
    "AlreadyExists",
    "Cancelled",
    "Code",
    "DataLoss",
    "DeadlineExceeded",
    "FailedPrecondition",
    "Internal",
    "InvalidArgument",
    "NotFound",
    "OutOfRange",
    "PermissionDenied",
    "ResourceExhausted",
    "TaskdError",
    "Unauthenticated",
    "Unavailable",
    "Unimplemented",
    "Unknown",
    "from_status",
    "of_system",
    "words",
]

_EXHAUSTED = {errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE, errno.ENOMEM}


class Code(enum.IntEnum):
    """gRPC's canonical status codes, which ttrpc shares."""

    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


class TaskdError(Exception):
    """Base of all errors that taskd raises on purpose.

    `message` is completed with the class's kind unless it already ends in it, or `verbatim`
    is set (for texts that containerd sends without the kind).
    """

    code: ClassVar[Code] = Code.UNKNOWN
    kind: ClassVar[str] = "unknown"

    def __init__(self, message: str = "", *, verbatim: bool = False) -> None:
        if not message:
            message = self.kind
        elif not verbatim and message != self.kind and not message.endswith(f": {self.kind}"):
            message = f"{message}: {self.kind}"
        if not message.isascii():
            # Names of files need not be UTF-8, but what travels has to be.
            message = message.encode(errors="backslashreplace").decode()
        self.message = message
        super().__init__(message)

    def within(self, doing: str) -> TaskdError:
        """The same error as seen by one who was `doing` something: ``doing: message``."""
        return type(self)(f"{doing}: {self.message}", verbatim=True)


class Cancelled(TaskdError):
    code = Code.CANCELLED
    kind = "context canceled"


class Unknown(TaskdError):
    """Any other failure; in the daemon's own words it carries no kind, as in containerd."""

    def __init__(self, message: str = "", *, verbatim: bool = True) -> None:
        super().__init__(message, verbatim=verbatim)


class InvalidArgument(TaskdError):
    code = Code.INVALID_ARGUMENT
    kind = "invalid argument"


class DeadlineExceeded(TaskdError):
    code = Code.DEADLINE_EXCEEDED
    kind = "context deadline exceeded"


class NotFound(TaskdError):
    code = Code.NOT_FOUND
    kind = "not found"


class AlreadyExists(TaskdError):
    code = Code.ALREADY_EXISTS
    kind = "already exists"


class PermissionDenied(TaskdError):
    code = Code.PERMISSION_DENIED
    kind = "permission denied"


class ResourceExhausted(TaskdError):
    code = Code.RESOURCE_EXHAUSTED
    kind = "resource exhausted"


class FailedPrecondition(TaskdError):
    code = Code.FAILED_PRECONDITION
    kind = "failed precondition"


class Aborted(TaskdError):
    code = Code.ABORTED
    kind = "aborted"


class OutOfRange(TaskdError):
    code = Code.OUT_OF_RANGE
    kind = "out of range"


class Unimplemented(TaskdError):
    code = Code.UNIMPLEMENTED
    kind = "not implemented"


class Internal(TaskdError):
    code = Code.INTERNAL
    kind = "internal"


class Unavailable(TaskdError):
    code = Code.UNAVAILABLE
    kind = "unavailable"


class DataLoss(TaskdError):
    code = Code.DATA_LOSS
    kind = "data loss"


class Unauthenticated(TaskdError):
    code = Code.UNAUTHENTICATED
    kind = "unauthenticated"


_BY_CODE: dict[int, type[TaskdError]] = {
    cls.code: cls for cls in TaskdError.__subclasses__() if "code" in vars(cls)
}


def from_status(code: int, message: str) -> TaskdError:
    """The error that a status received from a peer stands for; `Unknown` for a code without one."""
    return _BY_CODE.get(code, Unknown)(message, verbatim=False)


def of_system(exc: OSError) -> TaskdError:
    """What the system has refused: for want of room, or of descriptors, or something else."""
    return (ResourceExhausted if exc.errno in _EXHAUSTED else Unknown)(words(exc))


def words(exc: BaseException) -> str:
    """What an exception says of itself, or else its name: a TimeoutError, for one, says nothing.

    Of an error of the system the file, if any, and what is wrong with it, without the number.
    """
    if isinstance(exc, OSError) and exc.strerror:
        about = f"{exc.filename}: " if isinstance(exc.filename, str) else ""
        # A name that is no UTF-8 could not be sent.
        return f"{about.encode(errors='backslashreplace').decode()}{exc.strerror.lower()}"
    return str(exc) or type(exc).__name__
