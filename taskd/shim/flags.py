"""The flags of a shim's command line, as Go understands them: ``-flag value``, ``--flag=value``.

`argparse` would take a fifth of the time of ``delete``.
Source: Go's ``flag/flag.go``; containerd's ``runtime/v2/shim/shim.go``.
"""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["Flags", "usage"]

_TEXTS = {
    "namespace": "namespace of the container",
    "id": "id of the container",
    "address": "the daemon's gRPC socket",
    "bundle": "path of the bundle, if it is not the current folder",
    "publish-binary": "program with which to publish events; not used",
    "socket": "socket to serve on, without a command",
}
_SWITCHES = {
    "debug": "log more",
    "info": "tell about the runtime, as containerd.types.RuntimeInfo",
    "v": "print the version",
    "help": "print this",
    "h": "print this",
}
_BOOLEANS = {
    **dict.fromkeys(("1", "t", "T", "true", "TRUE", "True"), True),
    **dict.fromkeys(("0", "f", "F", "false", "FALSE", "False"), False),
}


class Flags:
    """What the command line of the shim `name` says."""

    def __init__(self, name: str, arguments: Sequence[str]) -> None:
        """Raises ValueError if there is something that nobody understands."""
        texts, switches = dict.fromkeys(_TEXTS, ""), dict.fromkeys(_SWITCHES, False)
        rest = list(arguments)
        while rest and rest[0].startswith("-") and rest[0] != "-":
            word = rest.pop(0)
            if word == "--":
                break
            flag, equals, value = word.removeprefix("-").removeprefix("-").partition("=")
            if not flag or flag.startswith("-"):
                raise ValueError(f"bad flag syntax: {word}")
            if flag in switches:
                if equals and value not in _BOOLEANS:
                    raise ValueError(f'invalid boolean value "{value}" for -{flag}: parse error')
                switches[flag] = _BOOLEANS[value] if equals else True
            elif flag not in texts:
                raise ValueError(f"flag provided but not defined: -{flag}")
            elif not equals and not rest:
                raise ValueError(f"flag needs an argument: -{flag}")
            else:
                texts[flag] = value if equals else rest.pop(0)
        *_, last, version = name.split(".")
        self.program = f"containerd-shim-{last}-{version}"
        self.action = rest[0] if rest else ""
        self.namespace = texts["namespace"]
        self.id = texts["id"]
        self.address = texts["address"]
        self.socket = texts["socket"]
        self.debug = switches["debug"]
        self.info = switches["info"]
        self.version = switches["v"]
        self.help = switches["help"] or switches["h"]


def usage(name: str) -> str:
    """How the shim `name` is called."""
    flags = "".join(
        f"  -{flag:15} {about}\n" for flag, about in (*_TEXTS.items(), *_SWITCHES.items())
    )
    return f"usage: {name} [flags] [start | delete | adopt]\n{flags}"
