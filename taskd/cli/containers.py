"""Containers and images from the shell: Docker's words and flags, where Docker has them."""

from __future__ import annotations

import argparse
from collections.abc import Awaitable, Callable
from importlib import import_module
from pathlib import Path

from taskd.cli.numbers import count, port
from taskd.extras import missing

__all__ = ["add"]

Run = Callable[[Callable[..., Awaitable[int]], argparse.Namespace], int]


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser], run: Run) -> None:
    """Add the commands; `run` is what runs their coroutines."""

    def command(name: str, room: str, function: str, help: str) -> argparse.ArgumentParser:  # noqa: A002
        parser: argparse.ArgumentParser = commands.add_parser(name, help=help, description=help)
        parser.add_argument("--address", metavar="SOCKET", help="the daemon's gRPC socket")
        parser.add_argument("--namespace", metavar="NAME", help="CONTAINERD_NAMESPACE, or default")

        runs(parser, name, room, function)
        return parser

    def runs(parser: argparse.ArgumentParser, name: str, room: str, function: str) -> None:
        def start(options: argparse.Namespace) -> int:
            try:
                module = import_module(f"taskd.cli.{room}")
            except ImportError as exc:
                if name != "top":
                    raise
                raise missing(f"taskd {name}", "textual", "top", exc) from exc
            return run(getattr(module, function), options)

        parser.set_defaults(command=start)

    _add_run(command("run", "running", "run", "make a container and start it"))
    execute = command("exec", "running", "execute", "run one more process in a container")
    _add_process(execute)
    execute.add_argument("container", metavar="CONTAINER", help="one that runs")
    execute.add_argument(
        "args", nargs=argparse.REMAINDER, metavar="COMMAND", help="with its arguments"
    )
    _add_names(command("start", "running", "start", "start what was made and not started"))
    attach = command("attach", "running", "attach", "read and write a container's streams")
    attach.add_argument("--no-stdin", action="store_true", help="only read")
    attach.add_argument("container", metavar="CONTAINER", help="one that runs")

    _add_ps(command("ps", "looking", "ps", "list containers"))
    _add_names(command("inspect", "looking", "inspect", "print all that is known, as JSON"))
    _add_logs(command("logs", "looking", "logs", "print what a container has written"))
    stats = command("stats", "looking", "stats", "show what containers use")
    stats.add_argument("--no-stream", action="store_true", help="once")
    stats.add_argument("--json", action="store_true", help="print a JSON object for each")
    stats.add_argument(
        "containers", nargs="*", metavar="CONTAINER", help="all that run, by default"
    )
    shims = command("shims", "processes", "shims", "list the processes of shims")
    shims.add_argument("--no-trunc", action="store_true", help="do not shorten")
    shims.add_argument("--json", action="store_true", help="print a JSON object for each")
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
    runs(renew, "shims renew", "processes", "renew")
    kill_shim = command("kill-shim", "processes", "kill", "kill processes of shims")
    kill_shim.add_argument("pids", nargs="+", type=int, metavar="PID", help="as taskd shims has it")
    top = command("top", "top.app", "top", "watch tasks, and act on them")
    top.add_argument("--delay", type=float, default=1.0, metavar="SECONDS", help="(1)")
    ui = command("ui", "ui", "ui", "serve a page to watch tasks on, and act on them")
    ui.add_argument("-n", dest="namespace", metavar="NAME", help="the same as --namespace")
    ui.add_argument("--port", type=port, default=0, metavar="N", help="of 127.0.0.1; a free one")
    ui.add_argument("--no-open", action="store_true", help="only print its link")
    images = command("images", "looking", "images", "list images")
    images.add_argument("-q", "--quiet", action="store_true", help="only names")
    images.add_argument("--json", action="store_true", help="print a JSON object for each")

    stop = command("stop", "acting", "stop", "ask containers to end, and then make them")
    stop.add_argument(
        *("-t", "--time"), type=float, default=10.0, metavar="SECONDS", help="that they have (10)"
    )
    stop.add_argument("-s", "--signal", default="TERM", help="what they are asked with (TERM)")
    _add_names(stop)
    kill = command("kill", "acting", "kill", "send containers a signal")
    kill.add_argument("-s", "--signal", default="KILL", help="by name or number (KILL)")
    _add_names(kill)
    remove = command("rm", "acting", "rm", "remove containers")
    remove.add_argument("-f", "--force", action="store_true", help="those that run as well")
    _add_names(remove)
    _add_names(command("pause", "acting", "pause", "freeze containers"))
    _add_names(command("unpause", "acting", "unpause", "let them go on"))
    _add_names(command("wait", "acting", "wait", "wait until containers end; print how"))
    pull = command("pull", "moving", "pull", "fetch images from their registries")
    _add_registry(pull)
    pull.add_argument(
        "images", nargs="+", metavar="IMAGE", help="such as registry.example/team/image:1"
    )
    push = command("push", "moving", "push", "give a registry an image")
    _add_registry(push)
    push.add_argument("image", metavar="IMAGE", help="one that is there")
    push.add_argument("reference", nargs="?", metavar="REFERENCE", help="where; its name")
    load = command("load", "moving", "load", "take images from an archive")
    load.add_argument("-i", "--input", type=Path, required=True, metavar="FILE", help="a tar")
    load.add_argument("--name", default="", metavar="NAME", help="instead of the one in it")
    save = command("save", "moving", "save", "write images to an archive")
    save.add_argument("-o", "--output", type=Path, required=True, metavar="FILE", help="a tar")
    save.add_argument("images", nargs="+", metavar="IMAGE", help="those that are to be in it")
    tag = command("tag", "moving", "tag", "give an image one more name")
    tag.add_argument("source", metavar="IMAGE", help="its name")
    tag.add_argument("target", metavar="NAME", help="the new one")
    copy = command("cp", "moving", "cp", "copy files into a container, or out of it")
    copy.add_argument("source", metavar="SOURCE", help="PATH, or CONTAINER:PATH")
    copy.add_argument("target", metavar="TARGET", help="the other of the two")
    rmi = command("rmi", "acting", "rmi", "remove images")
    rmi.add_argument("images", nargs="+", metavar="IMAGE", help="their names")


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
