"""The process that runs one task of lm-eval: `python -m pipeline.stages.lm_eval_driver REQUEST`.

It writes the answer into the folder that the request names. What a person should read of a failure
is the answer's `skipped`, or the last line of the standard error.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager

from pion.data.chat.template_source import find_template
from pion.errors import BadInput
from pion.later_fields import closest
from pipeline.report.benchmarks import ASKED
from pipeline.stages.lm_eval import ANSWER, Chat, TaskRequest
from pipeline.stages.lm_eval_model import CheckedModel
from pipeline.stages.lm_eval_results import (
    FEWSHOT_SEED,
    Form,
    asked_of,
    drawn,
    items_of,
    metrics_of,
)
from pipeline.state.record_json import finite_json
from pipeline.state.run_state import BY_ITEM

# Rows at once.
BATCH_SIZE = 8
WRITES = "generate_until"
# Scores whole texts, so there is nothing to ask.
WHOLE_TEXTS = "loglikelihood_rolling"


def main() -> None:
    """Run the task of the request, and write the answer."""
    request = TaskRequest.from_json(sys.argv[1])
    # A task's own Python code may import modules next to the job. They come last, so that they
    # can't replace others.
    sys.path.append(str(Path.cwd()))
    try:
        answer = run(request)
    except BadInput as error:
        answer = {"skipped": str(error), BY_ITEM: {}}
    Path(request.out, ANSWER).write_text(finite_json(answer), encoding="utf-8")


def run(request: TaskRequest) -> dict[str, Any]:
    """Return the answer: the metrics, how the model was asked, and the score of each question.

    Raises BadInput for a task that can't be asked in the wanted form, and what lm-eval raises.
    """
    manager = _manager(request)
    if request.task not in manager.all_tasks:
        near = closest(request.task, manager.all_tasks)
        raise BadInput(f"evaluate.lm_eval.tasks: lm-eval has no task {request.task!r}{near}")
    loaded = manager.load([request.task])
    tasks, group = loaded["tasks"], loaded["groups"].get(request.task)
    if request.task not in tasks and (group is None or not group.has_aggregation):
        raise BadInput(
            f"lm-eval has no score for {request.task} as a whole. Name its tasks in "
            f"evaluate.lm_eval.tasks: {', '.join(tasks):.300}"
        )
    kinds = {name: str(task.get_config("output_type")) for name, task in tasks.items()}
    form = form_of(request.task, kinds, request.chat, request.tuned)
    if form == "chat":
        _require_chat_format(request)
    places = {name: drawn(len(task.eval_docs), request.limit) for name, task in tasks.items()}
    samples = {name: results for name, results in places.items() if results is not None}
    about = {
        "device": request.device,
        "batch_size": BATCH_SIZE,
        "trust_remote_code": request.trusted,
    }
    with closing(CheckedModel(request.model, Path(request.tokenizer), about)) as model:
        results = simple_evaluate(
            model,
            tasks=list(tasks.values()) if group is None else [group],
            samples=samples or None,
            apply_chat_template=form == "chat",
            fewshot_as_multiturn=form == "chat",
            fewshot_random_seed=FEWSHOT_SEED,
            task_manager=manager,
        )
        counts = model.counts
    metrics = metrics_of(results["results"][request.task])
    if not metrics:
        raise BadInput(f"lm-eval reported no metric for {request.task}")
    form_record = asked_of(results, request.task, form, counts, drawn=bool(samples))
    return metrics | {ASKED: form_record, BY_ITEM: items_of(results, form, counts.longest)}


def form_of(task: str, kinds: Mapping[str, str], chat: Chat, tuned: bool) -> Form:
    """Return in which form a model is asked `task`.

    `kinds` has the output type of the task, or of each task of the group. Raises BadInput for a
    task that can't be asked as a chat, and for a group that has tasks of both forms.
    """
    if chat is True:
        if whole_text_tasks := [name for name, kind in kinds.items() if kind == WHOLE_TEXTS]:
            raise BadInput(
                f"{whole_text_tasks[0]} can't be asked as a chat: it scores whole texts "
                f"({WHOLE_TEXTS}). Remove it from evaluate.lm_eval.tasks, or set "
                "evaluate.lm_eval.chat: auto"
            )
        return "chat"
    if chat is False or not tuned:
        return "text"
    writes = [name for name, kind in kinds.items() if kind == WRITES]
    if writes and len(writes) < len(kinds):
        scores = next(name for name in kinds if name not in writes)
        raise BadInput(
            f"the group {task} has tasks of both forms: {writes[0]} writes answers and is asked as "
            f"a chat, {scores} scores given ones and is asked as plain text. Name the tasks in "
            "evaluate.lm_eval.tasks, or set evaluate.lm_eval.chat to true or false"
        )
    return "chat" if writes else "text"


def _require_chat_format(request: TaskRequest) -> None:
    """Raise BadInput if the model has not learned a chat format, in this run or before."""
    if not request.tuned and find_template(Path(request.tokenizer).parent) is None:
        raise BadInput(
            f"{request.task} can't be asked as a chat: the model has no chat template, and the job "
            "has no sft. Set evaluate.lm_eval.chat: false"
        )


def _manager(request: TaskRequest) -> TaskManager:
    """Return what finds tasks. For a task of the user's own, lm-eval's own files are not read."""
    if request.include_path is not None:
        manager = TaskManager(include_path=request.include_path, include_defaults=False)
        if request.task in manager.all_subtasks:
            return manager
    return TaskManager(include_path=request.include_path, metadata={"pretrained": request.model})


if __name__ == "__main__":
    main()
