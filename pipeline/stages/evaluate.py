"""The evaluate stage: how good the base and the fine-tuned model are, next to two baselines.

An evaluation consists of parts: one measure of one model each. Every finished part is kept, so an
interrupted evaluation does only the parts that are left. It reads checkpoints and never writes to
training state.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from pion.errors import BadInput
from pipeline.job import Job
from pipeline.stages.before_after import Start, as_results, compare, measure_each
from pipeline.stages.measures import Measures, Parts, Result, TrainedRun

if TYPE_CHECKING:
    from pion.evaluation.multiple_choice import Question


def evaluate_run(
    job: Job,
    trained: TrainedRun,
    parts: Parts,
    sleep: Callable[[float], None] = time.sleep,
    start: Start | None = None,
) -> Result:
    """Return the results of every model and baseline, by the names that the card and report use.

    `start` is what was measured of the model that the run started from; the last model is compared
    with it. `sleep` is called between batches and while another process works. An error that
    `sleep` raises ends the evaluation; the unfinished part is done again next time. Raises
    BadInput, before anything is computed, for a pack that can't be used.
    """
    with closing(Measures(job, trained, on_batch=lambda: sleep(0.0))) as measures:
        return _Evaluation(measures, parts, sleep, start).results()


def read_packs(job: Job) -> dict[str, list[Question]]:
    """Return the job's multiple-choice packs by file stem.

    Raises BadInput for a line that is not a question, with file and line, and for two packs of
    the same name.
    """
    from pion.evaluation.multiple_choice import read_questions

    packs: dict[str, list[Question]] = {}
    for pack in job.evaluate.packs:
        path = job.input_path(pack)
        if path.stem in packs:
            raise BadInput(f"evaluate.packs: two packs are called {path.stem!r}: rename one")
        packs[path.stem] = read_questions(path)
    return packs


@dataclass(frozen=True)
class _Evaluation:
    """Which parts there are, and in which order."""

    measures: Measures
    part: Parts
    sleep: Callable[[float], None]
    start: Start | None

    def results(self) -> Result:
        measures, trained = self.measures, self.measures.trained
        section, packs = measures.job.evaluate, read_packs(measures.job)
        results: Result = {stage: self._model(stage, packs) for stage in trained.models}
        if self.start is not None:
            results |= self._compared(results, self.start)
        if trained.pretrain_data is not None:
            if self.start is None:  # else the weights before training are those of the start
                label = "untrained model on held-out text"
                results["untrained"] = self.part("untrained.held_out", label, measures.untrained)
            if section.ngram_order:
                results["ngram"] = self.part("ngram", "n-gram baseline", measures.ngram)
        if measures.tokenizer.normalization is not None:
            results["normalization"] = measures.tokenizer.normalization
        measures.close()
        if section.lm_eval.tasks:
            results["lm_eval"] = self._lm_eval()
        return results

    def _compared(self, results: Result, start: Start) -> Result:
        """Return the results of the start, of the last model on the same rows, and the change."""
        final = list(self.measures.trained.models)[-1]
        after = measure_each(self.measures, final, start.names, self.part)
        return compare(start, after) | {final: results[final] | as_results(after)}

    def _model(self, stage: str, packs: dict[str, list[Question]]) -> Result:
        """Return all measures of the model of `stage`."""
        measures, trained = self.measures, self.measures.trained
        result = Result()
        compared = self.start is not None and stage == list(trained.models)[-1]
        if trained.pretrain_data is not None and not compared:
            label = f"{stage} model on held-out text"
            result |= self.part(f"{stage}.held_out", label, partial(measures.held_out, stage))
        if stage == "sft" and trained.sft_data is not None and not compared:
            label = "sft model on held-out conversations"
            result |= self.part("sft.responses", label, measures.responses)
        if measures.job.evaluate.continuations and (questions := measures.continuations()):
            result["continuations"] = self.part(
                f"{stage}.continuations",
                f"{stage} model on {len(questions)} true continuations",
                partial(measures.multiple_choice, stage, questions),
            )
        if packs:
            result["packs"] = {
                name: self.part(
                    f"{stage}.packs.{name}",
                    f"{stage} model on pack {name}",
                    partial(measures.multiple_choice, stage, questions),
                )
                for name, questions in packs.items()
            }
        return result

    def _lm_eval(self) -> Result:
        """Run each task on the final model. It is exported once, if any task is left."""
        from pion.formats.export import export_model
        from pion.formats.huggingface.tokenizer_files import exported_tokenizer
        from pipeline.models.load import load_model_in
        from pipeline.stages.lm_eval import TaskOptions, run_task

        measures, job = self.measures, self.measures.job
        section = job.evaluate.lm_eval
        options = TaskOptions(
            include_path=job.input_path(section.include_path) if section.include_path else None,
            working_folder=job.folder,
            limit=section.limit,
            device=measures.device.type,
        )
        with tempfile.TemporaryDirectory(prefix="pion-export-") as folder:
            exported = Path(folder) / "model"

            def run(task: str) -> Result:
                if not exported.exists():
                    final = load_model_in(list(measures.trained.models.values())[-1])
                    tokenizer = exported_tokenizer(
                        measures.chat_path, imported=final.config.imported
                    )
                    export_model(final, tokenizer, exported)
                return run_task(task, exported, options, self.sleep)

            return {
                task: self.part(f"lm_eval.{task}", f"lm-eval task {task}", partial(run, task))
                for task in section.tasks
            }
