"""``taskd config``, ``doctor``, ``version``, ``completion``: for people who run a daemon."""

from __future__ import annotations

import argparse
from pathlib import Path

import taskd
from taskd.cli.parsers import Add
from taskd.printable import printable

__all__ = ["add"]

_SHELLS = ("bash", "fish", "tcsh", "zsh")


def add(add_parser: Add) -> None:
    """Add the commands."""
    add_parser("config", "check a configuration, or show what is in force", _add_config)
    add_parser("doctor", "look over this machine", _add_doctor)
    add_parser("version", "print versions", _add_version)
    add_parser("completion", "print a shell's completion of commands", _add_completion)


def _add_config(config: argparse.ArgumentParser) -> None:
    actions = config.add_subparsers(required=True, metavar="ACTION")
    check = actions.add_parser("check", help="say what is wrong with a file")
    check.set_defaults(command=_check)
    check.add_argument("file", type=Path, metavar="FILE", help="TOML configuration")
    dump = actions.add_parser("dump", help="print all settings as TOML, with their defaults")
    dump.set_defaults(command=_dump)
    dump.add_argument("--config", type=Path, metavar="FILE", help="TOML configuration")


def _add_doctor(doctor: argparse.ArgumentParser) -> None:
    doctor.description = (
        "Tell what of this machine taskd can use, and what to do about the rest. The exit status "
        "is 1 if containers will not run."
    )
    doctor.set_defaults(command=_doctor)
    doctor.add_argument("--config", type=Path, metavar="FILE", help="TOML configuration")
    doctor.add_argument("--json", action="store_true", help="print a JSON object for each finding")


def _add_version(version: argparse.ArgumentParser) -> None:
    version.set_defaults(command=_version)
    version.add_argument("--json", action="store_true", help="print a JSON object")


def _add_completion(completion: argparse.ArgumentParser) -> None:
    completion.set_defaults(command=_completion)
    completion.add_argument("shell", choices=_SHELLS, metavar="SHELL", help=", ".join(_SHELLS))


def _check(options: argparse.Namespace) -> None:
    from taskd import config

    config.load(options.file)
    print(f"{printable(str(options.file))}: good")


def _dump(options: argparse.Namespace) -> None:
    from taskd import config
    from taskd.cli.document import text

    print(text(config.load(options.config)), end="")


def _doctor(options: argparse.Namespace) -> int:
    import json

    from taskd import config
    from taskd.cli.doctor import Verdict, findings

    bad = False
    for found in findings(config.load(options.config)):
        bad = bad or found.verdict is Verdict.BAD
        if options.json:
            print(json.dumps({**found._asdict(), "verdict": found.verdict.name.lower()}))
            continue
        print(f"{found.verdict.value}  {found.subject:12} {printable(found.text)}")
        if found.remedy:
            print(f"{'':17}-> {found.remedy}")
    return int(bad)


def _version(options: argparse.Namespace) -> None:
    import json
    import platform

    from taskd.grpc import engine

    about = {
        "taskd": taskd.__version__,
        "python": platform.python_version(),
        "engine": str(engine.chosen()),
    }
    if options.json:
        print(json.dumps(about))
    else:
        print(f"taskd {about['taskd']}, Python {about['python']}, HTTP/2 by {about['engine']}")


def _completion(options: argparse.Namespace) -> None:
    import shtab

    from taskd.cli.main import command_line

    print(shtab.complete(command_line(), options.shell))
