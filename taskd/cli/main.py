"""Command lines to calls; no logic. A command loads what it needs: shims wait for ``publish``."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import taskd
from taskd.cli import containers, operate, shim
from taskd.cli.numbers import count
from taskd.cli.parsers import Commands, Parser
from taskd.errors import InvalidArgument, TaskdError, words
from taskd.extras import missing
from taskd.printable import printable

if TYPE_CHECKING:
    from taskd.nats.settings import NatsConfig

__all__ = ["command_line", "main"]

T = TypeVar("T")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status: 0, 1 for a failure, 2 for a bad command line."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    first = next((each for each in given if not each.startswith("-")), None)
    options = command_line(first).parse_args(given)
    try:
        return options.command(options) or 0
    except BrokenPipeError:
        # Who read what is printed has had enough; nothing must be printed at the end either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (TaskdError, OSError) as exc:
        print(f"taskd: {printable(words(exc))}", file=sys.stderr)
    except KeyboardInterrupt:
        pass
    return 1


def command_line(given: str | None = None) -> argparse.ArgumentParser:
    """All commands, with their arguments: what completion and the manual page are made of.

    Of one that is `given` only that.
    """
    parser = Parser(prog="taskd", description=taskd.__doc__)
    parser.add_argument("--version", action="version", version=f"taskd {taskd.__version__}")
    # Shims of containerd's first generations put --address before the command.
    parser.add_argument("--address", dest="daemon_address", help=argparse.SUPPRESS)
    commands = Commands(parser)
    commands.add("serve", "run the daemon", _add_serve)
    commands.add("publish", "publish the event on standard input", _add_publish)
    commands.add("events", "print what happens, and what has happened", _add_events)
    commands.add("trace", "show what clients, the daemon and shims say", _add_trace)
    containers.add(commands.add, _run)
    shim.add(commands.add, partial(_run, fast=True))
    operate.add(commands.add)
    commands.add("demo", "run one container in a daemon of its own", _add_demo)
    return commands.made(given)


def _add_serve(serve: argparse.ArgumentParser) -> None:
    from taskd.logs import LEVELS

    serve.set_defaults(command=_serve)
    serve.add_argument("--config", type=Path, metavar="FILE", help="TOML configuration")
    serve.add_argument("--root", type=Path, metavar="DIR", help="what outlives a reboot")
    serve.add_argument("--state", type=Path, metavar="DIR", help="what does not")
    serve.add_argument("--address", type=Path, metavar="SOCKET", help="where gRPC is served")
    serve.add_argument("--log-level", choices=LEVELS, metavar="LEVEL", help=", ".join(LEVELS))
    serve.add_argument(
        "--log-format", choices=("text", "json"), metavar="FORMAT", help="text, json"
    )
    serve.add_argument("--group", metavar="NAME", help="whose members may use the socket")


def _add_publish(publish: argparse.ArgumentParser) -> None:
    publish.set_defaults(command=_publish)
    publish.add_argument("--address", help="the daemon's gRPC socket")
    publish.add_argument("--namespace", default="default", help="of the event (default)")
    publish.add_argument("--topic", required=True, help="as in /tasks/exit")


def _add_events(events: argparse.ArgumentParser) -> None:
    events.set_defaults(command=_events)
    events.add_argument("--address", type=Path, metavar="SOCKET", help="the daemon's gRPC socket")
    since = events.add_mutually_exclusive_group()
    since.add_argument("--since", metavar="WHEN", help="from this time (RFC 3339), or so long ago")
    since.add_argument("--after", type=int, metavar="POSITION", help="from this position on")
    events.add_argument("--no-follow", action="store_true", help="end with what has happened")
    events.add_argument("--reconnect", action="store_true", help="go on when the daemon is back")
    events.add_argument("--config", type=Path, help="with [events.nats]: read the stream instead")
    events.add_argument("--nats", action="append", metavar="URL", help="read the stream there")
    events.add_argument("--stream", help="read this stream; TASKD without --config")
    events.add_argument(
        "--subject", metavar="TEMPLATE", help="what taskd's subjects are, as in [events.nats]"
    )
    events.add_argument("--json", action="store_true", help="print a JSON object for each event")
    events.add_argument(
        "filters", nargs="*", metavar="FILTER", help="""such as 'topic~="^/tasks/"'"""
    )


def _add_trace(trace: argparse.ArgumentParser) -> None:
    trace.description = (
        "Show each call of clients, of the daemon to shims and of shims to the daemon, with what "
        "was said and the time it took."
    )
    trace.set_defaults(command=_trace)
    trace.add_argument("--address", type=Path, metavar="SOCKET", help="the daemon's gRPC socket")
    trace.add_argument(
        "--namespace", default="", metavar="NAME", help="only what is about this one"
    )
    trace.add_argument("--slow", metavar="TIME", help="only calls that take so long, as in 100ms")
    trace.add_argument("--json", action="store_true", help="a JSON object for each begin and end")
    trace.add_argument("--whole", action="store_true", help="do not shorten messages")
    file = trace.add_mutually_exclusive_group()
    file.add_argument("--record", type=Path, metavar="FILE", help="write it down as well")
    file.add_argument("--play", type=Path, metavar="FILE", help="show what was written down")
    trace.add_argument("--limit", type=count, metavar="N", help="end after so many begins and ends")
    trace.add_argument("task", nargs="?", default="", metavar="TASK", help="only what is about it")


def _add_demo(demo: argparse.ArgumentParser) -> None:
    demo.set_defaults(command=_demo)


def _serve(options: argparse.Namespace) -> None:
    import gc
    from dataclasses import replace

    from taskd import inherited, logs

    gc.disable()  # until the daemon is up: what it is built of makes no garbage worth the time
    inherited.take(umask=0o077)

    from taskd import config
    from taskd.daemon import serve
    from taskd.service_manager import ServiceManager

    manager = ServiceManager.taken()

    given = {
        "root": options.root and options.root.absolute(),
        "state": options.state and options.state.absolute(),
        "address": options.address and options.address.absolute(),
        "log_level": options.log_level,
        "log_format": options.log_format,
    }
    settings = config.load(options.config, **{key: each for key, each in given.items() if each})
    if options.group:
        settings = replace(settings, grpc=replace(settings.grpc, gid=_group(options.group)))
    logs.set_up(settings.log_level, settings.log_format)
    if os.geteuid() != 0:
        logs.announce(f"with {settings.root} and {settings.state}")
    _run(serve, settings, manager, fast=True)


def _group(name: str) -> int:
    import grp

    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        raise InvalidArgument(f"--group: there is no group {name}", verbatim=True) from None


def _publish(options: argparse.Namespace) -> None:
    from taskd.cli.publish import publish
    from taskd.client.address import find

    address = find(options.address or options.daemon_address)
    publish(str(address), options.namespace, options.topic, sys.stdin.buffer.read())


def _events(options: argparse.Namespace) -> None:
    from taskd.cli.events import Start, events, moment
    from taskd.client.address import find

    since = moment(options.since) if options.since is not None else None
    shown = {
        "follow": not options.no_follow,
        "reconnect": options.reconnect,
        "as_json": options.json,
    }
    if options.nats or options.config or options.stream or options.subject:
        if options.after is not None:
            raise InvalidArgument("--after is a position in one machine's journal", verbatim=True)
        _run(partial(_import_fleet(), _nats(options), options.filters, since, **shown))
        return
    address = find(options.address or options.daemon_address)
    _run(partial(events, address, options.filters, Start(options.after, since), **shown))


def _trace(options: argparse.Namespace) -> None:
    from contextlib import closing

    from taskd.cli.trace import Shown, play, trace
    from taskd.client.address import find
    from taskd.durations import seconds

    try:
        slow = int(seconds(options.slow) * 1e9) if options.slow else 0
    except ValueError as exc:
        raise InvalidArgument(f"--slow: {exc}", verbatim=True) from None
    shown = Shown(slow, options.json, options.whole, record=options.record)
    if options.play:
        play(options.play, shown, options.namespace, options.task, options.limit)
        return
    address = find(options.address or options.daemon_address)
    with closing(shown):
        _run(trace, address, options.namespace, options.task, shown, options.limit)


def _nats(options: argparse.Namespace) -> NatsConfig:
    """``[events.nats]`` of the configuration, if one is named, and what the options say instead."""
    from dataclasses import replace

    from taskd import config
    from taskd.nats.settings import NatsConfig, Subjects

    settings = config.load(options.config).events.nats if options.config else None
    if settings is None:
        if not options.nats:
            raise InvalidArgument(
                "neither --nats nor [events.nats] says where NATS is", verbatim=True
            )
        settings = NatsConfig(tuple(options.nats))
    subject = options.subject or settings.subject
    try:
        Subjects(subject)
    except ValueError as exc:
        raise InvalidArgument(f"--subject: {exc}", verbatim=True) from None
    return replace(
        settings,
        servers=tuple(options.nats or settings.servers),
        stream=options.stream or settings.stream,
        subject=subject,
    )


def _import_fleet() -> Callable[..., Awaitable[None]]:
    try:
        from taskd.cli.fleet import fleet
    except ImportError as exc:
        raise missing("reading NATS", "nats-py", "nats", exc) from exc
    return fleet


def _demo(options: argparse.Namespace) -> None:
    from taskd.cli.demo import demo

    _run(demo, fast=True)


def _run(function: Callable[..., Awaitable[T]], *arguments: object, fast: bool = False) -> T:
    """Run a coroutine; `fast` is what goes on for long, and is worth the loading of uvloop."""
    import anyio

    if fast:
        try:
            import uvloop  # noqa: F401
        except ImportError:
            fast = False
    try:
        return anyio.run(function, *arguments, backend_options={"use_uvloop": fast})
    except BaseExceptionGroup as group:
        # What ends a task group alone is what there is to say, as if there were no group.
        alone: BaseException = group
        while isinstance(alone, BaseExceptionGroup) and len(alone.exceptions) == 1:
            alone = alone.exceptions[0]
        if isinstance(alone, TaskdError | OSError):
            raise alone from None
        raise
