"""What a process of ours was started with, and gives to what it starts in turn.

As Go has it, the soft limit of open files is raised to the hard one, and children get the old one.
And what was ignored when we began (``nohup``, a shell's ``&``) is not ignored in children, or a
container could not be interrupted for the way in which the daemon was started.
"""

from __future__ import annotations

import os
import resource
import signal
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import subprocess

__all__ = ["popen", "restore", "take"]

_PYTHONS = {signal.SIGPIPE, signal.SIGXFSZ}
"""Ignored by Python itself, which resets them in what it starts."""
_DEFAULT = {signal.SIGCHLD, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU}
"""What is not to be ignored in this process either."""
_ENDING = {signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGKILL}
_FAULTS = {signal.SIGILL, signal.SIGTRAP, signal.SIGABRT, signal.SIGBUS, signal.SIGFPE}
_FAULTS |= {signal.SIGSEGV, signal.SIGSTKFLT, signal.SIGSYS}
_OUTLIVED = signal.valid_signals() - _PYTHONS - _DEFAULT - _ENDING - _FAULTS - {signal.SIGSTOP}
"""What must not end a daemon, nor a shim with its containers: as in Go, and SIGHUP besides."""
_SPARE = 64
"""Descriptors that may be opened while a program is started with the old limit."""

_umask = -1
_files: int | None = None
"""The soft limit of open files before it was raised."""
_starting = threading.Lock()


def take(*, umask: int | None = None) -> None:
    """Do first what a process has to do that goes on for long. Further calls do nothing new.

    Raises the limit of open files, gives up what is ignored, takes signals that are neither to end
    it nor a fault of its own, and with `umask` sets that.
    """
    global _umask, _files
    if umask is not None and _umask < 0:
        _umask = os.umask(umask)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard and _files is None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        _files = soft
    for number in signal.valid_signals() - _PYTHONS:
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL if number in _DEFAULT else _pass)
    for number in _OUTLIVED:
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, _pass)


def restore() -> None:
    """Be as this process was started. For a fork that is about to be another program."""
    if _umask >= 0:
        os.umask(_umask)
    if _files is not None:
        _limit(_files)
    for number in signal.valid_signals():
        if signal.getsignal(number) not in (signal.SIG_DFL, None):
            signal.signal(number, signal.SIG_DFL)


def popen(command: Sequence[str], **options: Any) -> subprocess.Popen[bytes]:
    """Start a program, as `subprocess.Popen` does, with what this process was started with."""
    from subprocess import Popen

    options.setdefault("umask", _umask)
    if _files is None:
        return Popen(command, **options)
    with _starting:
        # A limit is one of the whole process: nobody may run into the old one meanwhile. What is
        # open already may have any number.
        if _lowest_free() + _SPARE < _files:
            _limit(_files)
            try:
                return Popen(command, **options)
            finally:
                _limit(resource.getrlimit(resource.RLIMIT_NOFILE)[1])
    import shutil

    _find(command[0], options.get("cwd"), options.get("env"))
    prlimit = shutil.which("prlimit", path=os.defpath) or "prlimit"
    return Popen([prlimit, f"--nofile={_files}:", "--", *command], **options)


def _pass(number: int, frame: FrameType | None) -> None:
    """Unlike SIG_IGN, a handler is not inherited."""


def _limit(soft: int) -> None:
    resource.setrlimit(
        resource.RLIMIT_NOFILE, (soft, resource.getrlimit(resource.RLIMIT_NOFILE)[1])
    )


def _lowest_free() -> int:
    descriptor = os.open("/", os.O_PATH | os.O_CLOEXEC)
    os.close(descriptor)
    return descriptor


def _find(program: str, cwd: str | os.PathLike[str] | None, env: Mapping[str, str] | None) -> None:
    """Raise what `subprocess.Popen` raises for a program that there is not."""
    import shutil

    if "/" in program:
        os.stat(Path(cwd or "", program))  # noqa: PTH116 - for its error
    elif shutil.which(program, path=os.pathsep.join(os.get_exec_path(env))) is None:
        raise FileNotFoundError(2, os.strerror(2), program)
