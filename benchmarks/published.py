"""Measure what a published PILON needs: bytes on disk, memory, and tokens/s of decoding.

    uv run python -m benchmarks.published

The models have the shapes of pilon-48m and pilon-48m-dense, with random weights: the recipes choose
as many primitives as they do at the start of training. `checkpoint` has all primitives in fp32, as
in training; `published` has only those in use, as trits; `bf16 rows` is the same with rounded rows
of token ids. Each measurement is a fresh process, and the models take turns. It loads the model in
fp32, continues one text greedily, and prints the tokens/s and its resident peak above what was
resident after the imports (Linux). Writes benchmarks/results/published.json.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.exported import TOKENIZER
from benchmarks.interleaved import alternate, quartiles, ratios
from benchmarks.memory import resident
from pion.config.model_config import ModelConfig
from pion.formats.export import export_model, round_embeddings
from pion.formats.load import load_decoder
from pion.formats.weights import write_safetensors
from pion.generation.generate import generate
from pion.model.decoder import Decoder
from pion.train.hardware import device_name

RESULT = Path(__file__).parent / "results" / "published.json"
DENSE = "dense"
ROUNDS, PROMPT_TOKENS, NEW_TOKENS = 7, 32, 96
MEASURES = ("tokens_per_second", "peak_mib")


def write_models(root: Path) -> list[str]:
    """Write a folder for each model, and return their names."""

    def fresh(preset: str) -> Decoder:
        torch.manual_seed(0)
        return Decoder(ModelConfig.preset(preset))

    export_model(fresh("pilon-48m-dense"), TOKENIZER, root / DENSE)
    model = fresh("pilon-48m")
    checkpoint = root / "checkpoint"
    checkpoint.mkdir()
    write_safetensors(checkpoint / "model.safetensors", model.state_dict())
    (checkpoint / "config.json").write_text(json.dumps(model.config.to_dict()))
    export_model(model, TOKENIZER, root / "published")
    round_embeddings(model)
    export_model(model, TOKENIZER, root / "bf16 rows")
    return [DENSE, "checkpoint", "published", "bf16 rows"]


def own_measures(folder: Path) -> dict[str, float]:
    """Load the model in this process, decode a text, and return the speed and the peak."""
    before = resident("VmRSS")
    model = load_decoder(folder)
    model = model.joined()  # as `pion generate` does
    settings: dict[str, Any] = {"stop_ids": (), "temperature": 0}
    prompt = list(range(PROMPT_TOKENS))
    list(generate(model, prompt, max_tokens=2, **settings))  # the first tokens are slower
    start = time.perf_counter()
    tokens = list(generate(model, prompt, max_tokens=NEW_TOKENS, **settings))
    seconds = time.perf_counter() - start
    values = len(tokens) / seconds, (resident("VmHWM") - before) / 2**20
    return dict(zip(MEASURES, values, strict=True))


def main() -> None:
    load = round(os.getloadavg()[0], 2)
    found: dict[str, dict[str, list[float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        names = write_models(root)
        sizes = {name: (root / name / "model.safetensors").stat().st_size for name in names}

        def measured(name: str, number: int) -> float:
            command = [sys.executable, "-m", "benchmarks.published", str(root / name)]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            values = json.loads(done.stdout.splitlines()[-1])
            for measure, value in values.items():
                found.setdefault(name, {}).setdefault(measure, []).append(value)
            return float(values["tokens_per_second"])

        alternate({name: partial(measured, name) for name in names}, ROUNDS)
    models = {}
    for name, values in found.items():
        speed = ratios(values["tokens_per_second"], found[DENSE]["tokens_per_second"])
        models[name] = {
            "bytes": sizes[name],
            "peak_mib": round(statistics.median(values["peak_mib"])),
            "tokens_per_second": round(statistics.median(values["tokens_per_second"]), 1),
            "ratio": round(statistics.median(speed), 3),
            "ratio_quartiles": [round(value, 3) for value in quartiles(speed)],
        }
    report = {
        "device": device_name(torch.device("cpu")),
        "load_average_before": load,
        "rounds": ROUNDS,
        "new_tokens": NEW_TOKENS,
        "models": models,
    }
    RESULT.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    if sys.argv[1:]:
        print(json.dumps(own_measures(Path(sys.argv[1]))))
    else:
        main()
