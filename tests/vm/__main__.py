"""Everything in virtual machines: see docs/vm.md.

make vm                               # Debian 12, then Debian 13
make vm VM="-d trixie"                # one of them
make vm VM="tests/vm/guest -k oom"    # with other tests, or arguments of pytest
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from vm.image import BOOKWORM, TRIXIE, build
from vm.machine import run
from vm.plans import WHOLE

_SECONDS = 4 * 3600.0
_RELEASES = {str(each): each for each in (BOOKWORM, TRIXIE)}


def main() -> int:
    parser = argparse.ArgumentParser(prog="make vm")
    parser.add_argument("-d", dest="releases", action="append", choices=_RELEASES)
    chosen, tests = parser.parse_known_args()
    plan = replace(WHOLE, tests=tuple(tests)) if tests else WHOLE
    bad = 0
    for name in chosen.releases or _RELEASES:
        with tempfile.TemporaryDirectory(prefix="taskd-vm-") as folder:
            print(f"{name}: making the machine", flush=True)
            image = build(_RELEASES[name], Path(folder), plan)
            print(f"{name}: running the tests: tail -f {image.console}", flush=True)
            report = run(image, _SECONDS)
        print(report.log)
        print(f"{name}: {report}", flush=True)
        bad += len(report.bad)
    return min(bad, 1)


sys.exit(main())
