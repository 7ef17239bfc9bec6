"""Bad input for whatever reads other people's bytes, for a while.

make fuzz                            # every target for two minutes
make fuzz FUZZ="filters archives"    # these
make fuzz FUZZ="--seconds 3600 grpc"

It ends at the first input that leads to what must not be; the seed that is shown gives it again:
make fuzz FUZZ="--seed 17 filters"
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import sys
import traceback

from fuzz import TARGETS
from fuzz.session import Session


def main() -> int:
    parser = argparse.ArgumentParser(prog="make fuzz")
    parser.add_argument("targets", nargs="*", metavar="target", help=", ".join(TARGETS))
    parser.add_argument("--seconds", type=float, default=120.0, help="for each target")
    parser.add_argument("--seed", type=int)
    options = parser.parse_args()
    logging.getLogger("taskd").addHandler(logging.NullHandler())  # it says much of bad input
    failed = False
    for name in options.targets or TARGETS:
        if name not in TARGETS:
            parser.error(f"there is no target {name!r}")
        session = Session(name, seconds=options.seconds, seed=options.seed)
        try:
            asyncio.run(TARGETS[name](session))
        except Exception:
            traceback.print_exc()
            failed = True
            print(f"FAILED: {session}", flush=True)
        else:
            print(session, flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
