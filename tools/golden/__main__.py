"""Write what a user sees into tests/golden/, or show what differs from it.

    python -m tools.golden write [NAME…]
    python -m tools.golden check [NAME…]

`check` prints a unified diff and exits with 1 if anything differs. A change that a user should see
is written in a commit of its own, and its message says why. Nobody edits the folder by hand.
"""

from __future__ import annotations

import argparse
import difflib
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tools.golden import bits, printed, trained
from tools.golden.place import GOLDEN, Texts

NAMES: dict[str, Callable[[], Texts]] = {
    "new": printed.new,
    "decisions": bits.decisions,
    "plan": printed.plan,
    "check": printed.check,
    "status": printed.status,
    "report": printed.report,
    "json": printed.json_keys,
    "shards": trained.shards,
    "weights": trained.weights,
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.golden", description=__doc__)
    parser.add_argument("action", choices=("write", "check"))
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(NAMES)}")
    args = parser.parse_args()
    unknown = set(args.names) - NAMES.keys()
    if unknown:
        parser.error(f"unknown: {', '.join(sorted(unknown))}")
    act = _write if args.action == "write" else _differs
    found = []
    for name in args.names or NAMES:
        begun = time.process_time(), time.monotonic()
        found.append(act(GOLDEN / name, NAMES[name]()))
        cpu, wall = time.process_time() - begun[0], time.monotonic() - begun[1]
        print(f"{name}: {found[-1] or 'same'} ({cpu:.0f} CPU seconds, {wall:.0f} s)", flush=True)
    return int(args.action == "check" and any("DIFFERS" in one for one in found))


def _write(folder: Path, texts: Texts) -> str:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")
    return f"{len(texts)} files, {sum(map(len, texts.values())) / 1000:.0f} kB"


def _differs(folder: Path, texts: Texts) -> str:
    """Print how texts differ from the files of a folder; return a word if they do.

    What follows an `@` in a file's name says on which machine the file was written. What another
    machine has written is not compared.
    """
    before = {path.name: path.read_text(encoding="utf-8") for path in folder.glob("*")}
    elsewhere = {name for name in before.keys() ^ texts.keys() if "@" in name}
    diff: list[str] = []
    for name in sorted((before.keys() | texts.keys()) - elsewhere):
        sides = (side.get(name, "").splitlines(keepends=True) for side in (before, texts))
        path = f"{folder.name}/{name}"
        diff += difflib.unified_diff(*sides, f"golden/{path}", f"now/{path}", n=2)
    sys.stdout.writelines(diff)
    skipped = f"not compared: {', '.join(sorted(elsewhere))}" if elsewhere else ""
    return "; ".join(filter(None, ["DIFFERS" if diff else "", skipped]))


if __name__ == "__main__":
    sys.exit(main())
