"""`python -m tests.fuzz --seed 0`: the long form; `--only "configs 17"` runs one case again and shows it."""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from tests.fuzz.configs import config_case, profile_case
from tests.fuzz.damage import damage_case
from tests.fuzz.images import image_case
from tests.fuzz.tables import table_case
from tests.fuzz.verdict import Case, Failure, judge

Make = Callable[[int, random.Random, Path], Case]
KINDS: dict[str, tuple[Make, int]] = {
    "configs": (config_case, 20_000),
    "profiles": (profile_case, 3_000),
    "tables": (table_case, 7_000),
    "images": (image_case, 6_000),
    "damage": (damage_case, 1_500),
}
"""How a case of each kind is made, and how many the long form runs."""


def run(kind: str, numbers: range | list[int], seed: int, place: Path) -> list[Failure]:
    """The failures of some cases of a kind."""
    make, _ = KINDS[kind]
    found = []
    for number in numbers:
        case = make(number, random.Random(f"{seed} {kind} {number}"), place)
        if failure := judge(case):
            found.append(failure)
            print(f"── {failure.case} (seed {seed}): {failure.what}", flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--share", type=float, default=1.0, help="of the long form's cases")
    parser.add_argument("--kind", choices=KINDS, action="append")
    parser.add_argument("--only", metavar="'KIND NUMBER'")
    given = parser.parse_args()
    chosen = {kind: range(int(n * given.share)) for kind, (_, n) in KINDS.items() if kind in (given.kind or KINDS)}
    if given.only:
        kind, number = given.only.split()
        chosen = {kind: range(int(number), int(number) + 1)}
    failed = 0
    for kind, numbers in chosen.items():
        began = time.monotonic()
        with tempfile.TemporaryDirectory() as place:
            found = run(kind, numbers, given.seed, Path(place))
        failed += len(found)
        print(f"{kind}: {len(numbers)} cases, {len(found)} failures, {time.monotonic() - began:.0f} s", flush=True)
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()
