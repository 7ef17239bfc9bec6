"""Containers and images from the shell: Docker's words and flags, where Docker has them."""

from __future__ import annotations

import argparse
from collections.abc import Awaitable, Callable
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

from taskd.cli.numbers import count, port
from taskd.cli.parsers import Add, Fill
from taskd.extras import missing

__all__ = ["add"]

Run = Callable[[Callable[..., Awaitable[int]], argparse.Namespace], int]


class Room(NamedTuple):
    """What a command is, where its coroutine is, and what gives its parser the arguments."""

    module: str
    function: str
    help: str
    fill: Fill


def add(add_parser: Add, run: Run) -> None:
    """Add the commands; `run` is what runs their coroutines."""
    for name, room in _ROOMS.items():
        add_parser(name, room.help, partial(_fill, name, room, run))


def _fill(name: str, room: Room, run: Run, parser: argparse.ArgumentParser) -> None:
    parser.description = room.help
    parser.add_argument("--address", metavar="SOCKET", help="the daemon's gRPC socket")
    parser.add_argument("--namespace", metavar="NAME", help="CONTAINERD_NAMESPACE, or default")
    parser.set_defaults(command=partial(_start, name, room.module, room.function, run))
    room.fill(parser)
    if name == "shims":
        _add_renew(parser, run)


def _start(name: str, module: str, function: str, run: Run, options: argparse.Namespace) -> int:
    try:
        loaded = import_module(f"taskd.cli.{module}")
    except ImportError as exc:
        if name != "top":
            raise
        raise missing(f"taskd {name}", "textual", "top", exc) from exc
    return run(getattr(loaded, function), options)


def _add_exec(parser: argparse.ArgumentParser) -> None:
    _add_process(parser)
    parser.add_argument("container", metavar="CONTAINER", help="one that runs")
    parser.add_argument(
        "args", nargs=argparse.REMAINDER, metavar="COMMAND", help="with its arguments"
    )


def _add_attach(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--no-stdin", action="store_true", help="only read")
    parser.add_argument("container", metavar="CONTAINER", help="one that runs")


def _add_stats(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--no-stream", action="store_true", help="once")
    parser.add_argument("--json", action="store_true", help="print a JSON object for each")
    parser.add_argument(
        "containers", nargs="*", metavar="CONTAINER", help="all that run, by default"
    )


def _add_shims(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--no-trunc", action="store_true", help="do not shorten")
    parser.add_argument("--json", action="store_true", help="print a JSON object for each")


def _add_renew(shims: argparse.ArgumentParser, run: Run) -> None:
    renew = shims.add_subparsers(metavar="ACTION").add_parser(
        "renew",
        help="have fresh processes go on",
        description="Have fresh processes go on with the containers, one after the other, without "
        "stopping any.",
        argument_default=argparse.SUPPRESS,  # what stands before it counts as well
    )
    renew.add_argument("--address", metavar="SOCKET", help="the daemon's gRPC socket")
    renew.add_argument("--namespace", metavar="NAME", help="CONTAINERD_NAMESPACE, or default")
    renew.add_argument("--json", action="store_true", help="print a JSON object for each")
    renew.add_argument(
        "shims", nargs="*", metavar="PID|TASK", help="as taskd shims has them; all if none is named"
    )
    renew.set_defaults(command=partial(_start, "shims renew", "processes", "renew", run))


def _add_kill_shim(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("pids", nargs="+", type=int, metavar="PID", help="as taskd shims has it")


def _add_top(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--delay", type=float, default=1.0, metavar="SECONDS", help="(1)")


def _add_ui(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-n", dest="namespace", metavar="NAME", help="the same as --namespace")
    parser.add_argument(
        "--port", type=port, default=0, metavar="N", help="of 127.0.0.1; a free one"
    )
    parser.add_argument("--no-open", action="store_true", help="only print its link")


def _add_images(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-q", "--quiet", action="store_true", help="only names")
    parser.add_argument("--json", action="store_true", help="print a JSON object for each")


def _add_stop(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        *("-t", "--time"), type=float, default=10.0, metavar="SECONDS", help="that they have (10)"
    )
    parser.add_argument("-s", "--signal", default="TERM", help="what they are asked with (TERM)")
    _add_names(parser)


def _add_kill(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-s", "--signal", default="KILL", help="by name or number (KILL)")
    _add_names(parser)


def _add_rm(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-f", "--force", action="store_true", help="those that run as well")
    _add_names(parser)


def _add_pull(parser: argparse.ArgumentParser) -> None:
    _add_registry(parser)
    parser.add_argument(
        "images", nargs="+", metavar="IMAGE", help="such as registry.example/team/image:1"
    )


def _add_push(parser: argparse.ArgumentParser) -> None:
    _add_registry(parser)
    parser.add_argument("image", metavar="IMAGE", help="one that is there")
    parser.add_argument("reference", nargs="?", metavar="REFERENCE", help="where; its name")


def _add_load(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-i", "--input", type=Path, required=True, metavar="FILE", help="a tar")
    parser.add_argument("--name", default="", metavar="NAME", help="instead of the one in it")


def _add_save(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE", help="a tar")
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="those that are to be in it")


def _add_tag(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="IMAGE", help="its name")
    parser.add_argument("target", metavar="NAME", help="the new one")


def _add_cp(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="SOURCE", help="PATH, or CONTAINER:PATH")
    parser.add_argument("target", metavar="TARGET", help="the other of the two")


def _add_rmi(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="their names")


def _add_registry(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--user", metavar="USER[:PASSWORD]", help="without one you are asked")
    parser.add_argument("--plain-http", action="store_true", help="without TLS")
    parser.add_argument(
        "--hosts-dir", metavar="DIR", help="of hosts.toml, as in /etc/containerd/certs.d"
    )
    parser.add_argument("-q", "--quiet", action="store_true", help="do not show how far it is")


def _add_names(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("containers", nargs="+", metavar="CONTAINER", help="their names")


def _add_process(parser: argparse.ArgumentParser) -> None:
    """What ``run`` and ``exec`` have in common."""
    parser.add_argument("-d", "--detach", action="store_true", help="let it run, and return")
    parser.add_argument("-i", "--interactive", action="store_true", help="give it our input")
    parser.add_argument("-t", "--tty", action="store_true", help="give it a terminal")
    _add_many(parser, ("-e", "--env"), "NAME=VALUE", "environment; NAME alone has our value")
    parser.add_argument(
        "--env-file", action="append", default=[], type=Path, metavar="FILE", help="lines of such"
    )
    parser.add_argument("-u", "--user", metavar="USER[:GROUP]", help="by names or numbers")
    parser.add_argument("-w", "--workdir", metavar="DIR", help="working folder")


def _add_run(parser: argparse.ArgumentParser) -> None:
    _add_process(parser)
    parser.add_argument("--name", metavar="NAME", help="of the container; made up by default")
    parser.add_argument("--rm", action="store_true", help="remove it when it has ended")
    _add_many(parser, ("-v", "--volume"), "SOURCE:DEST[:ro]", "what of this machine it has")
    _add_many(parser, ("--tmpfs",), "DEST[:OPTIONS]", "a tmpfs in it")
    _add_many(parser, ("-l", "--label"), "NAME=VALUE", "of the container")
    _add_many(parser, ("--annotation",), "NAME=VALUE", "of its specification")
    parser.add_argument("--network", choices=("none", "host"), default="none", help="(none)")
    parser.add_argument("--hostname", metavar="NAME", help="its name for itself")
    parser.add_argument("--read-only", action="store_true", help="its root filesystem is")
    parser.add_argument("-m", "--memory", metavar="SIZE", help="as in 64m")
    parser.add_argument("--memory-swap", metavar="SIZE", help="memory and swap together")
    parser.add_argument("--cpus", type=float, metavar="N", help="as in 0.5")
    parser.add_argument(
        "-c", "--cpu-shares", type=int, metavar="N", help="weight among others, 1024"
    )
    parser.add_argument("--cpuset-cpus", metavar="LIST", help="as in 0-2,4")
    parser.add_argument("--pids-limit", type=int, metavar="N", help="processes at most")
    parser.add_argument(
        "--pull", choices=("always", "missing", "never"), default="missing", help="(missing)"
    )
    parser.add_argument("--runtime", metavar="NAME", help="as in io.containerd.runc.v2")
    parser.add_argument("--snapshotter", metavar="NAME", help="overlayfs by default")
    parser.add_argument("source", metavar="IMAGE|DIR", help="an image, or a root filesystem")
    parser.add_argument(
        "args", nargs=argparse.REMAINDER, metavar="COMMAND", help="instead of the image's"
    )


def _add_ps(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-a", "--all", action="store_true", help="those that do not run as well")
    parser.add_argument("-q", "--quiet", action="store_true", help="only names")
    _add_many(parser, ("-f", "--filter"), "KEY=VALUE", "status, name, id, label, ancestor, exited")
    parser.add_argument("--no-trunc", action="store_true", help="do not shorten")
    parser.add_argument("--json", action="store_true", help="print a JSON object for each")


def _add_logs(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-f", "--follow", action="store_true", help="go on until it has ended")
    parser.add_argument("-n", "--tail", type=count, metavar="N", help="only the last lines")
    parser.add_argument("--since", metavar="WHEN", help="a time (RFC 3339), or so long ago")
    parser.add_argument("-t", "--timestamps", action="store_true", help="when it was written")
    parser.add_argument("container", metavar="CONTAINER", help="its name")


def _add_many(
    parser: argparse.ArgumentParser,
    flags: tuple[str, ...],
    metavar: str,
    help: str,  # noqa: A002
) -> None:
    parser.add_argument(*flags, action="append", default=[], metavar=metavar, help=help)


_ROOMS = {
    "run": Room("running", "run", "make a container and start it", _add_run),
    "exec": Room("running", "execute", "run one more process in a container", _add_exec),
    "start": Room("running", "start", "start what was made and not started", _add_names),
    "attach": Room("running", "attach", "read and write a container's streams", _add_attach),
    "ps": Room("looking", "ps", "list containers", _add_ps),
    "inspect": Room("looking", "inspect", "print all that is known, as JSON", _add_names),
    "logs": Room("looking", "logs", "print what a container has written", _add_logs),
    "stats": Room("looking", "stats", "show what containers use", _add_stats),
    "shims": Room("processes", "shims", "list the processes of shims", _add_shims),
    "kill-shim": Room("processes", "kill", "kill processes of shims", _add_kill_shim),
    "top": Room("top.app", "top", "watch tasks, and act on them", _add_top),
    "ui": Room("ui", "ui", "serve a page to watch tasks on, and act on them", _add_ui),
    "images": Room("looking", "images", "list images", _add_images),
    "stop": Room("acting", "stop", "ask containers to end, and then make them", _add_stop),
    "kill": Room("acting", "kill", "send containers a signal", _add_kill),
    "rm": Room("acting", "rm", "remove containers", _add_rm),
    "pause": Room("acting", "pause", "freeze containers", _add_names),
    "unpause": Room("acting", "unpause", "let them go on", _add_names),
    "wait": Room("acting", "wait", "wait until containers end; print how", _add_names),
    "pull": Room("moving", "pull", "fetch images from their registries", _add_pull),
    "push": Room("moving", "push", "give a registry an image", _add_push),
    "load": Room("moving", "load", "take images from an archive", _add_load),
    "save": Room("moving", "save", "write images to an archive", _add_save),
    "tag": Room("moving", "tag", "give an image one more name", _add_tag),
    "cp": Room("moving", "cp", "copy files into a container, or out of it", _add_cp),
    "rmi": Room("acting", "rmi", "remove images", _add_rmi),
}
