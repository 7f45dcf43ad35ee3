"""What can happen to a rental and its watcher: without a deadline, and with one on two markets."""

import dataclasses
import math

import pytest
import yaml

from pion.errors import BadInput
from pipeline.rent.managed.look.diagnose import FUTILE_LIVES
from pipeline.rent.managed.provider.recorded_task import launch_id_of
from pipeline.rent.managed.watch import Watcher
from pipeline.state.claim import claim_run
from pipeline.state.notes.deadline import RunDeadline, change_deadline
from pipeline.state.notes.rental_note import RentalNote, read_rental_note, write_rental_note
from pipeline.state.notes.stop_requests import ask_stop
from pipeline.state.owner import Author
from pipeline.state.rows.metrics import EventLog, read_events
from pipeline.state.stores import StoreError
from tests.pipeline.rent.managed.days import LONGEST, Day, seconds
from tests.support.fake_provider import JOB, ME, beat, note_machine
from tests.support.states import read, someone
from tests.support.two_markets import ON_DEMAND, SPOT, Enough

MIXED = """ordered:
  - {accelerators: A40, use_spot: true}
  - {accelerators: RTXA5000, use_spot: true}
  - {accelerators: RTXA6000, use_spot: false}
  - {accelerators: A40, use_spot: false}
  - {accelerators: L40S, use_spot: true}"""
RESERVE = seconds("RESERVE")
REFUSED = "Job exited with exit code 2."
STORE_CALLS = ("read", "read_versioned", "list", "write", "compare_and_swap")


def fields(words):
    """Return the values of words such as `step=6`, by name."""
    return {name: yaml.safe_load(value) for name, value in (w.split("=", 1) for w in words.split())}


class RentedDay(Day):
    """What both kinds of rentals have in common. `owner` is the claim of the run's owner."""

    owner = None

    def watcher(self, **more):
        """Return a new watcher of the launch."""
        return Watcher(self.run, JOB.name, JOB.id, self.said.append, self.sky, **more)

    def returned(self, code):
        """Note with which code a watcher has come to its end, or has looked once."""
        self.sky.orders.append(f"return {code}")

    # ------------------------------------------------------------ the run and its store

    def stop(self, _):
        """A person stops the run."""
        ask_stop(self.run, "pion stop")

    def hand_over(self, launch):
        """All launches but that one are asked to leave the run."""
        ask_stop(self.run, "pion hop", except_launch=launch)

    def store_down(self, _):
        def down(*_, **__):
            raise StoreError("read", "HEAD.json", "no route to host", outage=True)

        for method in STORE_CALLS:
            setattr(self.run.store, method, down)

    def store_up(self, _):
        for method in STORE_CALLS:
            delattr(self.run.store, method)

    def rented(self, launch):
        """This computer has noted in the store that it rents with this launch."""
        write_rental_note(self.run, RentalNote(0.0, "desk", ME, launch, read(self.run).epoch), None)

    def note(self, launch):
        """That launch is noted in the store; `none`: none."""
        note, _ = read_rental_note(self.run)
        assert (note.launch_id if note is not None else "none") == launch

    def passes(self, text):
        """So much time passes while nobody watches."""
        self.time.sleep(seconds(text))

    # ------------------------------------------------------------ SkyPilot and RunPod

    def ends(self, words):
        """A job ends: its number, the status, and why."""
        job_id, status, failure = (*words.split(maxsplit=2), None)[:3]
        self.sky.end(int(job_id), status, failure=failure)

    def pods(self, names):
        """RunPod lists these pods. `b` runs, `a:EXITED` has exited, and `c:RUNNING:8` is job 8's."""
        self.sky.listed = [self.sky.pod(*name.split(":")) for name in names.split()]

    def fails(self, words):
        """The next calls of that name fail so many times."""
        name, times = words.split()
        self.sky.fail(name, int(times))

    def refuses(self, pods):
        """RunPod ends these pods no more."""
        self.sky.refuses = set(pods.split())


class Rental(RentedDay):
    """A rental without a deadline: JOB, on pod `a`. One watcher follows it to its end."""

    def __init__(self, sky, run, time, said):
        super().__init__(sky, run, time, said)
        self.follower = self.watcher()
        self.beating = None

    def watch_until(self, at):
        last = max((line.at for line in self.left if line.at < math.inf), default=self.elapsed)

        def pass_time():
            while self.left and self.left[0].at <= self.elapsed:
                self.happen()
            if self.beating is not None:
                beat(self.owner, **self.beating)
            assert self.elapsed < last + LONGEST, "the watcher never comes to its end"

        self.time.during_sleep = pass_time
        self.returned(self.follower.follow())
        assert all(line.at == math.inf for line in self.left), f"it ended at {self.elapsed:.0f} s"
        self.over, self.time.during_sleep = True, lambda: None

    def onlooks(self, _):
        """Another window acts, so this one only shows the rental."""
        self.follower = self.watcher(acting=False)

    def look(self, _):
        """The watcher looks once."""
        self.returned(self.follower.look_once())

    # ------------------------------------------------------------ the run

    def claim(self, launch):
        """A machine of that launch claims the run."""
        self.owner = claim_run(self.run, someone(launch_id=launch or None), take_over=True)

    def release(self, _):
        self.owner.release()

    def done(self, stages):
        """The owner has done these stages, and releases the run."""
        for stage in stages.split():
            self.owner.finish_stage(stage, "d", {})
        self.owner.release()

    def beat(self, status):
        """The owner gives one sign of life."""
        beat(self.owner, **fields(status))

    def beats(self, status):
        """The owner gives a sign of life before each look from now on."""
        self.beating = fields(status)

    def silent(self, _):
        self.beating = None

    def attempt_ends(self, words):
        """The owner writes how it has ended: in which stage, step, with which code, and why."""
        stage, step, code, message = words.split(maxsplit=3)
        events = EventLog(self.run.store, self.run.name, self.owner.epoch)
        events.append("end", code=int(code), message=message, stage=stage, step=int(step))
        events.flush()
        self.owner.release()

    def wrote(self, words):
        """The run remembers one thing that the watcher has done, and why."""
        events = [e for e in read_events(self.run.store, self.run.name) if e["event"] == "watch"]
        assert [f"{event['what']}: {'; '.join(event['done'])}" for event in events] == [words]

    def machines(self, ages):
        """The run knows machines of the job that were rented so many seconds ago."""
        epoch = claim_run(self.run, someone()).epoch
        for age in ages.split():
            rented_at = self.time.time - float(age)
            note_machine(self.run, epoch, f"pod{age}", rented_at=rented_at, managed_job="7")

    # ------------------------------------------------------------ SkyPilot

    def job(self, words):
        """The newest job alone is left, with this status, and why it has failed."""
        status, _, failure = words.partition(" ")
        self.sky.now(status, failure=failure or None)

    def asks(self, ago):
        """The job asks for a machine, since so many seconds."""
        self.sky.now("STARTING", submitted_at=self.time.time - seconds(ago))

    def runs(self, recoveries):
        """The job runs on a new machine."""
        self.sky.now("RUNNING", recoveries=int(recoveries), recovered_at=self.time.time)

    def started(self, ago):
        """The job runs since so long ago."""
        self.sky.now("RUNNING", started_at=self.time.time - seconds(ago))

    def hop(self, job_id):
        """Another job of the run runs next to those that there are."""
        self.sky.jobs.append(dataclasses.replace(JOB, id=int(job_id)))

    def stands(self, words):
        """A job of another launch asks for a machine next to those that there are."""
        job_id, launch = words.split()
        self.hop(job_id)
        self.task(f"PION_LAUNCH_ID={launch}")
        self.sky.change(int(job_id), status="STARTING", submitted_at=self.time.time)

    def task(self, variables):
        """The newest job has these variables."""
        record = yaml.safe_dump({"envs": fields(variables), "run": "pion run"})
        self.sky.change(self.sky.jobs[-1].id, task=f"name: pion-demo\n---\n{record}")

    def down(self, _):
        """SkyPilot can't be asked."""
        self.sky.down = True

    def up(self, _):
        self.sky.down = False

    def lacks(self, secret):
        """A secret is not set here, so the job can't be submitted again."""
        self.sky.fail("task", error=BadInput(f"{secret} must be set in the environment"))

    def only(self, place):
        """The YAML allows this place alone."""
        self.sky.only = place


class TwoMarketsDay(RentedDay):
    """A rental with a deadline. From one time of the day to the next, a new watcher watches it."""

    looker = None

    @property
    def owner(self):
        return self.sky.claim

    def watch_until(self, at):
        if at < math.inf:
            self.watch(at - self.elapsed)

    def watch(self, for_seconds):
        """Let a new watcher watch for so long, while machines come and go."""
        end = self.time.time + for_seconds

        def during_sleep():
            self.sky.tick()
            if self.time.time >= end:
                raise Enough

        self.time.during_sleep = during_sleep
        with pytest.raises(Enough):
            self.watcher().follow()
        self.time.during_sleep = lambda: None

    def look(self, _=""):
        """A watcher looks once; the same one as before, unless it was killed."""
        self.looker = self.looker or self.watcher()
        return self.looker.look_once()

    def killed(self, _):
        """Another watcher looks next."""
        self.looker = None

    def follow(self, _):
        """A watcher follows the rental to its end."""
        self.returned((self.looker or self.watcher()).follow())

    # ------------------------------------------------------------ the deadline

    def due(self, text):
        """The deadline is set: so many seconds from now."""
        now = self.run.clock.now()
        self.change_deadline(now + seconds(text), now)

    def off(self, _):
        """The deadline is switched off."""
        self.change_deadline(None)

    def change_deadline(self, at, now=1.0):
        deadline = RunDeadline(at, 1800.0, now, Author.me(), "pion deadline")
        change_deadline(self.run, lambda old: deadline)

    # ------------------------------------------------------------ machines come, work and go

    def offered(self, markets):
        """These markets, and no others, have machines."""
        self.sky.offered = {market: market.value in markets for market in (SPOT, ON_DEMAND)}

    def spot_owns(self, _=""):
        """Two minutes later, a machine on spot owns the run, with time to spare."""
        self.offered("spot, on demand")
        self.due("RESERVE+3000")
        self.watch(120)
        assert self.owner is not None

    def on_demand_owns(self, _=""):
        """Two and a half minutes later, a machine on demand owns the run."""
        self.due("RESERVE-100")
        self.watch(150)
        assert self.owner is not None

    def spot_stands(self, _=""):
        """There is slack, so a request for spot stands next to the machine on demand."""
        self.on_demand_owns()
        self.due("RESERVE+3000")
        self.watch(20)
        assert self.sky.job_on(SPOT)

    def spot_boots(self, _):
        """The standing request gets a machine."""
        job, sky = self.sky.job_on(SPOT), self.sky
        place = {"cloud": "RunPod", "region": "CA", "resources": "1x[spot](A40:1)"}
        sky.change(job.id, status="RUNNING", recovered_at=self.time.time, **place)
        sky.listed = [*(sky.listed or ()), sky.pod(f"pod{job.id}", "RUNNING", job.id)]

    def idle(self, _):
        """From now on, no machine comes, boots or works."""
        self.sky.tick = lambda: None

    def released(self, _):
        """The owner saves, and leaves the run."""
        self.owner.release()
        self.sky.claim = None

    def leaves(self, job_id):
        """The owner, the machine of that job, does the same, and ends with exit code 4."""
        self.released("")
        self.ends(f"{job_id} FAILED Job exited with exit code 4.")

    def preempted(self, job_id):
        self.sky.preempt(int(job_id))

    def hands_over(self, job_id):
        """The owner is asked to leave the run to the launch of that job."""
        (job,) = (job for job in self.sky.jobs if job.id == int(job_id))
        self.hand_over(launch_id_of(job))

    def elsewhere(self, host):
        """A process that was not rented owns the run."""
        self.sky.claim = claim_run(self.run, someone(host=host))

    # ------------------------------------------------------------ what came of it

    def lives(self, job_ids):
        """These jobs live."""
        assert [job.id for job in self.sky.living] == [int(each) for each in job_ids.split()]

    def owns(self, job_id):
        """The machine of that job, which lives, owns the run."""
        (job,) = (job for job in self.sky.living if job.id == int(job_id))
        assert self.owner is not None
        assert read(self.run).claims[0].owner.launch_id == launch_id_of(job)

    # ------------------------------------------------------------ for tests that are no text

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
