"""Does a compiled loss of bf16 logits learn as well as one of fp32 logits? Paired seeds decide.

    uv run python -m benchmarks.bf16_logits [--before COMMIT] [--seeds 10] [--steps 160]

The model is that of demo_muon.yaml, computed in bf16 on this CPU. For each seed, this checkout and
the earlier commit train on the same rows in the same order from the same weights, each in its own
process, by the loss that a GPU compiles (here the compiler is off, which only changes how sums are
rounded). Then held-out text is scored in fp32.

The rule was fixed before the first seed: the upper end of the 95 % interval (Student's t) of the
mean difference, this checkout minus the commit, is at most 0.010 bits per byte. What is measured is
kept in --out after each model, so the same command continues.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from scipy.stats import t as student

from benchmarks.unchanged import ROOT, environment, extract
from pion.train.hardware import device_name
from pipeline.job.file import load_job
from pipeline.stages.prepare import prepare_part

JOB = ROOT / "benchmarks" / "demo_muon.yaml"
RESULT = ROOT / "benchmarks" / "results" / "bf16_logits.json"
# The last commit whose compiled loss had fp32 logits.
BEFORE = "938db1bb"
# Both commits have all that it names.
TRAIN = """
import sys
from functools import partial
from pathlib import Path
import torch
from pion.data.tokens.tokenizer import Tokenizer
from pion.evaluation.held_out import Scorer, score, summarize
from pion.model import decoder
from pion.train.settings import ComputePlan
from pion.train.trainer import Trainer
from pipeline.data.prepared import open_data
from pipeline.job.file import load_job
from pipeline.job.train_sections import settings_of

job, steps, seed, data, tree = sys.argv[1:]
assert Path(decoder.__file__).is_relative_to(tree)
plain = decoder.linear_cross_entropy
job = load_job(Path(job), [f"pretrain.steps={steps}"])
opened, settings = open_data(Path(data)), settings_of(job.pretrain)
torch.manual_seed(int(seed))
model = decoder.Decoder(job.model_config_resolved())
rows = opened.stream("train", int(seed), job.data.window)
plan = ComputePlan(dtype="bfloat16", micro_batch=settings.global_batch, threads=1)
trainer = Trainer(model, rows, settings, plan)
torch.compiler.set_stance("force_eager")
decoder.linear_cross_entropy = lambda *a, **o: plain(*a, **(o | {"compiled": True}))
for _ in range(settings.steps):
    trainer.train_step()
trainer.close()
decoder.linear_cross_entropy = plain
rows = opened.stream("held_out", int(seed), job.data.window)
tokenizer = Tokenizer.from_file(opened.tokenizer_path)
scorer = Scorer(model.eval(), tokenizer.vocab_size, 16)
count = range(min(job.evaluate.final_rows, rows.total_rows))
with torch.inference_mode():
    scores = score(scorer, rows, count)
documents = rows.document_numbers(count, tokenizer.end_of_text)
found = summarize(scores.nll, scores.targets, tokenizer.token_bytes(), documents)
print(found.bits_per_byte)
"""


def train(tree: Path, steps: int, seed: int, data: Path) -> float:
    """Return the bits per byte of a model that was trained with the packages of `tree`."""
    arguments = [str(JOB), str(steps), str(seed), str(data), str(tree)]
    command = [sys.executable, "-c", TRAIN, *arguments]
    done = subprocess.run(
        command, cwd=tree, env=environment(tree), stdout=subprocess.PIPE, text=True, check=True
    )
    return float(done.stdout)


def verdict(now: list[float], before: list[float]) -> dict[str, Any] | None:
    """Return the mean paired difference and its interval; None of fewer than two pairs."""
    differences = [a - b for a, b in zip(now, before, strict=False)]
    if len(differences) < 2:
        return None
    mean, n = statistics.mean(differences), len(differences)
    reach = float(student.ppf(0.975, n - 1)) * statistics.stdev(differences) / math.sqrt(n)
    ends = [round(mean - reach, 5), round(mean + reach, 5)]
    return {"pairs": n, "difference": round(mean, 5), "interval": ends}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--before", default=BEFORE)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--steps", type=int, default=160)
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args()
    result: dict[str, Any] = {
        "device": device_name(torch.device("cpu")),
        "torch": torch.__version__,
        "steps": options.steps,
        "bits_per_byte": {"bf16 logits": [], "fp32 logits": []},
    }
    if options.out.exists():
        result = json.loads(options.out.read_text(encoding="utf-8"))
    measured = result["bits_per_byte"]
    with tempfile.TemporaryDirectory() as folder:
        earlier = Path(folder) / "earlier"
        extract(options.before, earlier)
        data = Path(folder) / "data"
        prepare_part(load_job(JOB), "pretrain", data, print)
        for seed in range(options.seeds):
            for name, tree in (("fp32 logits", earlier), ("bf16 logits", ROOT)):
                if len(measured[name]) > seed:
                    continue
                measured[name].append(train(tree, options.steps, seed, data))
                print(f"seed {seed}, {name}: {measured[name][-1]:.5f}", flush=True)
                result["verdict"] = verdict(*measured.values())
                options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(result["verdict"])


if __name__ == "__main__":
    main()
