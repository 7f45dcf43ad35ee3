"""Days of a rental and its watcher: with a deadline, on two markets, and without one."""

import dataclasses
from dataclasses import dataclass

import pytest
import yaml

from pipeline.rent.managed.look.diagnose import FUTILE_LIVES
from pipeline.rent.managed.watch import Watcher
from pipeline.state.claim import claim_run
from pipeline.state.notes.deadline import RunDeadline, change_deadline
from pipeline.state.notes.stop_requests import ask_stop
from pipeline.state.owner import Author
from pipeline.state.run_state import RunState
from tests.support.clock import FakeClock
from tests.support.fake_provider import JOB, FakeProvider, note_machine, succeed_when_submitted
from tests.support.states import read, someone
from tests.support.two_markets import ON_DEMAND, SPOT, Enough, TwoMarkets

MIXED = """ordered:
  - {accelerators: A40, use_spot: true}
  - {accelerators: RTXA5000, use_spot: true}
  - {accelerators: RTXA6000, use_spot: false}
  - {accelerators: A40, use_spot: false}
  - {accelerators: L40S, use_spot: true}"""
# About what is kept in reserve: a boot, a save, a loss, the margin, and nearly no work.
RESERVE = 2300.0
STOPPED, REFUSED = "Job exited with exit code 4.", "Job exited with exit code 2."


@dataclass
class Day:
    """What happens to a rental, in the order in which a test says it."""

    sky: TwoMarkets
    run: RunState
    time: FakeClock
    said: list[str]

    # Who watches.

    def watcher(self):
        """Return a new watcher of the launch."""
        return Watcher(self.run, JOB.name, JOB.id, self.said.append, self.sky)

    def watch(self, seconds):
        """Let a new watcher watch for so long, while machines come and go."""
        end = self.time.time + seconds

        def during_sleep():
            self.sky.tick()
            if self.time.time >= end:
                raise Enough

        self.time.during_sleep = during_sleep
        with pytest.raises(Enough):
            self.watcher().follow()
        self.time.during_sleep = lambda: None

    # What happens.

    def due_in(self, seconds):
        """Set the deadline so many seconds from now."""
        now = self.run.clock.now()
        self.change_deadline(now + seconds, now)

    def change_deadline(self, at, now=1.0):
        """Set the deadline, or switch it off."""
        deadline = RunDeadline(at, 1800.0, now, Author.me(), "pion deadline")
        change_deadline(self.run, lambda old: deadline)

    def spot_owns(self, seconds):
        """Let a machine on spot own the run, with time to spare."""
        self.sky.offered[SPOT] = True
        self.due_in(RESERVE + 3000)
        self.watch(seconds)
        assert self.sky.claim is not None

    def on_demand_owns(self):
        """Let a machine on demand own the run, and return its job."""
        self.due_in(RESERVE - 100)
        self.watch(150)
        assert self.sky.claim is not None
        return self.job_on_demand

    def spot_is_asked_for(self):
        """Let there be slack, so a request for spot stands; return its job."""
        self.due_in(RESERVE + 3000)
        self.watch(20)
        return self.job_on_spot

    def owner_leaves(self, job=JOB):
        """Let the owner, the machine of `job`, save and end with exit code 4."""
        self.sky.claim.release()
        self.sky.claim = None
        self.sky.end(job.id, "FAILED", failure=STOPPED)

    def ask_to_hand_over(self, launch):
        """Ask the owner to leave the run to a launch."""
        ask_stop(self.run, "pion hop", except_launch=launch)

    def machines_die(self, spot):
        """Note as many machines of the job as prove that none will own the run."""
        epoch, since = read(self.run).epoch, self.time.time - 100
        for n in range(FUTILE_LIVES):
            about = {"region": f"R{n}", "managed_job": f"{JOB.id}", "spot": spot}
            note_machine(self.run, epoch, f"pod{n}", rented_at=since + n, **about)

    def with_variables(self, job, **envs):
        """Return the next job, like `job` but with other variables."""
        config = yaml.safe_load(job.task or "")
        config["envs"] = {**config["envs"], **envs}
        new = max(each.id for each in self.sky.jobs) + 1
        return dataclasses.replace(job, id=new, task=yaml.safe_dump(config))

    # What came of it.

    @property
    def job_on_spot(self):
        return self.sky.job_on(SPOT)

    @property
    def job_on_demand(self):
        return self.sky.job_on(ON_DEMAND)

    @property
    def orders(self):
        """The jobs that were cancelled, and the markets of all requests."""
        return self.sky.cancelled, self.sky.submitted_to

    @property
    def living(self):
        """The jobs that live."""
        return [job.id for job in self.sky.living]

    @property
    def owner(self):
        """The launch that owns the run, or owned it last."""
        return read(self.run).claims[0].owner.launch_id

    def lines(self, words):
        """Return what was said with these words."""
        return [line for line in self.said if words in line]

    def line(self, words):
        """Return the only line with these words."""
        (found,) = self.lines(words)
        return found


@dataclass
class Rental:
    """A rental without a deadline, whose job is running, and its watcher."""

    watcher: Watcher
    provider: FakeProvider
    run: RunState
    time: FakeClock
    said: list[str]

    def starts(self, ago=0.0):
        """Let the job have asked for a machine that long ago, and get none."""
        self.provider.now("STARTING", submitted_at=self.time.time - ago)

    def succeeds_when_submitted(self):
        """Let the run be done as soon as a job was submitted again."""
        succeed_when_submitted(self.provider, self.time)

    @property
    def orders(self):
        """The jobs that were cancelled; those that were submitted: like which, and what they
        avoid."""
        return self.provider.cancelled, self.provider.submitted

    @property
    def text(self):
        """All that was said."""
        return "\n".join(self.said)

    def machines(self, *jobs_by_age):
        """Note machines in the job's place: how long ago they were rented, and for which job."""
        epoch, now = claim_run(self.run, someone()).epoch, self.time.time
        for age, job in jobs_by_age:
            note_machine(self.run, epoch, f"pod{age}", rented_at=now - age, managed_job=job)
