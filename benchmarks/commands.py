"""Compare the time that everyday commands take with the time to import torch.

All are fresh processes, started by turns: `pion --help`, `pion status` of a local run, `pion check`
of the demo, and `pion generate` until the first text after the prompt (random weights of 3M and, in
the shape of Pion-small, of 103M parameters). The details of each result say which libraries the
command imports, which of our modules asks for each first, and the seconds that this takes.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from benchmarks.comparison import Comparison, alternate, at_most, compare
from benchmarks.exported import export_random

ROUNDS, WARMUP = 9, 1
PROMPT = "The following example"
PION = ("-c", "from pipeline.entry import run_and_exit; run_and_exit()")
# The most that a command may take, in times of importing torch (2.2 s on two AVX2 cores).
MOST = {"--help": 0.18, "status": 0.45, "check": 1.3, "generate": 1.3, "generate (103M)": 1.3}
# Prints each import of a library by a module of ours that takes 0.03 s or more.
TRACED = """
import builtins, sys, time
plain, ours, busy = builtins.__import__, ("pion", "pipeline"), []
def traced(name, globals=None, locals=None, fromlist=(), level=0):
    by = (globals or {}).get("__name__") or ""
    if busy or by.partition(".")[0] not in ours or name.partition(".")[0] in (*ours, ""):
        return plain(name, globals, locals, fromlist, level)
    busy.append(name)
    start = time.perf_counter()
    try:
        return plain(name, globals, locals, fromlist, level)
    finally:
        busy.clear()
        if (seconds := time.perf_counter() - start) >= 0.03:
            print(f"imported {name}: {seconds:.2f} s, by {by}", file=sys.__stderr__)
builtins.__import__ = traced
"""


def run(quick: bool) -> Iterator[Comparison]:
    """Yield a comparison for each command."""
    with tempfile.TemporaryDirectory() as folder:
        commands = everyday_commands(Path(folder), quick)
        sides = commands | {"torch": ["-c", "import torch"]}
        measures = {name: partial(seconds_of, arguments) for name, arguments in sides.items()}
        seconds = alternate(measures, *((1, 0) if quick else (ROUNDS, WARMUP)))
        for name, arguments in commands.items():
            what = (f"pion {name}", "python -c 'import torch'", "s")
            details = {"imports": imported_libraries(arguments)}
            target = at_most(MOST[name])
            yield compare(what, seconds[name], seconds["torch"], target, details=details)


def everyday_commands(folder: Path, quick: bool) -> dict[str, list[str]]:
    """Return the arguments of Python for each command; make in `folder` what the commands read."""
    small, large = export_random(folder / "small", True), export_random(folder / "large", quick)
    # The model may not replace one that the README's command has published.
    demo = ["jobs/demo.yaml", f"store={folder}", f"publish.to={folder}/model"]
    prepared = [sys.executable, *PION, "run", *demo, "--until", "prepare"]
    subprocess.run(prepared, check=True, stdout=subprocess.DEVNULL)
    text = ["--prompt", PROMPT, "--max-tokens", "8", "--temperature", "0"]
    return {
        "--help": [*PION, "--help"],
        "status": [*PION, "status", str(folder / "demo")],
        "check": [*PION, "check", *demo],
        "generate": [*PION, "generate", str(small), *text],
        "generate (103M)": [*PION, "generate", str(large), *text],
    }


def seconds_of(arguments: list[str], number: int) -> float:
    """Return the seconds of a process of Python, of `generate` until its first token."""
    del number  # All rounds are alike.
    wanted = len(PROMPT) + 1 if "generate" in arguments else -1
    start = time.perf_counter()
    with subprocess.Popen([sys.executable, *arguments], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        text = process.stdout.read(wanted)
        seconds = time.perf_counter() - start
        process.stdout.read()
    if process.returncode or len(text) < wanted:
        raise SystemExit(f"{arguments} ended with {process.returncode} after {text!r}")
    return seconds


def imported_libraries(arguments: list[str]) -> list[str]:
    """Return "library: seconds, by our module" of what a command imports, in order."""
    option, code, *rest = arguments
    command = [sys.executable, option, TRACED + code, *rest]
    lines = subprocess.run(
        command, check=True, capture_output=True, encoding="utf-8"
    ).stderr.splitlines()
    return [line.removeprefix("imported ") for line in lines if line.startswith("imported ")]
