"""A SkyPilot with a spot market and an on-demand market, for a watcher with a simulated clock.

At each tick, jobs without a machine get one if their market offers machines, and machines that have
booted claim the run. A machine that was asked to relieve another one takes over from it.
"""

import dataclasses
import json

import yaml

from pipeline.rent.deadline.policy import Market
from pipeline.rent.managed.provider.recorded_task import (
    launch_id_of,
    machines_in_words,
    market_of,
    task_of,
    variable_of,
)
from pipeline.run.handover import FROM_EPOCH
from pipeline.state.claim import claim_run
from tests.support.fake_provider import JOB, FakeProvider
from tests.support.states import someone

SPOT, ON_DEMAND = Market.SPOT, Market.ON_DEMAND
BOOT = 60.0


class Enough(BaseException):
    """The watcher has watched for long enough."""


class TwoMarkets(FakeProvider):
    """`offered` says which markets have machines. Requests are orders such as "request spot"."""

    def __init__(self, run, time, launched):
        super().__init__(launched)
        self.run, self.time = run, time
        self.offered = {SPOT: False, ON_DEMAND: True}
        self.claim = None

    # What the watcher calls.

    def task_of(self, wanted):
        self._call("task")
        return task_of(wanted)

    def rent(self, job_id, task, name):
        text = yaml.safe_dump(task.to_yaml_config())
        job = _pending(job_id, name, text, self.time.time)
        market = market_of(job)
        assert market not in [market_of(other) for other in self.living]
        self.orders.append(f"request {market.value}")
        return job

    # What happens by itself, or to the jobs.

    @property
    def living(self):
        return [job for job in self.jobs if job.live]

    def job_on(self, market):
        """Return the live job of that market."""
        return next((job for job in self.living if market_of(job) is market), None)

    def end(self, job_id, status, **more):
        """End a job and its machine."""
        self.change(job_id, status=status, ended_at=self.time.time, **more)
        self._forget_pods(job_id)

    def preempt(self, job_id):
        """Take a job's machine away. It saves and releases the run first."""
        self.change(job_id, status="RECOVERING")
        self._forget_pods(job_id)
        if self.claim is not None:
            self.claim.release()
        self.claim = None

    def tick(self):
        """Let machines come, boot and claim the run."""
        for job in self.living:
            market = market_of(job)
            assert market is not None
            if job.status in ("PENDING", "RECOVERING") and self.offered[market]:
                gpus = "1x[spot](A40:1)" if market is SPOT else "1x(A40:1)"
                place = {"cloud": "RunPod", "region": "CA", "resources": gpus}
                self.change(job.id, status="RUNNING", recovered_at=self.time.time, **place)
                self.listed = [*(self.listed or ()), self.pod(f"pod{job.id}", "RUNNING", job.id)]
            elif job.status == "RUNNING" and self.time.time - (job.recovered_at or 0) >= BOOT:
                self._claim(job)
        if self.claim is not None:
            self.claim.heartbeat.report(stage="sft", step=6, steps=10)
            self.claim.heartbeat.beat()

    def _claim(self, job):
        launch, owner = launch_id_of(job), self.claim
        if owner is not None:
            old = owner.head.claims[0].owner.launch_id
            if old == launch or variable_of(job, FROM_EPOCH) != str(owner.epoch):
                return
            owner.release()  # it was asked to hand over, saves, and ends with exit code 4
            relieved = next(other for other in self.living if launch_id_of(other) == old)
            self.end(relieved.id, "FAILED", failure="Job exited with exit code 4.")
        me = someone(host=f"pod{job.id}", launch_id=launch)
        self.claim = claim_run(self.run, me, take_over=True)

    def _forget_pods(self, job_id):
        self.listed = [pod for pod in self.listed or () if pod.job_id != job_id]


def launched_on_spot(machines, time):
    """Return the job that `pion launch` has submitted with a deadline: the spot machines of
    `machines`. The others are held back."""
    envs = {
        "JOB": "jobs/tiny.yaml",
        "PION_LAUNCH_ID": "first",
        "PION_SPOT": "1",
        "PION_PRICES": json.dumps({"A40": 0.2}),
        "PION_MACHINES": machines_in_words(machines.candidates),
    }
    config = {**machines.config, "envs": {"OVERRIDES": "", **envs}, "secrets": {}}
    return _pending(JOB.id, JOB.name, yaml.safe_dump(config), time.time)


def _pending(job_id, name, task, at):
    blank = dataclasses.replace(
        JOB, started_at=None, cloud=None, region=None, resources=None, status="PENDING"
    )
    return dataclasses.replace(blank, id=job_id, name=name, submitted_at=at, task=task)
