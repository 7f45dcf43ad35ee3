"""Which stages of a run are done, resume or begin, and which of them the job has changed."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pion.errors import BadInput
from pion.train.schedule import fixed_until, grows_over_the_run
from pipeline.console.formats import moment
from pipeline.job import STAGES, Job
from pipeline.job.digest import BIASES, Difference, Digests, Inputs, differences, digest_job
from pipeline.job.section import part_of
from pipeline.job.stages import stages_until
from pipeline.job.train_sections import phases_of, settings_of
from pipeline.state.find_run import refuse_remains
from pipeline.state.head import Head
from pipeline.state.run_state import RunState
from pipeline.state.status.recorded_job import know_rows
from pipeline.state.stores import DEFAULT_STORE
from pipeline.training.rewind import rows_to_skip

# Fields that move the borders of phases which end at a share of the steps, or at the decay.
MOVES_BORDERS = ("steps", "warmup_steps", "schedule", "decay_fraction")

WITHOUT_BIASES = (
    "{stage} trained the wrong model. An earlier version of Pion let LoRA learn without the biases "
    "of queries, keys and values. The base has them, and so has the merged model that was "
    "evaluated and published: its loss is not that of the training. Train {stage} again."
)


@dataclass(frozen=True)
class StagePlan:
    """One stage: `state` is done, resume, todo or stale."""

    stage: str
    state: str
    why: str


@dataclass(frozen=True)
class StaleStage(StagePlan):
    """A stage that has committed work under other settings.

    `old_digest` is the digest of this work, and `steps` are the steps of its checkpoints, newest
    first. It `left_out` these ranges of rows, in their order.
    """

    old_digest: str
    steps: tuple[int, ...]
    left_out: Sequence[tuple[int, int]] = ()


@dataclass(frozen=True)
class WorkLeft:
    """What a `pion run` of a job has to do.

    `head` is the run as it is; `raised` the stage that continues under another digest.
    """

    digests: Digests
    head: Head | None
    plans: Sequence[StagePlan]
    redo: str | None
    raised: StaleStage | None

    def finished(self, until: str | None = None) -> bool:
        """Return whether every stage up to `until` is done, and no stage is to be redone."""
        wanted = stages_until([plan.stage for plan in self.plans], until)
        return self.redo is None and all(p.state == "done" for p in self.plans if p.stage in wanted)


def work_left(
    job: Job,
    run: RunState,
    *,
    redo: str | None = None,
    job_path: str | None = "JOB",
    forked: Head | None = None,
) -> WorkLeft:
    """Return what is left to do of `job` in `run`, or in a fork of it that would be `forked`.

    Raises StoreError, and BadInput if continuing would invalidate committed work that `redo` does
    not name, or overwrite that of a run without HEAD.json. `job_path` is the job file as the user
    typed it. None: the message names no command.
    """
    head = forked or run.read()

    def read_inputs(stage: str, digest: str) -> Inputs | None:
        kept = run.read_stage(stage, digest)
        return dict(kept["inputs"]) if kept else None

    if head is None:
        refuse_remains(run)
    else:
        know_rows(job, head)
        keep_warmup(job, head, redo, read_inputs)
    digests = digest_job(job)
    plans = plan_stages(job, digests, head)
    changed = None
    if (stale := first_stale(plans)) is not None:
        changed = ChangedStage(job, digests, stale, read_inputs(stale.stage, stale.old_digest))
        if head is not None and changed.continues(head):
            return WorkLeft(digests, head, plans, redo, raised=stale)
    check_redo(job, plans, redo, changed, job_path)
    return WorkLeft(digests, head, plans, redo, raised=None)


def plan_stages(job: Job, digests: Digests, head: Head | None) -> list[StagePlan]:
    """Return the plan of every stage of `job`, in order."""
    return [_plan_stage(stage, digests.stages[stage], head or Head()) for stage in job.stages]


def _plan_stage(stage: str, digest: str, head: Head) -> StagePlan:
    record = head.stages.get(stage)
    if record is not None and record.digest == digest:
        return StagePlan(stage, "done", f"finished {moment(record.at)} with the same settings")
    entries = [entry for entry in head.checkpoints if entry.stage == stage]
    newest = next((e for e in entries if e.digest == digest), entries[0] if entries else None)
    if record is not None:
        old, why = record.digest, f"finished {moment(record.at)} with different settings"
    elif newest is None:
        return StagePlan(stage, "todo", "not begun")
    elif newest.digest == digest:
        return StagePlan(stage, "resume", f"at step {newest.step:,}, saved {moment(newest.at)}")
    else:
        old = newest.digest
        why = f"at step {newest.step:,} with different settings, saved {moment(newest.at)}"
    steps = tuple(entry.step for entry in entries if entry.digest == old)
    return StaleStage(stage, "stale", why, old, steps, rows_to_skip(head, stage, old, 0))


def check_redo(
    job: Job,
    plans: Sequence[StagePlan],
    redo: str | None,
    changed: ChangedStage | None,
    job_path: str | None = "JOB",
) -> None:
    """Raise BadInput if continuing would invalidate committed work that `redo` does not name.

    `changed` is the first stage of that work. `job_path` is the job file as the user typed it.
    """
    if redo is not None and redo not in job.stages:
        raise BadInput(
            f"--redo {redo}: this job has no such stage. Its stages: {', '.join(job.stages)}."
        )
    if changed and (redo is None or STAGES.index(redo) > STAGES.index(changed.stale.stage)):
        raise BadInput(changed.refusal(plans, job_path))


def first_stale(plans: Sequence[StagePlan]) -> StaleStage | None:
    """Return the first stage whose committed work the job would invalidate.

    `prepare` does not count: its data is kept under its own digest and costs nothing to prepare
    again. The stages that were trained on the data do count.
    """
    return next((p for p in plans if isinstance(p, StaleStage) and p.stage != "prepare"), None)


@dataclass(frozen=True)
class ChangedStage:
    """A stage that has committed work, and what the job changes about it.

    `old` has the inputs of this work; None: they were not kept.
    """

    job: Job
    digests: Digests
    stale: StaleStage
    old: Inputs | None

    def changes(self) -> list[Difference]:
        """Return the fields, data included, in which the job differs from the stale stage."""
        if self.old is None:
            return []
        old, new = self.old, stage_inputs(self.stale.stage, self.digests)
        found = differences(old, new, self.digests.before)
        inputs = [p for p in sorted(old.keys() | new.keys()) if old.get(p) != new.get(p)]
        return found or [Difference(path, old.get(path), new.get(path)) for path in inputs]

    # ------------------------------------------------------------ may it continue?

    def continues(self, head: Head) -> bool:
        """Return whether the stage's checkpoints are valid for this job despite another digest."""
        return self.steps_may_be_raised(head) or self.fork_may_continue(head)

    def steps_may_be_raised(self, head: Head) -> bool:
        """Return whether the only change is more steps, made before either schedule begins to
        decay.

        Until then both schedules give the same learning rates, so the work done stays valid.
        """
        stage, changed = self.stale.stage, self.changes()
        only_steps = [change.path for change in changed] == [f"{stage}.steps"]
        if stage in head.stages or not only_steps or type(changed[0].old) is not int:
            return False
        newest = next(entry for entry in head.checkpoints if entry.stage == stage)
        section, steps = self.job.section(stage), changed[0].old
        before = settings_of(section.model_copy(update={"steps": steps}))
        return section.total_steps > steps and newest.step <= fixed_until(before)

    def fork_may_continue(self, head: Head) -> bool:
        """Return whether a fork's stage can continue, under this job, from the checkpoint it forked
        at.

        The fork must not have trained yet, and only the stage's schedule may differ: then the
        weights, the optimizer's state and the coming rows are still right. Steps must be left,
        because weights that were trained only under the old schedule are not a result of this job.
        """
        stage = self.stale.stage
        newest = next((entry for entry in head.checkpoints if entry.stage == stage), None)
        if newest is None or newest.key != head.forked or stage in head.stages:
            return False
        return self._is_left(newest.step) and self._only_schedule_differs(newest.step)

    def _is_left(self, step: int) -> bool:
        """Return whether the stage has steps after `step`, as far as that is known."""
        section = self.job.section(self.stale.stage)
        return not section.steps_are_known or step < section.total_steps

    def _only_schedule_differs(self, step: int) -> bool:
        """Return whether training can continue under this job from the old checkpoint of a step."""
        stage, old = self.stale.stage, self.old
        if old is None or stage not in self.job.train_stages:
            return False
        section, new = self.job.section(stage), stage_inputs(stage, self.digests)
        fields = type(section).model_fields.items()
        may = {f"{stage}.{name}" for name, field in fields if part_of(field) == "schedule"}
        may.discard(f"{stage}.optimizer")  # another optimizer has other state
        later = [f"{stage}.phases.{n}." for n in range(self._begun(step), len(section.phases) + 1)]
        fixed = {f"input.data.{stage}.{name}" for name in self._sources_read(step)}
        if fixed:  # each source is compared by itself, and others may be added
            later += ["data.sources."]
            if grows_over_the_run(settings_of(section)):
                may -= {f"{stage}.{name}" for name in MOVES_BORDERS}
        inputs = {path for path in old.keys() | new.keys() if path.startswith("input.")}
        free = {
            path for path in inputs - fixed if fixed and path.startswith(f"input.data.{stage}.")
        }
        same_inputs = all(old.get(path) == new.get(path) for path in inputs - free)
        changed = {change.path for change in self.changes()} - may - inputs
        return same_inputs and all(path.startswith(tuple(later)) for path in changed)

    def _begun(self, step: int) -> int:
        """Return how many phases of the job have begun before a step.

        Rows that were left out count: what a model reads follows the rows.
        """
        if self.stale.stage not in self.job.train_stages:
            return 0
        section = self.job.section(self.stale.stage)
        if not section.phases or section.steps is None:
            return 0
        ends = [phase.end(section.steps) for phase in phases_of(section)]
        row = step * section.global_batch
        for first, stop in self.stale.left_out:
            row += stop - first if first < row else 0
        return sum(start * section.global_batch < row for start in [0, *ends[:-1]])

    def _sources_read(self, step: int) -> set[str]:
        """Return the names of the sources that mixes have read before a step."""
        mixes = self.job.mix_phases if self.stale.stage == "pretrain" else []
        return {name for phase in mixes[: self._begun(step)] for name in phase.mix or ()}

    # ------------------------------------------------------------ if not, what then?

    def refusal(self, plans: Sequence[StagePlan], job_path: str | None) -> str:
        """Return why the run can't continue: the exact difference, and the options if the job has a
        path."""
        stage = self.stale.stage
        changes = {change.path: f"    {change}" for change in self.changes()}
        wrong = changes.pop(f"{stage}.{BIASES}", None) is not None
        by_the_job = not wrong or bool(changes)
        follows = self.job.stages[self.job.stages.index(stage) :]
        kept = [p.stage for p in plans if p.state == "done" and p.stage not in follows]
        again = ["prepare"] if "prepare" not in (*follows, *kept) else []
        why = [WITHOUT_BIASES.format(stage=stage)] if wrong else []
        if by_the_job:
            why += [
                f"{stage} was {self.stale.why}, and this job changes what {stage} depends on:",
                *(changes.values() or ["    (its old settings were not kept)"]),
                *self._fixed_steps(),
                *self._fixed_phase(),
            ]
        if job_path is None:
            return "\n".join(why)
        return "\n".join(
            [
                *why,
                "Nothing was changed. Your options:",
                *(["  put the old values back;"] if by_the_job else []),
                f"  pion run {job_path} --redo {stage}    redo {', '.join([*again, *follows])}"
                + (f" (keeps {', '.join(kept)});" if kept else ";"),
                *self._fork(plans, job_path),
                f"  pion run {job_path} {self._other}    a separate new run.",
            ]
        )

    def _fork(self, plans: Sequence[StagePlan], job_path: str) -> list[str]:
        """Return the option to keep this run and continue in a fork of it, if it is possible.

        Forks at the stage's newest checkpoint if `fork_may_continue` allows that, else at the
        finished stage before it, else at an earlier checkpoint of the stage.
        """
        stage, job = self.stale.stage, self.job
        steps = [
            step
            for step in self.stale.steps
            if self._is_left(step) and self._only_schedule_differs(step)
        ]
        done = [plan.stage for plan in plans if plan.state == "done"]
        before = [s for s in STAGES[: STAGES.index(stage)] if s in done and s in job.train_stages]
        if steps and (steps[0] == self.stale.steps[0] or not before):
            where = f"--stage {stage} --at {steps[0]}"
            what = f"continue from step {steps[0]:,} of {stage} in a copy;"
        elif before:
            where, what = f"--stage {before[-1]}", f"continue from {before[-1]} in a copy;"
        else:
            return []
        run = job.name if job.store == DEFAULT_STORE else f"{job.store}/{job.name}"
        fork = f"pion fork {run} {job.name}-2 {where} && pion run {job_path} {self._other}"
        return [f"  {fork}    {what}"]

    @property
    def _other(self) -> str:
        """The overrides that make another run, which publishes somewhere else."""
        publish = self.job.publish
        to = "" if publish is None else f" publish.to={publish.to.rstrip('/')}-2"
        return f"name={self.job.name}-2{to}"

    def _fixed_phase(self) -> list[str]:
        """Return which phase the job changes although it has begun, and where it began."""
        stage, step = self.stale.stage, max(self.stale.steps, default=0)
        paths = [change.path for change in self.changes()]
        for number in range(self._begun(step)):
            if any(path.startswith(f"{stage}.phases.{number}.") for path in paths):
                start = bisect_right(range(step + 1), number, key=self._begun) - 1
                before = f", or fork at step {start:,} or before" if start else ""
                return [
                    f"Step {step:,} is trained, and phase {number} began after step {start:,}. "
                    f"Phases that have begun are fixed. Change later ones{before}."
                ]
        return []

    def _fixed_steps(self) -> list[str]:
        """Return why `steps` can't be raised, if it never could."""
        steps = f"{self.stale.stage}.steps"
        only_steps = [change.path for change in self.changes()] == [steps]
        if only_steps and grows_over_the_run(settings_of(self.job.section(self.stale.stage))):
            return [
                f"{steps} can't be raised: windows, momentum or phases are in proportion to it."
            ]
        return []


def stage_inputs(stage: str, digests: Digests) -> dict[str, Any]:
    """Return the inputs of a stage and of its data, kept to show differences later."""
    return digests.inputs.get(f"data.{stage}", {}) | digests.inputs[stage]


def keep_warmup(
    job: Job,
    head: Head,
    redo: str | None,
    read_inputs: Callable[[str, str], Mapping[str, Any] | None],
) -> None:
    """Give stages that have begun the warm-up that they began with, unless the job names another.

    The default depends on the steps. Without this, raising the steps would change the warm-up too.
    """
    for stage in job.train_stages:
        section = job.section(stage)
        redone = redo is not None and STAGES.index(redo) <= STAGES.index(stage)
        digest = _digest(head, stage)
        if section.warmup_given or redone or digest is None:
            continue
        begun = (read_inputs(stage, digest) or {}).get(f"{stage}.warmup_steps")
        if begun == section.warmup_steps:
            continue  # a value that is set would count as named, and would not be shortened
        if type(begun) is int and (section.steps is None or begun < section.steps):
            section.warmup_steps = begun


def _digest(head: Head, stage: str) -> str | None:
    """Return the digest under which a stage was finished or begun; None if it was not."""
    if stage in head.stages:
        return head.stages[stage].digest
    return next((entry.digest for entry in head.checkpoints if entry.stage == stage), None)
