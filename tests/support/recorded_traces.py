"""A record of what traces of models found. Tracing all these models takes minutes of a suite.

Tests of what a job needs, costs and chooses, and whole runs in forks, read recorded_traces.json in
place of tracing. What is not recorded is traced, and so is everything with another torch. A soak
test traces all models of the record again (test_estimate.py). This command adds what tests trace to
the record. After a change of the traces, remove the file first:

    RECORD_TRACES=1 pytest -n 0 -k "not recorded" tests/pipeline/rent tests/runs tests/faults \
        tests/cuda_rehearsal tests/pion/train/test_micro_batch.py tests/pipeline/new \
        tests/pipeline/prove tests/pipeline/training/test_compute_plan.py
"""

import dataclasses
import json
import os
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from pion.config.lora import Lora
from pion.config.model_config import ModelConfig
from pion.files import write_atomically
from pion.later_fields import to_record
from pion.train.memory_trace.live_bytes import Peaks
from pion.train.memory_trace.step import StepTrace
from pion.train.workload import Workload

FILE = Path(__file__).with_name("recorded_traces.json")
RECORD = "RECORD_TRACES"
# The variable with the folder where all processes of a session keep what they trace.
TRACES = "TRACES_OF_THE_TESTS"
VERSION = str(torch.__version__).partition("+")[0]  # a build for another CUDA traces the same
# By what is traced, and by the rows of a micro-batch and how it is trained.
Found = dict[str, dict[str, list[int]]]


class RecordedTrace:
    """Answers like a StepTrace, from the record if it has the answer."""

    def __init__(self, work: Workload) -> None:
        self._work, self._key = work, key_of(work)
        self._step: StepTrace | None = None

    def peaks(self, rows: int, *, recompute: bool, ranks: int = 1) -> Peaks:
        """Return what a micro-batch of so many rows needs."""
        asked = json.dumps([rows, recompute, ranks if self._work.sharded else 1])
        found = recorded().get(self._key, {}).get(asked)
        if found is not None:
            return Peaks(*found)
        self._step = self._step or StepTrace(self._work)
        peaks = self._step.peaks(rows, recompute=recompute, ranks=ranks)
        if os.environ.get(RECORD):
            _add(self._key, asked, peaks)
        return peaks


# In the place of `remembered._trace`, whose memory is cleared by `forget`.
recorded_trace = lru_cache(maxsize=256)(RecordedTrace)


def key_of(work: Workload) -> str:
    """Return all that decides a trace, as text."""
    fields = vars(work) | {
        "config": work.config.to_dict(),
        "lora": None if work.lora is None else to_record(work.lora),
        "bf16": work.dtype == "bfloat16",
        "bf16_residual": work.residual == "bfloat16",
        "compiled": work.compile,
    }
    others = ("dtype", "residual", "compile", "optimizer", "sampling", "ranks")
    return json.dumps({k: v for k, v in fields.items() if k not in others}, sort_keys=True)


def traced_of(key: str) -> Workload:
    """Return what was traced for this key."""
    fields: dict[str, Any] = json.loads(key)
    lora = fields["lora"]
    if lora is not None and isinstance(lora["targets"], list):
        lora["targets"] = tuple(lora["targets"])
    fields["config"] = ModelConfig.from_dict(fields["config"])
    fields["lora"] = None if lora is None else Lora(**lora)
    fields["capability"] = tuple(fields["capability"])
    fields["compile"] = fields.pop("compiled")
    for name, recorded_as in (("dtype", "bf16"), ("residual", "bf16_residual")):
        fields[name] = "bfloat16" if fields.pop(recorded_as) else "float32"
    return Workload(**fields, optimizer="adamw")


@lru_cache(maxsize=1)
def recorded() -> Found:
    """Return what is recorded with this torch."""
    record = json.loads(FILE.read_text()) if FILE.exists() else {}
    return record.get("peaks", {}) if record.get("torch") == VERSION else {}


def traced_again(key: str) -> Mapping[str, list[int]]:
    """Trace everything that is recorded for a key."""
    step, found = StepTrace(traced_of(key)), {}
    for asked in recorded()[key]:
        rows, recompute, ranks = json.loads(asked)
        peaks = step.peaks(rows, recompute=recompute, ranks=ranks)
        found[asked] = list(dataclasses.astuple(peaks))
    return found


def _add(key: str, asked: str, peaks: Peaks) -> None:
    recorded.cache_clear()  # another process may have added what it traced
    found = recorded()
    found.setdefault(key, {})[asked] = list(dataclasses.astuple(peaks))
    rows = (
        f"  {json.dumps(key)}: {json.dumps(dict(sorted(found[key].items())))}"
        for key in sorted(found)
    )
    text = ",\n".join(rows)
    record = f'{{"torch": {json.dumps(VERSION)}, "peaks": {{\n{text}\n}}}}\n'
    write_atomically(FILE, record.encode())
