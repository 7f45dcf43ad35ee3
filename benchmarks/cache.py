"""Measure what the cache of keys and values costs and saves, on the shape of Pion-small (103M).

    uv run python -m benchmarks.cache [--before COMMIT] [--pairs 20]

  * decoding, for 1 and 16 texts: this checkout and an earlier commit, in turns, fp32;
  * the first token of the fifth turn of a conversation of 1,500 tokens, of which 60 are new: by an
    engine that has answered the turns before, and by a new one, in turns;
  * the bytes of the keys and values of a text of four windows, of Daisy's smallest preset.

Writes benchmarks/results/cache.json.
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.unchanged import ROOT, environment, extract, in_pairs
from pion.config.model_config import ModelConfig
from pion.generation.answer import Answer, Ended, Event, Listener
from pion.generation.decoding import bytes_per_row
from pion.generation.engine import Engine
from pion.generation.text import Settings, Text
from pion.model.decoder import Decoder

RESULT = ROOT / "benchmarks" / "results" / "cache.json"
WORKER = ROOT / "benchmarks" / "decode_on_demand.py"
# The last commit with three loops, and a cache that only grew.
BEFORE = "692bc51d"
TURNS, TOKENS, NEW, ANSWER = 5, 1500, 60, 40
ROUNDS = 7


class Worker:
    """A process that decodes with the packages of `tree`."""

    def __init__(self, tree: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(WORKER)],
            cwd=tree,
            env=environment(tree),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert Path(self._line().strip()).is_relative_to(tree)

    def seconds(self, texts: int) -> float:
        """Return the seconds of a step of so many texts."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{texts}\n")
        self._process.stdin.flush()
        return float(self._line())

    def close(self) -> None:
        self._process.communicate()

    def _line(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline()


def decoding(before: str, pairs: int) -> dict[str, Any]:
    """Return the seconds of a step now and before, for 1 and 16 texts."""
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        tree = Path(folder) / "before"
        extract(before, tree)
        sides = [Worker(ROOT), Worker(tree)]
        for side in sides:
            stack.callback(side.close)
            side.seconds(16)
        return {f"{texts} texts": _in_turns(sides, texts, pairs) for texts in (1, 16)}


def _in_turns(sides: Sequence[Worker], texts: int, pairs: int) -> dict[str, Any]:
    now, before = (partial(side.seconds, texts) for side in sides)
    return in_pairs(now, before, pairs)


def first_token(model: Decoder, engine: Engine, ids: Sequence[int]) -> tuple[float, list[int]]:
    """Let the engine answer; return the seconds until the first token, and the whole text."""
    events: queue.Queue[tuple[float, Event]] = queue.Queue()
    settings = Settings(stop_ids=(), max_tokens=ANSWER, temperature=0)
    text = Text(model, ids, settings)
    began = time.perf_counter()
    engine.submit([Answer(text, None, lambda event: events.put((time.perf_counter(), event)))])
    at, event = events.get()
    while not isinstance(event, Ended):
        _, event = events.get()
    return at - began, text.ids


def conversation(model: Decoder) -> dict[str, Any]:
    """Return the seconds until the first token of the last turn, with and without reuse."""
    seconds: dict[str, list[float]] = {"reused": [], "fresh": []}
    same = []
    draw = torch.Generator().manual_seed(0)

    def words(count: int) -> list[int]:
        found: list[int] = torch.randint(0, 999, (count,), generator=draw).tolist()
        return found

    for _ in range(ROUNDS):
        engine = _started(model)
        turn = (TOKENS - NEW - (TURNS - 1) * ANSWER) // (TURNS - 1)
        ids: list[int] = []
        for _ in range(TURNS - 1):
            _, ids = first_token(model, engine, [*ids, *words(turn)])
        ids += words(NEW)
        reused, text = first_token(model, engine, ids)
        engine.close()
        engine = _started(model)
        fresh, alone = first_token(model, engine, ids)
        engine.close()
        seconds["reused"].append(reused)
        seconds["fresh"].append(fresh)
        same.append(text == alone)
    return {
        "tokens": len(ids),
        "new tokens": NEW,
        "reused_seconds": round(statistics.median(seconds["reused"]), 4),
        "fresh_seconds": round(statistics.median(seconds["fresh"]), 4),
        "times_sooner": round(
            statistics.median(b / a for a, b in zip(seconds["reused"], seconds["fresh"])), 2
        ),
        "same_answers": f"{sum(same)} of {len(same)}",
    }


def _started(model: Decoder) -> Engine:
    def deliver(events: Sequence[tuple[Listener, Event]]) -> None:
        for listener, event in events:
            listener(event)

    engine = Engine(model, deliver, slots=2, queue=9, seq_len=model.config.seq_len)
    engine.start()
    return engine


def windows() -> dict[str, Any]:
    """Return the bytes of a long text in layers with windows, and if they kept all of it."""
    config = ModelConfig.preset("daisy-pico")
    assert config.windows is not None
    tokens = 4 * config.windows.tokens
    with torch.device("cpu"):
        kept = bytes_per_row(Decoder(config), tokens)
    layers = config.n_layers
    every = layers * tokens * 2 * config.n_kv_heads * config.head_dim * 4
    return {"window": config.windows.tokens, "tokens": tokens, "bytes": kept, "all": every}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--before", default=BEFORE)
    parser.add_argument("--pairs", type=int, default=20)
    given = parser.parse_args()
    result: dict[str, Any] = {"cores": os.cpu_count(), "before": given.before, "windows": windows()}
    torch.manual_seed(0)
    result["conversation"] = conversation(Decoder(ModelConfig.preset("pion-small")).joined())
    print(json.dumps(result, indent=1), flush=True)
    result["decoding"] = decoding(given.before, given.pairs)
    print(json.dumps(result["decoding"], indent=1))
    RESULT.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
