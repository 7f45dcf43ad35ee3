"""The evaluate stage: how good the base and the fine-tuned model are, next to two baselines.

An evaluation consists of parts: one measure of one model each. Every finished part is kept, so an
interrupted evaluation does only the parts that are left. It reads checkpoints and never writes to
training state.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from pion.config.model_config import RESULTS
from pion.errors import BadInput
from pion.evaluation.questions import digest_of_questions
from pipeline.console.messages import Note
from pipeline.data.compared_text import find_text
from pipeline.job import Job
from pipeline.job.digest import digest_of
from pipeline.stages.evaluate_core import Questions, core_of, read_questions_of
from pipeline.stages.evaluate_preferences import preferences_of
from pipeline.stages.evaluate_rewards import rewards_of
from pipeline.stages.measures import (
    NAMES,
    MeasuredOn,
    Measures,
    Parts,
    Result,
    TrainedRun,
    without_items,
)
from pipeline.state.kept_inputs import content_of
from pipeline.state.run_state import BY_ITEM

# The name of the model that a run starts from.
BASE = "base"
# By the stage, what measures its model and the one that it starts from.
LEARNED = {"prefer": preferences_of, "reinforce": rewards_of}
# Of more questions or documents, no single scores are kept to compare runs.
MOST_ITEMS = 100_000


def evaluate_run(
    job: Job,
    trained: TrainedRun,
    parts: Parts,
    sleep: Callable[[float], None] = time.sleep,
    start: MeasuredStart | None = None,
) -> Result:
    """Return the results of every model and baseline, by the names that the card and report use.

    `start` is what was measured of the model that the run started from; the last model is compared
    with it. `sleep` is called between batches and while another process works. An error that
    `sleep` raises ends the evaluation; the unfinished part is done again next time. The last part,
    `by_item`, has the scores of single questions and documents, by which two runs are compared.
    Raises BadInput, before anything is computed, for questions that can't be used.
    """
    with closing(Measures(job, trained, on_batch=lambda: sleep(0.0))) as measures:
        evaluation = _Evaluation(measures, parts, sleep, start)
        results = evaluation.results()
    items = {of: packed for of, packed in evaluation.items.items() if packed["n"] <= MOST_ITEMS}
    if items and parts.load(BY_ITEM) is None:
        parts.save(BY_ITEM, items)
    return results


@dataclass(frozen=True)
class _Evaluation:
    """Which parts there are, and in which order.

    `items` has the scores of single questions and documents, by model and by what they are of.
    """

    measures: Measures
    parts: Parts
    sleep: Callable[[float], None]
    start: MeasuredStart | None
    items: Result = field(default_factory=dict)

    def part(
        self, name: str, label: str, compute: Callable[[], Result], of: str | None = None
    ) -> Result:
        """Return a part without the scores of its single questions and documents.

        `of` is the model that was measured, if the name does not begin with it.
        """
        return self._without_items(of or name.partition(".")[0], self.parts(name, label, compute))

    def _without_items(self, model: str, result: Result) -> Result:
        """Keep the scores of single questions and documents in `items`; return the rest."""
        items = result.get(BY_ITEM, {})
        self.items.update({f"{model}.{measure}": packed for measure, packed in items.items()})
        return without_items(result)

    def results(self) -> Result:
        """Return the results of all parts."""
        measures, trained = self.measures, self.measures.trained
        section, questions = measures.job.evaluate, read_questions_of(measures.job)
        results: Result = {stage: self._model(stage, questions) for stage in trained.models}
        if self.start is not None:
            results |= self._compared(self.start)
        for stage in trained.starts:
            measured = LEARNED[stage](measures, self.part, self.parts.say)
            results[stage] |= self._without_items(stage, measured) | self._text_change(stage)
        if "pretrain" in trained.data:
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

    def _compared(self, start: MeasuredStart) -> Result:
        """Return the results of the start, the change from it to the last model, and which text
        both were measured on. A change has the names of the models' results."""
        change: Result = {}
        models = BASE, list(self.measures.trained.models)[-1]
        for kind, measured in start.measured.items():
            self._without_items(BASE, measured)
            of_kind = self._change(models, kind, NAMES[kind].removeprefix("text."))
            change |= {"text": of_kind} if kind == "text" else of_kind
        return {
            BASE: as_results(start.measured),
            "change": change,
            "compared_text": {"sha256": start.text},
        }

    def _model(self, stage: str, questions: Questions) -> Result:
        """Return all measures of the model of `stage`."""
        measures, trained = self.measures, self.measures.trained
        result = Result()
        last = stage == list(trained.models)[-1]
        if "pretrain" in trained.data:
            result |= self._on_rows(stage, "held_out")
        longer = any(phase.length > 1 for phase in measures.job.mix_phases[-1:])
        if longer and last:
            result["long_context"] = self.part(
                f"{stage}.long_context",
                f"what the longer context is worth to the {stage} model",
                partial(measures.long_context, stage),
            )
        for name, of in RESULTS.items():
            if getattr(measures.job.model_config_resolved(), name) and "pretrain" in trained.data:
                result[of.name] = self.part(
                    f"{stage}.{of.name}",
                    f"{of.name} of the {stage} model",
                    partial(measures.part_alone, stage, name),
                )
        if "sft" in trained.data:  # before sft, too: sft should improve it
            result |= self._on_rows(stage, "conversations")
        if self.start is not None and last:
            result["text"] = self._on_rows(stage, "text")
        if measures.job.evaluate.continuations and (cut := measures.continuations()):
            result["continuations"] = self.part(
                f"{stage}.continuations",
                f"{stage} model on {len(cut)} true continuations",
                partial(measures.multiple_choice, stage, "continuations", cut),
            )
        if questions.packs:
            result["packs"] = {
                name: self.part(
                    f"{stage}.packs.{name}.{digest_of_questions(pack)[:16]}",
                    f"{stage} model on pack {name}",
                    partial(measures.multiple_choice, stage, f"packs.{name}", pack),
                )
                for name, pack in questions.packs.items()
            }
        if questions.core is not None:
            core = core_of(measures, stage, questions.core, self.parts)
            result["core"] = self._without_items(stage, core)
        return result

    def _on_rows(self, stage: str, kind: MeasuredOn) -> Result:
        """Measure the model of `stage` on rows."""
        measures = self.measures
        name = {"conversations": "responses", "held_out": "held_out"}.get(kind)
        return self.part(
            f"{stage}.{name or f'text.{find_text(measures.job).sha256[:16]}'}",
            f"{stage} model on {LABELS[kind]}",
            partial(measures.on_rows, stage, kind),
        )

    def _text_change(self, stage: str) -> Result:
        """Return the `text_change` in bits per byte from the model that a stage starts from, and
        the `response_change` in nats per token, if both were measured on conversations.

        The text is the run's held-out text or, without one, that of `evaluate.text`.
        """
        models = self.measures.trained.starts[stage].name, stage
        kind: MeasuredOn = "held_out" if "pretrain" in self.measures.trained.data else "text"
        for model in models:
            if f"{model}.{NAMES[kind]}" not in self.items:
                self._on_rows(model, kind)
        change = self._change(models, kind, "text_change")
        return change | self._change(models, "conversations", "response_change")

    def _change(self, models: tuple[str, str], kind: MeasuredOn, name: str) -> Result:
        """Return the change from one model to the other as `name`, and its standard error; {} if
        one of them was not measured."""
        from pion.evaluation.item_scores import difference, unpack, with_errors

        measure = NAMES[kind]
        before, after = (self.items.get(f"{model}.{measure}") for model in models)
        if before is None or after is None:
            return {}
        try:
            return with_errors({name: difference(unpack(before), unpack(after))})
        except ValueError:
            raise BadInput(
                f"evaluate: the models {' and '.join(models)} were measured on different rows, so "
                f"{measure} can't be compared. The trained model is safe. Delete the parts in the "
                "run's folder stages/evaluate, and run the same command again: both are measured "
                "again."
            ) from None

    def _lm_eval(self) -> Result:
        """Run each task on the final model. It is exported once, if any task is left."""
        from pion.formats.export import export_model
        from pion.formats.huggingface.tokenizer_files import exported_tokenizer
        from pipeline.models.load import load_model_in
        from pipeline.stages.lm_eval import TaskRequest, run_task

        measures, job = self.measures, self.measures.job
        section = job.evaluate.lm_eval
        path = None if section.include_path is None else job.kept_path(section.include_path)
        digest = "" if path is None else f".{digest_of(dict(content_of(path)))}"
        with tempfile.TemporaryDirectory(prefix="pion-export-") as folder:
            exported = Path(folder).resolve() / "model"

            def run(task: str) -> Result:
                if not exported.exists():
                    final = load_model_in(list(measures.trained.models.values())[-1])
                    export_model(
                        final,
                        exported_tokenizer(measures.chat_path, imported=final.config.imported),
                        exported,
                    )
                label = f"evaluate: lm-eval task {task}"
                request = TaskRequest(
                    task=task,
                    model=str(exported),
                    tokenizer=str(measures.chat_path.resolve()),
                    include_path=None if path is None else str(path),
                    limit=section.limit,
                    device=measures.device.type,
                    chat=section.chat,
                    tuned=job.converses,
                )
                say = self.parts.say
                result = run_task(
                    *(request, job.folder, self.sleep),
                    say=lambda progress: say(Note(f"{label}: {progress}")),
                )
                if reason := result.get("skipped"):
                    say(Note(f"{label} is skipped: {reason}"))
                return result

            final = list(measures.trained.models)[-1]
            return {
                task: self.part(
                    f"lm_eval.{task}{digest}", f"lm-eval task {task}", partial(run, task), of=final
                )
                for task in section.tasks
            }


# ---------------------------------------------------------------- before and after training

# The model that a run started from and the trained model are measured on the same rows: on held-out
# conversations and text of the run, and on a text that has nothing to do with the run. What the
# model predicts worse there, it has forgotten. The same documents are paired, so the standard error
# of a difference is much smaller than the errors of its two sides.

LABELS: Mapping[MeasuredOn, str] = {
    "conversations": "held-out conversations",
    "held_out": "held-out text",
    "text": "other text",
}


@dataclass(frozen=True)
class MeasuredStart:
    """What was measured of the model that a run started from, by what it was measured on.

    `text` is the sha256 of the text.
    """

    measured: Mapping[MeasuredOn, Result]
    text: str


def as_results(measured: Mapping[MeasuredOn, Result]) -> Result:
    """Return one model's measures as results: those on the text are under `text`."""
    results: Result = {}
    for kind, result in measured.items():
        results |= {"text": without_items(result)} if kind == "text" else without_items(result)
    return results
