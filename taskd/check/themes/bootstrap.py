"""The command line: ``start``, ``delete`` where there is nothing, and what a shim tells of itself.

Source: containerd's ``runtime/v2/README.md`` and ``runtime/v2/shim/shim.go``.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from taskd.check import differences
from taskd.check.case import Case
from taskd.check.programs import EXIT
from taskd.check.registry import Difference, Failed, Missing, Theme
from taskd.check.shim import Task
from taskd.codec import MalformedMessage, decode
from taskd.proto.containerd.types import RuntimeInfo
from taskd.runtime.bundle import Bundle
from taskd.runtime.request import Form, is_message

theme = Theme("bootstrap")

_NO_OLD = differences.NO_OLD_DAEMONS


async def _starts(case: Case, max_version: str, newest: int) -> None:
    bundle = case.bundle(command=EXIT(3))
    shim = await case.start_shim(bundle, max_version=max_version, form=Form.OPTIONS)
    if shim.bootstrap.version > newest:
        case.true(
            shim.bootstrap.version == 3,
            f"start with MAX_SHIM_VERSION={max_version or 'unset'}",
            f"version {newest} at most",
            str(shim.bootstrap.version),
        )
        case.known(differences.VERSION_3)
    task = Task(shim, bundle)
    await task.create()
    await task.start()
    case.equal("Wait", 3, await task.wait())
    await task.delete()


@theme.check("start for a daemon that knows a bare address (containerd 1.6)")
async def _(case: Case) -> None:
    await _starts(case, "", 2)


@theme.check("start for a daemon that knows version 2 (MAX_SHIM_VERSION=2)")
async def _(case: Case) -> None:
    await _starts(case, "2", 2)


@theme.check("start for a daemon that knows version 3 (MAX_SHIM_VERSION=3)")
async def _(case: Case) -> None:
    await _starts(case, "3", 3)


async def _start_two(
    case: Case, given: Callable[[Bundle], bytes], refusal: str, refuses: Difference
) -> None:
    """Start shims for two containers, which are to be two, and know their containers' ids."""
    shims = []
    for id in ("one", "two"):  # noqa: A001
        bundle = case.bundle(id)
        done = await case.start(bundle, given(bundle))
        if done.returncode and refusal in (done.stdout + done.stderr).decode(errors="replace"):
            case.known(refuses)
            return
        shims.append(await case.shim_at(bundle, case.bootstrap(done)))
    one, two = shims
    if one is two:
        case.true(is_message(done.stdout), "start for two containers", "two shims", "one for both")
        case.known(differences.OPTIONS_FOR_PARAMETERS)
    for shim in {one, two}:
        await shim.shut_down()
        case.true(await shim.ends(), "Shutdown", "the end of the shim", "none")


@theme.check("start with options, as daemons before containerd 2.3 give them")
async def _(case: Case) -> None:
    options = case.subject.options_input()
    await _start_two(case, lambda bundle: options, "built against the new", _NO_OLD)


@theme.check("start with nothing to read, as they do without options")
async def _(case: Case) -> None:
    await _start_two(case, lambda bundle: b"", "built against the new", _NO_OLD)


@theme.check("start with parameters, as containerd 2.3 and later give them")
async def _(case: Case) -> None:
    await _start_two(
        case,
        lambda bundle: case.start_input(bundle, Form.PARAMETERS),
        "type with url",
        differences.NO_NEW_DAEMONS,
    )


@theme.check("start notes the address in the bundle, for a daemon that comes back")
async def _(case: Case) -> None:
    bundle = case.bundle()
    shim = await case.start_shim(bundle)
    try:
        noted = (bundle.path / "address").read_text()
    except FileNotFoundError:
        case.true(shim.bootstrap.version > 2, "start", "the file address", "none")
        case.known(differences.NO_ADDRESS_FILE)
    else:
        case.equal("the file address", shim.bootstrap.address, noted)


@theme.check("start for a shim that runs answers its address, and starts no other")
async def _(case: Case) -> None:
    bundle = case.bundle()
    shim = await case.start_shim(bundle)
    again = await case.answer_to_start(bundle)
    case.equal("start once more", shim.bootstrap.address, again.address)
    shims = [pid for pid, command in case.processes() if "-namespace" in command]
    case.equal("start once more", [shim.pid], shims)


@theme.check("the socket that a killed shim has left is no obstacle for start")
async def _(case: Case) -> None:
    bundle = case.bundle()
    shim = await case.start_shim(bundle)
    await shim.kill()
    again = await case.start_shim(bundle)
    case.true(again.pid != shim.pid, "start after kill -9", "another shim", "the same")


def _check_modes(case: Case, socket: Path) -> None:
    mode, folder = (each.stat().st_mode & 0o077 for each in (socket, socket.parent))
    called = f"the mode of {socket}"
    case.true(not mode or not folder, called, "nothing for group and others", f"{mode:o}")


@theme.check("nobody but its owner can connect to the socket")
async def _(case: Case) -> None:
    shim = await case.start_shim(case.bundle())
    if shim.socket.startswith(("@", "\0")):
        case.true(False, "start", "a socket in the file system", shim.bootstrap.address)
    _check_modes(case, Path(shim.socket))


@theme.check("the shim is in a process group of its own")
async def _(case: Case) -> None:
    shim = await case.start_shim(case.bundle())
    group = os.getpgid(shim.pid)
    case.true(group != os.getpgid(0), "start", "a group of its own", "that of its caller")


@theme.check("start without a namespace is refused")
async def _(case: Case) -> None:
    bundle = case.bundle()
    done = await case.run(bundle, "-id", bundle.id, "start", namespace="")
    case.true(done.returncode != 0, "start with -namespace ''", "a failure", "success")


@theme.check("an unknown command is refused")
async def _(case: Case) -> None:
    bundle = case.bundle()
    done = await case.run(bundle, "-id", bundle.id, "-no-such-flag", "start")
    case.true(done.returncode != 0, "-no-such-flag start", "a failure", "success")


@theme.check("-v tells its version")
async def _(case: Case) -> None:
    done = await case.run(case.bundle(), "-v")
    case.equal("-v", 0, done.returncode)
    case.true(done.stdout.strip(), "-v", "some words", "none")


@theme.check("-info tells about the runtime (containerd 2.x)", about="-info")
async def _(case: Case) -> None:
    done = await case.run(case.bundle(), "-info", stdin=case.subject.options_input())
    if done.returncode:
        raise Missing("-info")
    try:
        info = decode(RuntimeInfo, done.stdout)
    except MalformedMessage as exc:
        raise Failed("-info", "a RuntimeInfo", str(exc)) from exc
    case.true(info.name, "-info", "a name", "none")


@theme.check("delete in a bundle that never had a container is harmless")
async def _(case: Case) -> None:
    bundle = case.bundle()
    try:
        await case.clean_up(bundle)
    except Failed as exc:
        if "runtime: no such file" not in exc.came:
            raise
        case.known(differences.NO_RUNTIME_FILE)
