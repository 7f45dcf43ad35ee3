"""The questions that a job names, and CORE in the evaluate stage.

Each task of CORE is a part, so an interrupted run repeats one at most.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from pion.errors import BadInput
from pipeline.console.formats import counted
from pipeline.job import Job
from pipeline.job.digest import Inputs, digest_of
from pipeline.stages.measures import Measures, Part, Result
from pipeline.state.run_state import BY_ITEM

if TYPE_CHECKING:
    from pion.evaluation.core.bundle import Bundle, Task
    from pion.evaluation.item_scores import Scored
    from pion.evaluation.questions import Question

DTYPE = "dtype"
# Of a task, what is not a number if the model's logits are not finite.
OF_LOGITS = (
    *("accuracy", "sem", "centred", "centred_sem"),
    *("centred_v2", "centred_v2_sem"),
)


@dataclass(frozen=True)
class Questions:
    """The questions that a job names: multiple-choice packs by name, and a bundle of CORE."""

    packs: Mapping[str, list[Question]]
    core: Bundle | None


def read_questions_of(job: Job) -> Questions:
    """Return the questions that the job names, the packs by file stem.

    Raises BadInput for a line that is not a question, with file and line, for two packs of the same
    name, for a bundle that can't be read, and for a model whose context is too short.
    """
    from pion.evaluation.questions import read_questions

    packs: dict[str, list[Question]] = {}
    for pack in job.evaluate.packs:
        path = job.kept_path(pack)
        if path.stem in packs:
            raise BadInput(f"evaluate.packs: two packs are called {path.stem!r}: rename one")
        packs[path.stem] = read_questions(path)
    return Questions(packs, _read_core(job))


def _read_core(job: Job) -> Bundle | None:
    """Return the bundle of questions that the job names; None if it names none."""
    from pion.evaluation.core.bundle import read_bundle
    from pion.evaluation.core.measure import too_short

    section = job.evaluate.core
    if section is None:
        return None
    problem = too_short(job.model_config_resolved().seq_len)
    if problem and not section.cropped:
        raise BadInput(
            f"evaluate.core: {problem}. Set evaluate.core.cropped: true to measure it all the same"
        )
    return read_bundle(job.kept_path(section.path))


def core_of(measures: Measures, stage: str, bundle: Bundle, part: Part) -> Result:
    """Return the CORE of the model of `stage`. Under BY_ITEM are the answers to single items."""
    from pion.evaluation.core.measure import core_result

    section = measures.job.evaluate.core
    assert section is not None
    limit = None if section.items == "all" else section.items
    parts = [
        part(
            _name(stage, task, limit),
            f"{stage} model on {counted(_count(task, limit), 'item')} of {task.label}",
            partial(_measure, measures, stage, task, limit),
        )
        for task in bundle.tasks
    ]
    context = measures.job.model_config_resolved().seq_len
    # A run may continue on a machine that computes in another dtype.
    dtypes = " and ".join(sorted({one[DTYPE] for one in parts}))
    tasks = list(map(_task_from, parts))
    core = core_result(bundle, tasks, limit=limit, context=context, dtype=dtypes)
    return core | {BY_ITEM: {k: v for one in parts for k, v in one[BY_ITEM].items()}}


def _task_from(stored: Result) -> Scored:
    """Return a task's result as it was before it was kept. NaN was kept as null."""
    from pion.evaluation.item_scores import Scored, unpack

    (packed,) = stored[BY_ITEM].values()
    record = {key: value for key, value in stored.items() if key not in (BY_ITEM, DTYPE)}
    nan = {name: math.nan for name in OF_LOGITS if record[name] is None}
    return Scored(record | nan, unpack(packed).scores)


def _measure(measures: Measures, stage: str, task: Task, limit: int | None) -> Result:
    """Measure one task. Its result has the credits of single items, packed."""
    from pion.evaluation.core.measure import measure_task
    from pion.evaluation.core.rows import passages_of
    from pion.evaluation.core.scoring import USUAL_ROW
    from pion.evaluation.item_scores import item_scores, pack

    context = measures.job.model_config_resolved().seq_len
    scorer = measures.row_scorer(stage, min(USUAL_ROW, context))
    result = measure_task(scorer, measures.tokenizer, task, limit)
    packed = pack(item_scores(result.credits, passages_of(task, result.record["items"])))
    form = _key(task, limit) | {"baseline": result.record["baseline"]}
    items = {f"core.{task.label}": {"key": form, **packed}}
    return {**result.record, DTYPE: str(scorer.dtype).removeprefix("torch."), BY_ITEM: items}


def _key(task: Task, limit: int | None) -> Inputs:
    """Return what two models must have in common for their answers to be compared."""
    from pion.evaluation.core.measure import RULE

    form = {"shots": task.shots, "task_type": task.task_type, "delimiter": task.delimiter}
    return {"rule": RULE, "questions": task.data_digest, "items": _count(task, limit), **form}


def _name(stage: str, task: Task, limit: int | None) -> str:
    """Return the name of a part. A changed bundle has other names, so CORE starts again."""
    decides = {"label": task.label, "baseline": task.baseline, **_key(task, limit)}
    return f"{stage}.core.{task.label.replace('_', '-')}.{digest_of(decides)}"


def _count(task: Task, limit: int | None) -> int:
    return len(task.items) if limit is None else min(limit, len(task.items))
