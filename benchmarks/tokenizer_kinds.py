"""Compare the speed of encoding with the pre-tokenizers of other people's models and GPT-2's.

    uv run python -m benchmarks.tokenizer_kinds [--rounds 9]

All kinds have the same vocabulary, jobs/pile_tokenizer.json, whose pre-tokenizer is GPT-2's. They
differ in how a text is cut before BPE, and Qwen's normalizes it. The texts are a quarter of the
prose and the source of Python's standard library, from one line to whole modules. Speeds are tokens
per second of processor time, so that other programs on the machine count for little. A round
measures every kind in turn. A ratio is the median over rounds of a kind's speed and GPT-2's.
Writes benchmarks/results/tokenizer_kinds.json.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from pathlib import Path
from typing import Any

import tokenizers

from benchmarks.exported import TOKENIZER
from benchmarks.interleaved import Measure, alternate, quartiles, ratios
from benchmarks.tokenizing import some_texts
from pion.data.tokens.safe_cuts import SPLITS
from pion.data.tokens.tokenizer import Tokenizer

RESULT = Path(__file__).parent / "results" / "tokenizer_kinds.json"
TODAY = "GPT-2"
LEAST_RATIO = 0.8
_BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}


def _sequence(*steps: dict[str, Any]) -> dict[str, Any]:
    return {"type": "Sequence", "pretokenizers": list(steps)}


def _split(kind: str) -> dict[str, Any]:
    pattern = {"Regex": SPLITS[kind]}
    split = {"type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": False}
    return _sequence(split, {**_BYTES, "use_regex": False})


# By kind, what differs from the vocabulary's own file.
KINDS: dict[str, dict[str, Any]] = {
    TODAY: {"pre_tokenizer": _BYTES},
    "digits apart": {
        "pre_tokenizer": _sequence({"type": "Digits", "individual_digits": True}, _BYTES)
    },
    "Llama 3": {"pre_tokenizer": _split("Llama 3")},
    "Qwen": {"pre_tokenizer": _split("Qwen"), "normalizer": {"type": "NFC"}},
}


def speed(tokenizer: Tokenizer, texts: list[str]) -> Measure:
    """Return a measure of tokens per second of processor time."""

    def measure(number: int) -> float:
        start = time.process_time()
        tokens = sum(len(ids) for ids in tokenizer.encode_batch(texts))
        return tokens / (time.process_time() - start)

    return measure


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    base, texts = json.loads(TOKENIZER.read_text()), some_texts(quick=False)[::4]
    load = round(os.getloadavg()[0], 2)
    measures = {
        kind: speed(Tokenizer(json.dumps(base | steps)), texts) for kind, steps in KINDS.items()
    }
    speeds = alternate(measures, options.rounds, warmup=1)
    kinds = {}
    for kind, found in speeds.items():
        compared = ratios(found, speeds[TODAY])
        kinds[kind] = {
            "tokens_per_second": round(statistics.median(found)),
            "ratio": round(statistics.median(compared), 3),
            "ratio_quartiles": [round(value, 3) for value in quartiles(compared)],
            "met": statistics.median(compared) >= LEAST_RATIO,
        }
    report = {
        "megabytes": round(sum(len(text.encode()) for text in texts) / 1e6, 2),
        "documents": len(texts),
        "rounds": options.rounds,
        "load_average_before": load,
        "tokenizers": tokenizers.__version__,
        "target": f"≥ {LEAST_RATIO}",
        "kinds": kinds,
    }
    text = json.dumps(report, indent=1, ensure_ascii=False) + "\n"
    RESULT.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
