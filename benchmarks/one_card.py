"""Spend ten minutes on one real card: where does the time of a step go, and what would save some?

    python -m benchmarks.one_card [--rehearse] [--out FILE] [PART …]

Each part is a process with its own time limit, so a part that hangs or fails takes nothing from the
next one. Each number is printed next to what was expected of an H100 before any card had run this
(EXPECTED), and the file has all of them. `--rehearse` computes tiny shapes on a CPU: the numbers
then mean nothing, and what only a card can do is left out.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from benchmarks.card_parts import (
    Found,
    Scale,
    attention,
    card,
    loss,
    products,
    profile,
    steps,
    texts,
    whole,
)

# Seconds of each part: ten minutes in all.
LIMITS = {
    "card": 30,
    "attention": 90,
    "products": 45,
    "loss": 45,
    "steps": 180,
    "profile": 90,
    "whole": 60,
    "texts": 60,
}
# What was expected of an H100, by the beginning of a number's name: measured there before ("M"),
# published by others ("P"), or estimated ("E").
EXPECTED = {
    "copy": "3.0 (H200 4.3) M",
    "product of 8192": "668 M",
    "launches": "3.6 E",
    "attention 16 10/2 64, causal by cudnn": "334 forward, 395 backward P",
    "attention 16 10/2 64, causal by flash": "262 forward, 264 backward P",
    "attention 16 10/2 64, 4 documents by flex": "a quarter of the scores, 11.6 ms a step M",
    "attention 16 10/2 64, 4 documents by varlen": "7 ms a step E",
    "products": "at least 600 E",
    "loss": "1.7 ms less than by fp32 logits E",
    "pion-small, 16 rows, as it is": "72.5 E (without graphs 75.9 M)",
    "pion2-max-small, 16 rows, as it is": "59 E (without graphs 74.4 M)",
    "tachyon-tiny, 16 rows, as it is": "60 E (without graphs 77 M)",
    "kernels": "72.5 of pion-small, 57.4 of pion2-max-small M; 65.4 and 50.6 explained E",
    "compiled whole": "1.5 ms less than by blocks E",
    "1 texts, compiled": "0.9 ms a token E",
    "1 texts": "1.5 ms a token M",
    "16 texts": "1.8 ms of forward and 1.0 of draws M",
}
PARTS: dict[str, Callable[[Scale], Iterator[Found]]] = {
    part.__name__: part for part in (card, attention, products, loss, steps, profile, whole, texts)
}


def show(name: str, number: float | str, unit: str) -> None:
    said = f"{number:,.4g} {unit}" if isinstance(number, float) else number
    expected = next((words for start, words in EXPECTED.items() if name.startswith(start)), None)
    print(f"{name}: {said}{f' (expected: {expected})' if expected else ''}", flush=True)


def main() -> None:
    """Run the parts, each in its process; or, in such a process, one part."""
    parser = argparse.ArgumentParser(prog="benchmarks.one_card")
    parser.add_argument("--rehearse", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("one_card.json"))
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("parts", nargs="*", choices=[*LIMITS, []], metavar="PART")
    given = parser.parse_args()
    if not given.rehearse and not torch.cuda.is_available():
        sys.exit("torch sees no card here. --rehearse computes tiny shapes on a CPU")
    if given.inside:
        for name, number, unit in PARTS[given.parts[0]](Scale(cuda=not given.rehearse)):
            show(name, number, unit)
            with given.out.open("a") as file:
                file.write(json.dumps({"name": name, "found": number, "unit": unit}) + "\n")
        return
    given.out.write_text("")
    for part in given.parts or LIMITS:
        started = time.perf_counter()
        options = [*(["--rehearse"] if given.rehearse else []), "--out", str(given.out)]
        try:
            done = subprocess.run(
                [sys.executable, "-m", "benchmarks.one_card", *options, "--inside", part],
                timeout=LIMITS[part],
            )
            ended = f"exit code {done.returncode}"
        except subprocess.TimeoutExpired:
            ended = f"ENDED after its {LIMITS[part]} s"
        print(f"--- {part}: {time.perf_counter() - started:.0f} s, {ended}", flush=True)


if __name__ == "__main__":
    main()
