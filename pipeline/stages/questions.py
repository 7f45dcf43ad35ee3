"""The questions that a job names: packs of multiple choice, and a bundle of CORE."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pion.errors import BadInput
from pipeline.job import Job
from pipeline.stages.core import read_core

if TYPE_CHECKING:
    from pion.evaluation.core.bundle import Bundle
    from pion.evaluation.questions import Question


def read_packs(job: Job) -> dict[str, list[Question]]:
    """Return the job's multiple-choice packs by file stem.

    Raises BadInput for a line that is not a question, with file and line, and for two packs of
    the same name.
    """
    from pion.evaluation.questions import read_questions

    packs: dict[str, list[Question]] = {}
    for pack in job.evaluate.packs:
        path = job.input_path(pack)
        if path.stem in packs:
            raise BadInput(f"evaluate.packs: two packs are called {path.stem!r}: rename one")
        packs[path.stem] = read_questions(path)
    return packs


@dataclass(frozen=True)
class Questions:
    """The questions that a job names: multiple-choice packs by name, and a bundle of CORE."""

    packs: Mapping[str, list[Question]]
    core: Bundle | None


def read_questions_of(job: Job) -> Questions:
    """Return the questions that the job names.

    Raises BadInput as `read_packs` and `read_core` do.
    """
    return Questions(read_packs(job), read_core(job))
