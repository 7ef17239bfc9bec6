"""The parity table: each scenario on each containerd, the same or different.

make parity                            # all of it
make parity PARITY="-g 2 created"      # scenarios by part of their names, on one generation
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter

import anyio
from harness.generations import COMPARED
from parity.known import Known
from parity.runner import Pairs, compare
from parity.scenarios import collected


def main() -> int:
    parser = argparse.ArgumentParser(prog="make parity")
    names = [str(each) for each in COMPARED]
    parser.add_argument("-g", dest="generations", action="append", choices=names)
    parser.add_argument("words", nargs="*", help="in a scenario's name")
    chosen = parser.parse_args()
    generations = [each for each in COMPARED if str(each) in (chosen.generations or names)]
    scenarios = [each for each in collected() if all(word in each.name for word in chosen.words)]
    width = max((len(each.name) for each in scenarios), default=0)
    print(f"{'scenario':{width}}", *(f"{each!s:9}" for each in generations))
    differences: list[str] = []
    known: Counter[Known] = Counter()
    with Pairs() as pairs:
        for scenario in scenarios:
            print(f"{scenario.name:{width}}", end="", flush=True)
            for generation in generations:
                if not scenario.concerns(generation):
                    print(f" {'-':9}", end="", flush=True)
                    continue
                found = anyio.run(compare, scenario, pairs, generation)
                where = f"{scenario.name}, {generation}"
                differences += [f"{where}:\n{each}" for each in found.differences]
                known.update(found.known)
                print(f" {found!s:9}", end="", flush=True)
            print()
    for each, count in known.items():
        print(f"\nknown, {count} times: {each.reason}")
    for difference in differences:
        print(f"\n{difference}")
    print(f"\n{len(scenarios)} scenarios, {len(differences)} unknown differences")
    return 1 if differences else 0


sys.exit(main())
