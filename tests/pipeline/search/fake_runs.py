"""Runs that take no time: what `pion run` leaves in a store, with made-up losses."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from pion.errors import Stopped
from pipeline.base.job_with_base import read_job
from pipeline.commands.fork import fork_for
from pipeline.cost.budget import over_budget
from pipeline.job import Job
from pipeline.job.digest import digest_job
from pipeline.run.done_and_changed_stages import stage_inputs
from pipeline.search.trials import Request
from pipeline.search.try_command import run_try
from pipeline.state.claim import Claim, claim_run
from pipeline.state.head import SkippedRows, Spent, data_key
from pipeline.state.owner import Owner
from pipeline.state.rows.metrics import MetricsLog
from pipeline.state.run_state import RunState
from pipeline.state.stores import open_store
from tests.support.jobs import tiny_dict
from tests.support.light_run import save_checkpoint, use_data

ROWS = yaml.safe_load(Path(__file__).with_name("rows.yaml").read_text())
# A start of a fake run takes so long.
HOURS = 0.01


class Killed(BaseException):
    """This process was killed."""


def write_job(folder: Path, **changes: object) -> str:
    """Write a tiny job whose store is `folder/runs`, and return its path."""
    changes = {"store": str(folder / "runs"), "model__d_model": 64, **changes}
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(tiny_dict(**changes)))
    return str(path)


def search(job, runs, *, varied, as_json=False, fork=fork_for, **options):
    """Do what `pion try` does, with `runs` in place of processes."""
    request = Request(path=job, vary=varied, **options)
    return run_try(request, fork, as_json=as_json, execute=runs)


@dataclass
class FakeRuns:
    """`pion run` without training. Its calls are in `started`.

    Attributes:
        diverge: which runs go wrong, by name.
        meddle: called with the number of each call after the call.
        loss: the held-out loss of a job at a step, for a search.
        sources: the same on each source, of a job whose phases mix them. Its runs can be forked.
        content: that of the data which runs prepare.
        steps: those that runs which can be forked have trained.
    """

    diverge: Callable[[str], bool] = lambda name: False
    meddle: Callable[[int], None] = lambda number: None
    loss: Callable[[Job, int], float] = lambda job, step: 1.0
    sources: Callable[[Job, int], dict[str, float]] = lambda job, step: {}
    content: str = "rows"
    started: list[str] = field(default_factory=list)
    steps: int = 0

    def __call__(self, arguments: Sequence[str]) -> int:
        """Do what `pion run` does with these arguments, and return its exit code."""
        path, *overrides = (word for word in arguments if word not in ("--until", "pretrain"))
        job = read_job(path, overrides)
        self.started.append(job.name)
        code = self._run(job)
        self.meddle(len(self.started))
        return code

    def _run(self, job: Job) -> int:
        digests = digest_job(job)
        run = RunState(open_store(job.store), job.name)
        claim = claim_run(run, Owner.me(), unattended=True)
        content = f"{self.content} {job.seed}"  # as in the fingerprint of prepared data
        key = data_key(hashlib.sha256(content.encode()).hexdigest(), "cd" * 16)
        claim.commit(lambda head: head.with_data({"pretrain": key}))
        if job.mixes:
            use_data(claim, digests.data, content)
            inputs = {"format": 1, "inputs": stage_inputs("pretrain", digests)}
            run.write_stage("pretrain", digests.stages["pretrain"], inputs)
        try:
            if self.diverge(job.name):
                digest = digests.stages["pretrain"]
                skipped = SkippedRows(0, 4, 3, claim.epoch, digest, "a loss of nan", at=1.0)
                claim.commit(lambda head: head.with_skipped("pretrain", skipped))
                return 1
            return self._train(job, claim, digests.stages)
        finally:
            claim.release()

    def _train(self, job: Job, claim: Claim, stages: dict[str, str]) -> int:
        train = job.section(job.train_stages[0])
        hours = min(HOURS, job.budget.hours or HOURS)
        claim._spent, claim._started = Spent(hours, 0.0, 1.0), claim.state.clock.monotonic()
        claim.commit(lambda head: head)
        if over_budget(job.budget, claim._spent) is not None:
            return Stopped.exit_code
        step = min(train.pause_at or train.total_steps, train.total_steps)
        self._measure(job, claim, step)
        if job.mixes:
            head = claim.state.read()
            assert head is not None
            self.steps += step - max((entry.step for entry in head.checkpoints), default=0)
            save_checkpoint(claim, "pretrain", step, stages["pretrain"])
        if step < train.total_steps:
            return Stopped.exit_code
        claim.finish_stage("pretrain", stages["pretrain"], {"steps": step})
        return 0

    def _measure(self, job: Job, claim: Claim, step: int) -> None:
        """Write the held-out losses of the steps since the last start."""
        stage = job.train_stages[0]
        metrics = MetricsLog(claim.store, job.name, stage, claim.epoch)
        every = job.evaluate.every or step
        for at in sorted({*range(every, step + 1, every), step}):
            found = self.sources(job, at)
            loss = sum(found.values()) / len(found) if found else self.loss(job, at)
            metrics.append({"step": at, "held_out_loss": loss, "held_out": found})
            metrics.append({"step": at, "loss": 1.0})
        metrics.flush()
