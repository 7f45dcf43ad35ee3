"""Run the rows one by one, and print each as a line of a table.

The file has every finished row, so that a bench can be resumed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import math
import os
import re
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

import torch

from pion.bench.card import Card, describe, file_name, require_torch, shipped_results
from pion.bench.catalog import Task, chosen_tasks
from pion.bench.models import Bench, temporarily
from pion.bench.options import Options
from pion.bench.results import Outcome, Results, Row, Verdict, read_results, write_results
from pion.errors import BadInput, PionError
from pion.model.cuda_graph import words
from pion.train.hardware import pick_device

Say = Callable[[str], None]
# Paths in the message of an exception, which a result must not have.
_PATH = re.compile(r"(?<![\w.])~?(?:/[^\s/:'\"]+)+/?")
_LONGEST_WORDS = 300
# The seconds that a row probably takes if no card has measured it.
UNKNOWN = 15.0
# Where torch's compiler keeps what it has compiled, for later processes.
_COMPILED_FILES = "TORCHINDUCTOR_CACHE_DIR"
_SIGNS: dict[Verdict, str] = {"right": "✓", "wrong": "✗", "measured": "·", "left out": "-"}


def bench(options: Options, folder: Path, say: Say) -> int:
    """Run the chosen rows and print the table; return 1 if anything is wrong, else 0.

    `folder` gets the result if the options name no file. Raises BadInput for a request that can't
    be met; then nothing was measured.
    """
    require_torch()
    bench_settings = Bench(torch.device("cpu") if options.names else _device(options), options.tiny)
    tasks = chosen_tasks(bench_settings, options.only)
    if options.names:
        say("\n".join(task.name for task in tasks))
        return 0
    card = describe(bench_settings.device)
    path = options.out or options.resume or folder / file_name(card.card)
    results = _begin(options, card, say)
    write_results(path, results)  # a file that can't be written fails before anything is measured
    say(heading(card))
    before = torch.get_num_threads()
    # Tiny models compute on one core: more threads would mostly wait for each other.
    threads = 1 if bench_settings.tiny and not bench_settings.on_cuda else before
    try:
        with _cold_compiler(), temporarily(torch.set_num_threads, threads, before):
            results = _run(tasks, results, path, bench_settings, options, say)
    except KeyboardInterrupt:
        say(f"interrupted. The rows so far are in {path}. To continue, add --resume {path}")
        raise
    say(f"{summary(results.rows)}. The result is in {path}")
    return int(any(row.verdict == "wrong" for row in results.rows))


def _device(options: Options) -> torch.device:
    """Return the device to bench on. Raises BadInput if there is no such device."""
    if options.device != "auto":
        try:
            device = pick_device(options.device)
        except RuntimeError:  # torch does not know the word
            raise BadInput(f"--device {options.device}: use cpu, cuda, or cuda:1") from None
        if (device.index or 0) >= max(1, torch.cuda.device_count()):
            count = torch.cuda.device_count()
            raise BadInput(f"--device {device}: this machine has {count} CUDA devices, from cuda:0")
        return device
    if options.tiny:
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise BadInput(
            f"torch {torch.__version__} sees no CUDA device on this machine, so there is no card "
            "to bench. Nothing was measured. Check `nvidia-smi`. To check the code on a CPU in "
            "seconds, add --tiny"
        )
    return torch.device("cuda", torch.cuda.current_device())


def _begin(options: Options, card: Card, say: Say) -> Results:
    """Return the results to add rows to: those of --resume as far as they hold here."""
    fresh = Results(card, datetime.now(UTC).isoformat(timespec="seconds"), options.tiny)
    if options.resume is None:
        return fresh
    earlier = read_results(options.resume)
    if earlier.card.card != card.card and options.out is None:
        raise BadInput(
            f"{options.resume} has the result of {earlier.card.card}, and this is {card.card}. The "
            "file was not changed. Name another file with --out"
        )
    difference = card.difference(earlier.card)
    if difference is None and earlier.tiny != options.tiny:
        difference = "tiny models" if earlier.tiny else "models that are not tiny"
    if difference is not None:
        say(f"no row of {options.resume} is kept: they are from {difference}")
        return fresh
    return dataclasses.replace(earlier, rows=tuple(r for r in earlier.rows if r.verdict != "wrong"))


@contextlib.contextmanager
def _cold_compiler() -> Iterator[None]:
    """Hide what earlier processes compiled, so that the seconds to compile can be compared."""
    if _COMPILED_FILES in os.environ:
        yield
        return
    with tempfile.TemporaryDirectory(prefix="pion-bench-") as folder:
        os.environ[_COMPILED_FILES] = folder
        try:
            yield
        finally:
            del os.environ[_COMPILED_FILES]


def _run(
    tasks: list[Task], results: Results, path: Path, place: Bench, options: Options, say: Say
) -> Results:
    """Add the rows of `tasks` to `results` and to the file, row by row, and return all rows."""
    width = max((len(task.name) for task in tasks), default=0)
    earlier = {row.name: row for row in results.rows}
    limit = math.inf if options.only else 60 * options.minutes
    usual = {} if options.tiny else usual_seconds(shipped_results())
    started, spent, late = time.monotonic(), Counter[str](), list[str]()
    for task in tasks:
        if task.name in earlier:
            say(_line(earlier[task.name], width, kept=True))
            continue
        end = time.monotonic() - started + usual.get(task.name, 0.0 if options.tiny else UNKNOWN)
        if end >= limit:
            late.append(task.name)
            continue
        row = _row_of(task)
        spent["checks" if task.check else "measurements"] += round(row.seconds)
        others = (r for r in results.rows if r.name != row.name)
        results = dataclasses.replace(results, rows=(*others, row))
        write_results(path, results)
        say(_line(row, width))
        if (problem := _unusable(place)) is not None:
            raise PionError(
                f"after {task.name} the card answers nothing more ({problem}). The rows so far "
                f"are in {path}. Restart the process: python -m pion.bench --resume {path}"
            )
    if spent:
        say(f"took {', '.join(f'{seconds:,} s for {part}' for part, seconds in spent.items())}")
    if late:
        say(
            f"{len(late)} rows were not reached in {options.minutes:g} minutes: {', '.join(late)}. "
            f"To add them, run the same command with --resume {path}"
        )
    return results


def usual_seconds(paths: Sequence[Path]) -> dict[str, float]:
    """Return the seconds that each row has taken at most on a card that was measured."""
    longest: dict[str, float] = {}
    for path in paths:
        for row in read_results(path).rows:
            longest[row.name] = max(longest.get(row.name, 0.0), row.seconds)
    return longest


def _row_of(task: Task) -> Row:
    """Run one row. A row that raises an exception is wrong: the card could not do it."""
    start = time.perf_counter()
    try:
        outcome = task.run()
    except Exception as error:  # whatever torch, a driver or a compiler raises
        outcome = Outcome("wrong", _in_words(error))
    finally:
        # The next row measures the card's memory, and what is compiled.
        if torch.cuda.is_initialized():
            gc.collect()
            torch.cuda.empty_cache()
            torch.compiler.reset()
    return Row(
        task.name,
        outcome.verdict,
        outcome.words[:_LONGEST_WORDS],
        outcome.measures,
        round(time.perf_counter() - start, 3),
    )


def _in_words(error: Exception) -> str:
    """Return the exception's name and first line, without paths."""
    return _PATH.sub("…", words(error))


def _unusable(place: Bench) -> str | None:
    """Return why the card can't be used any more; None if it can.

    After an illegal access to its memory, every later call of this process fails.
    """
    try:
        torch.ones(1, device=place.device).sum().item()
    except Exception as error:  # the kind depends on what broke
        return _in_words(error)
    return None


def _line(row: Row, width: int, *, kept: bool = False) -> str:
    """Return a row as a line, with its name in a column of a width.

    `kept` marks a row that an earlier run has measured.
    """
    took = "  kept" if kept else f"{row.seconds:5.1f}s"
    sentence = f"{row.verdict}: {row.words}" if row.verdict in ("wrong", "left out") else row.words
    return f"{_SIGNS[row.verdict]} {row.name:<{width}} {took}  {sentence}"


def heading(card: Card) -> str:
    """Return what the table is about."""
    capability = f", capability {card.capability}" if card.capability else ""
    driver = f", driver {card.driver}" if card.driver else ""
    cuda = f", CUDA {card.cuda}" if card.cuda else ""
    return (
        f"{card.card}{capability}, {card.memory / 2**30:.1f} GiB{driver}\n"
        f"torch {card.torch}{cuda}, pion {card.pion} (code {card.code})"
    )


def summary(rows: Sequence[Row]) -> str:
    """Return how many rows have each verdict."""
    counts = Counter(row.verdict for row in rows)
    return ", ".join(f"{counts[verdict]} {verdict}" for verdict in _SIGNS if counts[verdict])
