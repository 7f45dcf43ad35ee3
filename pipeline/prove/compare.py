"""How a run's training stages ended, and where two runs of the same job first differ."""

from __future__ import annotations

import hashlib
import json
import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pion.data.order import step_rows
from pion.errors import PionError
from pion.formats.weights import tensor_hashes
from pipeline.console.formats import some
from pipeline.job import Job
from pipeline.state.checkpoints.layout import MODEL, STATE
from pipeline.state.head import Head, SkippedRows
from pipeline.state.record_json import parse_record
from pipeline.state.rows.metrics import Row, read_metrics
from pipeline.state.run_state import RunState

# Differing tensors or settings that a message names; it counts the rest.
NAMED = 5


@dataclass(frozen=True)
class Trained:
    """A finished training stage.

    Attributes:
        checkpoint: the key of its last checkpoint.
        model_sha256: the hash of its weights.
        rows: the rows [first, stop) that each step trained on.
        losses: the loss of each step.
        plan: how the steps were computed.
        problem: what is wrong with the order of the rows; None if nothing is.
    """

    checkpoint: str
    model_sha256: str
    rows: Sequence[tuple[int, int]]
    losses: Sequence[float]
    plan: Mapping[str, Any]
    problem: str | None

    def to_dict(self) -> dict[str, Any]:
        """Return what identifies the result, as plain JSON."""
        return {
            "steps": len(self.rows),
            "model_sha256": self.model_sha256,
            "rows_sha256": hashlib.sha256(json.dumps(self.rows).encode()).hexdigest(),
            "plan": dict(self.plan),
        }


def read_trained(run: RunState, job: Job) -> dict[str, Trained]:
    """Return each training stage of a finished run. Raises PionError for an unfinished stage."""
    head = run.read() or Head()
    trained = {}
    for stage in job.train_stages:
        record = head.stages.get(stage)
        if record is None or record.checkpoint is None:
            raise PionError(f"{run.url} has not finished {stage}.")
        entry = next((e for e in head.checkpoints if e.key == record.checkpoint), None)
        if entry is None:
            raise PionError(f"{run.url} does not list {record.checkpoint}, the end of {stage}.")
        steps = [r for r in read_metrics(run.store, run.name, head, stage) if "rows" in r]
        where = run.key(f"{entry.key}/{STATE}")
        state = parse_record(run.store.read(where), f"{run.store.url}/{where}")
        section = job.section(stage)
        skipped = [rows for rows in head.skipped.get(stage, ()) if rows.digest == record.digest]
        trained[stage] = Trained(
            checkpoint=entry.key,
            model_sha256=entry.model_sha256,
            rows=[(row["rows"][0], row["rows"][1]) for row in steps],
            losses=[row.get("loss", math.nan) for row in steps],
            plan=state.get("plan", {}),
            problem=_row_problem(steps, section.total_steps, section.global_batch, skipped),
        )
    return trained


def first_difference(
    unbroken: RunState, whole: Mapping[str, Trained], killed: RunState, found: Mapping[str, Trained]
) -> str | None:
    """Return where `killed`, with the stages `found`, first differs from `unbroken`, or None.

    The text names the first step with another loss or other rows, if there is one, the tensors that
    differ, and the settings that do.
    """
    for stage, wanted in whole.items():
        got = found[stage]
        same_weights = got.model_sha256 == wanted.model_sha256
        if same_weights and got.rows == wanted.rows and got.problem is None:
            continue
        step, what = _first_step(wanted, got)
        parts = [f"{stage} differs {step}: {got.problem or what}"]
        if not same_weights:
            names = differing_tensors(unbroken, wanted.checkpoint, killed, got.checkpoint)
            if names:
                parts.append(f"tensors that differ: {some(names, NAMED)}")
        names = sorted({*wanted.plan, *got.plan})
        pairs = [(name, wanted.plan.get(name), got.plan.get(name)) for name in names]
        if settings := [f"{name} {a} → {b}" for name, a, b in pairs if a != b]:
            parts.append(f"computed differently: {some(settings, NAMED)}")
        return "; ".join(parts)
    return None


def differing_tensors(run: RunState, key: str, other: RunState, other_key: str) -> list[str]:
    """Return the names of the weights that are not bit-identical in two checkpoints."""
    first, second = _tensor_hashes(run, key), _tensor_hashes(other, other_key)
    return sorted(n for n in {*first, *second} if first.get(n) != second.get(n))


def _tensor_hashes(run: RunState, checkpoint: str) -> dict[str, str]:
    """Return type, shape and hash of each tensor in a checkpoint's weights."""
    key = run.key(checkpoint)
    with tempfile.TemporaryDirectory(prefix="pion-prove-") as temporary:
        folder = run.store.local_path(key)
        if folder is None:
            folder = Path(temporary)
            run.store.download(f"{key}/{MODEL}", folder / MODEL)
        return tensor_hashes(folder / MODEL)


def _first_step(wanted: Trained, got: Trained) -> tuple[str, str]:
    """Return from which step on, and in what, two trained stages differ."""
    for step, (a, b) in enumerate(zip(wanted.rows, got.rows), 1):
        if a != b:
            return f"from step {step:,}", f"it trained on rows {_range(b)} instead of {_range(a)}"
    steps, due = len(got.rows), len(wanted.rows)
    if steps != due:
        return (
            f"from step {min(steps, due) + 1:,}",
            f"{steps:,} steps are on record instead of {due:,}",
        )
    for step, (x, y) in enumerate(zip(wanted.losses, got.losses), 1):
        if x != y:
            return f"from step {step:,}", f"the loss is {y!r} instead of {x!r}"
    weights = f"weights {got.model_sha256[:12]} instead of {wanted.model_sha256[:12]}"
    return "after its last step", weights


def _row_problem(
    rows: Sequence[Row], steps: int, batch: int, skipped: Sequence[SkippedRows]
) -> str | None:
    """Return what is wrong with the rows of a stage, or None.

    There must be `steps` steps, each on the next `batch` rows that are not `skipped`.
    """
    numbers = [row["step"] for row in rows]
    if numbers != list(range(1, steps + 1)):
        twice = sorted({n for n in numbers if numbers.count(n) > 1})
        missing = sorted(set(range(1, steps + 1)) - set(numbers))
        return f"steps recorded twice: {twice or 'none'}; missing: {missing or 'none'}"
    left_out = [(item.first, item.stop) for item in skipped]
    next_row = 0
    for row in rows:
        first, stop = row["rows"]
        _, expected = step_rows(next_row, batch, left_out)
        if (first, stop) != (next_row, expected):
            took, due = _range((first, stop)), _range((next_row, expected))
            return f"step {row['step']:,} trained on rows {took} instead of {due}"
        next_row = stop
    return None


def _range(rows: tuple[int, int]) -> str:
    return f"{rows[0]:,} to {rows[1] - 1:,}"
