"""What is published about CORE's 22 tasks: their types, examples and baselines."""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

from pion.evaluation.results import TaskType

TASK_TYPES: tuple[TaskType, ...] = get_args(TaskType)


@dataclass(frozen=True)
class Published:
    """A task of CORE. Baselines are shares of right answers by guessing, in percent.

    DCLM corrected three baselines on 5 September 2025 (v2). nanochat and the published numbers use
    the baselines of before (v1).
    """

    task_type: TaskType
    shots: int
    v1: float
    v2: float


def _task(task_type: TaskType, shots: int, v1: float = 0.0, v2: float | None = None) -> Published:
    return Published(task_type, shots, v1, v1 if v2 is None else v2)


CORE_TASKS: dict[str, Published] = {
    "hellaswag_zeroshot": _task("multiple_choice", 0, 25),
    "jeopardy": _task("language_modeling", 10),
    "bigbench_qa_wikidata": _task("language_modeling", 10),
    "arc_easy": _task("multiple_choice", 10, 25),
    "arc_challenge": _task("multiple_choice", 10, 25),
    "copa": _task("multiple_choice", 0, 50),
    "commonsense_qa": _task("multiple_choice", 10, 20, 40.3),
    "piqa": _task("multiple_choice", 10, 50),
    "openbook_qa": _task("multiple_choice", 0, 25),
    "lambada_openai": _task("language_modeling", 0),
    "hellaswag": _task("multiple_choice", 10, 25),
    "winograd": _task("schema", 0, 50),
    "winogrande": _task("schema", 0, 50),
    "bigbench_dyck_languages": _task("language_modeling", 10),
    "agi_eval_lsat_ar": _task("multiple_choice", 3, 20, 25),
    "bigbench_cs_algorithms": _task("language_modeling", 10),
    "bigbench_operators": _task("language_modeling", 10),
    "bigbench_repeat_copy_logic": _task("language_modeling", 10),
    "squad": _task("language_modeling", 10),
    "coqa": _task("language_modeling", 0),
    "boolq": _task("multiple_choice", 10, 62),
    "bigbench_language_identification": _task("multiple_choice", 10, 9.1, 25),
}

# Tasks that ask several questions about one passage.
WITH_PASSAGES = ("squad", "coqa")
