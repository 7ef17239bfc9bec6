"""What is text: filters and the configuration file."""

from __future__ import annotations

import logging
import random
import tempfile
from pathlib import Path

from fuzz.session import Session, damaged
from taskd import config, filters
from taskd.errors import InvalidArgument
from taskd.events import Envelope
from taskd.events.matching import fields
from taskd.proto.containerd.events import TaskCreate, TaskIo
from taskd.wellknown import pack

__all__ = ["configuration", "filter_expressions"]

_TOKENS = (
    *("name", "labels", "event", "topic", "io", "terminal", "a", "_", "é", "牛", "\ufffd", "\0"),
    *(".", ",", "==", "!=", "~=", "=", "!", "~", '"', "/", "|", "\\", " ", "\n", "\udc80"),
    *("\\x41", "\\u00e9", "\\U0010ffff", "\\777", "\\xff", '\\"', "\\Q", "\\E", "\\C", "\\pL"),
    *("(", ")", "[", "]", "{1,20}", "{2}", "*", "+", "?", "^", "$", ".*", "(?i)", "[[:alpha:]]"),
)
_WHOLE = ("name==foo", 'labels."a.b"~=/^v[0-9]+$/', 'topic~="^/tasks/"', "event.io.terminal==true")

_ENVELOPE = Envelope(1, "ns", "/tasks/create", pack(TaskCreate(io=TaskIo(stdin="in"))))


async def filter_expressions(session: Session) -> None:
    """Whatever a client may send for a filter compiles or is an invalid argument."""
    logging.getLogger("taskd.filters").setLevel(logging.CRITICAL)  # one line for each bad pattern
    try:
        for _ in session.cases():
            expressions = [_expression(session.random) for _ in range(session.random.randint(1, 3))]
            size = sum(map(len, expressions))
            try:
                filters.compile(expressions).match(lambda path: (".".join(path), len(path) > 1))
                (await filters.prepare(expressions)).match(fields(_ENVELOPE))
            except InvalidArgument:
                session.saw("refused", size)
            else:
                session.saw("taken", size)
    finally:
        logging.getLogger("taskd.filters").setLevel(logging.NOTSET)


def _expression(choose: random.Random) -> str:
    if choose.random() < 0.5:
        tokens = choose.choices(_TOKENS, k=choose.randint(0, 12))
        return "".join([choose.choice(("", "name~=", 'name~="', "a==")), *tokens])
    text = damaged(choose, ",".join(choose.choices(_WHOLE, k=2)).encode())
    # As it comes out of a message: it is UTF-8, or it does not get here.
    return text.decode(errors="replace" if choose.random() < 0.2 else "ignore")


_LINES = (
    'root = "/r"',
    'state = "/s"',
    'address = "/a"',
    'log_level = "debug"',
    'shutdown_timeout = "10s"',
    'blockio_config_file = "/b"',
    'resctrl_path = "/c"',
    "[timeouts]",
    '"io.containerd.timeout.shim.load" = "5s"',
    "[gc]",
    "pause_threshold = 0.02",
    "deletion_threshold = 3",
    'startup_delay = "100ms"',
    "[events]",
    'sync = "full"',
    'max_age = "1m30s"',
    'max_size = "256MiB"',
    'node = "n"',
    "[events.nats]",
    'servers = ["nats://127.0.0.1:4222"]',
    "[shims]",
    "warm = false",
    "[grpc]",
    'engine = "h2"',
    "[metrics]",
    'address = "127.0.0.1:1338"',
    "[tracing]",
    'endpoint = "http://127.0.0.1:4318"',
    "sampling_ratio = 0.5",
)
_VALUES = (
    *("1", "-1", "0", "1e400", "nan", "-inf", "99999999999999999999", "true", '""', '"x"', "[]"),
    *("{}", "[[1]]", "1979-05-27", '"10s"', '"1MiB"', '"-1s"', '"/"', '"\\u0000"', "[1, 'a']"),
    *('"9999999999999999h"', '"1e5s"', '["nats://[::"]', '"127.0.0.1:x"', '"http://"', "{a = 1}"),
)


async def configuration(session: Session) -> None:
    """A configuration file is taken, or refused with a word that names the file."""
    with tempfile.TemporaryDirectory(prefix="taskd-") as folder:
        file = Path(folder) / "taskd.toml"
        for _ in session.cases():
            text = _document(session.random)
            file.write_bytes(text)
            try:
                config.load(file)
            except InvalidArgument as exc:
                assert exc.message.startswith(str(file)), exc.message
                session.saw("refused", len(text))
            else:
                session.saw("taken", len(text))


def _document(choose: random.Random) -> bytes:
    lines = [line for line in _LINES if "=" not in line or choose.random() < 0.8]
    for _ in range(choose.randint(0, 3)):
        at = choose.randrange(len(lines) + 1)
        key, is_value, _ = lines[at - 1].partition(" = ")
        if is_value and choose.random() < 0.8:
            lines[at - 1] = f"{key} = {choose.choice(_VALUES)}"
        else:
            lines.insert(at, f"{choose.choice(('x', 'root', '[a]', '[events'))} = 1")
    text = "\n".join(lines).encode()
    return damaged(choose, text, 3) if choose.random() < 0.3 else text
