"""A process that has imported all shims in Python, and forks one for each call of a command line.

The daemon starts it (``python -P -m taskd.shim.warm FD``) and sends it calls. It ends with the
daemon. It has no threads and no event loop, so a fork of it is as good as a process of its own;
what it forks goes on by itself, and shares its memory.
"""

from __future__ import annotations

import base64
import contextlib
import ctypes
import gc
import io
import json
import os
import select
import signal
import socket
import sys
import traceback
from typing import Any, NoReturn

from taskd import inherited

# What every shim needs as soon as it is forked.
from taskd.plugins import executable, installed
from taskd.shim import serving  # noqa: F401 - what serves is imported before the fork
from taskd.shim.command import Call, main
from taskd.shim.container import Container
from taskd.shim.rehearsal import rehearse

__all__ = ["MAX_REQUEST"]

SPARES = 2
"""Processes that are forked already, and wait for a call."""
_PR_SET_PDEATHSIG = 1
MAX_REQUEST = 1 << 20
"""Bytes of a call at most, as the socket takes it in one piece."""


def serve(control: socket.socket) -> None:
    """Fork for each call that comes, until the daemon hangs up."""
    inherited.take()
    shims = _load()
    _rehearse()
    control.send(json.dumps([str(path) for path in shims]).encode())
    # Nobody asks how they end.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    # The pages of what will never be garbage are not to be written to in every fork.
    gc.collect()
    gc.freeze()
    taken, take = os.pipe()
    ready = select.poll()
    ready.register(taken, select.POLLIN)
    ready.register(control, 0)  # the daemon hangs up
    spares = 0
    while True:
        while spares < SPARES:
            if os.fork() == 0:
                os.close(taken)
                _wait_for_call(shims, control, take)
            spares += 1
        events = dict(ready.poll())
        if control.fileno() in events:
            return
        spares -= len(os.read(taken, SPARES))


def _wait_for_call(
    shims: dict[str, tuple[str, type[Container]]], control: socket.socket, take: int
) -> NoReturn:
    """Be a spare process: it takes one call, and becomes that call's process."""
    _die_with_parent(signal.SIGKILL)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    _rehearse(again=True)
    request, descriptors, _, _ = socket.recv_fds(control, MAX_REQUEST, 1)
    if not request:
        os._exit(0)
    os.write(take, b"x")
    os.close(take)
    control.close()
    _die_with_parent(0)
    _answer(shims, json.loads(request), descriptors[0])


def _rehearse(*, again: bool = False) -> None:
    """What does not succeed here takes its time in earnest: it is no reason to be of no use."""
    try:
        rehearse(again=again)
    except Exception:
        traceback.print_exc()


def _die_with_parent(number: int) -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0)


def _load() -> dict[str, tuple[str, type[Container]]]:
    """Name and class of each shim, by the path of its executable."""
    found = {}
    for name, entry in installed().items():
        try:
            found[str(executable(name).resolve())] = name, entry.load()
        except Exception:  # it can be run only by itself, and will say why
            traceback.print_exc()
    return found


def _answer(
    shims: dict[str, tuple[str, type[Container]]], request: dict[str, Any], descriptor: int
) -> NoReturn:
    """Be the process of one call."""
    status = 1
    errors = io.StringIO()

    def reply(status: int, output: bytes) -> None:
        text = {
            "status": status,
            "output": base64.b64encode(output).decode(),
            "errors": errors.getvalue(),
        }
        with contextlib.suppress(OSError), socket.socket(fileno=descriptor) as connection:
            connection.sendall(json.dumps(text).encode())

    replied = False

    def answer(output: bytes) -> None:
        nonlocal replied
        replied = True
        reply(0, output)

    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        with contextlib.redirect_stderr(errors):
            path, *arguments = request["command"]
            name, kind = shims[path]
            os.chdir(request["cwd"])
            os.environ.update(request["env"])
            given = base64.b64decode(request["stdin"])
            status = main(kind, name, Call(arguments, lambda: given, answer, forks=False))
    except BaseException:
        traceback.print_exc(file=errors)
    finally:
        if not replied:
            reply(status, b"")
        os._exit(status)


if __name__ == "__main__":
    # Without a traceback if the daemon has ended meanwhile.
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        serve(socket.socket(fileno=int(sys.argv[1])))
