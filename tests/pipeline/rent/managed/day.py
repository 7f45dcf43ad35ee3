"""What can happen to a rental and its watcher: without a deadline, and with one on two markets."""

import dataclasses
import math
import shlex

import pytest
import yaml

from pion.errors import BadInput, PionError
from pipeline.rent.managed.look.diagnose import FUTILE_LIVES
from pipeline.rent.managed.provider.recorded_task import launch_id_of
from pipeline.rent.managed.watch import Watcher
from pipeline.state.claim import claim_run
from pipeline.state.notes.deadline import RunDeadline, change_deadline
from pipeline.state.notes.rental_note import RentalNote, read_rental_note, write_rental_note
from pipeline.state.notes.stop_requests import ask_stop, pending_stop
from pipeline.state.notes.watcher_beat import read_beat
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
STORE_CALLS = ("read", "read_versioned", "list", "write", "compare_and_swap")


class RentedDay(Day):
    """What can happen to both kinds of rentals.

    In the words of an event, `name=value` sets a field. `now-60` is a time.
    """

    looker = None
    events_read = 0

    def watcher(self, **more):
        """Return a new watcher of the launch."""
        return Watcher(self.run, JOB.name, JOB.id, self.said.append, self.sky, **more)

    def look(self, _=""):
        """A watcher looks once: the same as before, unless it was killed."""
        self.looker = self.looker or self.watcher()
        try:
            self.sky.orders.append(f"return {self.looker.look_once()}")
        except PionError as error:
            self.sky.orders.append("fail")
            self.said.append(str(error))

    def killed(self, _):
        self.looker = None

    def passes(self, text):
        """So much time passes while nobody watches."""
        self.time.sleep(seconds(text))

    def value(self, text):
        if text.startswith("now"):
            return self.time.time + seconds(text.removeprefix("now"))
        return yaml.safe_load(text)

    def fields(self, words):
        """Return the fields, by name. Variables, whose names are in capitals, are texts."""
        pairs = (word.split("=", 1) for word in shlex.split(words))
        return {name: text if name.isupper() else self.value(text) for name, text in pairs}

    # ------------------------------------------------------------ SkyPilot and RunPod

    def find(self, job_id):
        """Return that job; None if SkyPilot does not know it."""
        return next((job for job in self.sky.jobs if job.id == int(job_id)), None)

    def job(self, words):
        """A job has these fields, and these variables in its task. A new one is like the first."""
        job_id, _, rest = words.partition(" ")
        fields = self.fields(rest)
        old = self.find(job_id) or dataclasses.replace(self.sky.jobs[0], id=int(job_id))
        if envs := {name: fields.pop(name) for name in list(fields) if name.isupper()}:
            config = yaml.safe_load((old.task or "run: pion run").rpartition("---\n")[2])
            task = yaml.safe_dump({**config, "envs": config.get("envs", {}) | envs})
            fields["task"] = f"name: {old.name}\n---\n{task}"
        others = [job for job in self.sky.jobs if job.id != old.id]
        self.sky.jobs = sorted(
            [*others, dataclasses.replace(old, **fields)], key=lambda job: job.id
        )

    def ends(self, words):
        """A job ends, and its machine with it: its number, the status, and why."""
        job_id, status, failure = (*words.split(maxsplit=2), None)[:3]
        self.sky.end(int(job_id), status, failure=failure)

    def pods(self, names):
        """RunPod lists these pods. `a` runs, `b:EXITED:8` of job 8 has exited."""
        pods = ([self.value(part) for part in name.split(":", 3)] for name in names.split())
        self.sky.listed = [self.sky.pod(*pod) for pod in pods]

    def unended(self, pods):
        """RunPod does not end these pods."""
        self.sky.refuses = set(pods.split())

    def provider(self, fields):
        """SkyPilot, or RunPod, is in another state."""
        for name, value in self.fields(fields).items():
            setattr(self.sky, name, value)

    def fails(self, words):
        """The next calls of that name fail so many times."""
        name, times = words.split()
        self.sky.fail(name, int(times))

    def refused(self, words):
        """Calls of that name are refused, and why."""
        name, why = words.split(maxsplit=1)
        self.sky.fail(name, error=BadInput(why))

    # ------------------------------------------------------------ the run and its store

    def launch(self, text):
        """Return the launch of a job, by its number; or that launch."""
        return launch_id_of(self.find(text)) if text.isdigit() else text

    def claim(self, owner):
        """Another machine claims the run."""
        self.sky.claim = claim_run(self.run, someone(**self.fields(owner)), take_over=True)

    def release(self, stages):
        """The owner has done these stages, and leaves the run."""
        for stage in stages.split():
            self.sky.claim.finish_stage(stage, "d", {})
        self.sky.claim.release()
        self.sky.claim = None

    def event(self, words):
        """The owner writes an event of the run."""
        kind, fields = words.split(maxsplit=1)
        events = EventLog(self.run.store, self.run.name, self.sky.claim.epoch)
        events.append(kind, **self.fields(fields))
        events.flush()

    def machine(self, words):
        """The owner is on a pod of the launch, and reports it."""
        pod, fields = words.split(maxsplit=1)
        about = {"managed_job": str(JOB.id), **self.fields(fields)}
        note_machine(self.run, self.sky.claim.epoch, pod, **about)

    def stop(self, _):
        """A person stops the run."""
        ask_stop(self.run, "pion stop")

    def hand_over(self, launch):
        """All launches but that one are asked to leave the run."""
        ask_stop(self.run, "pion hop", except_launch=self.launch(launch))

    def unstopped(self, launch):
        assert pending_stop(self.run, launch_id=self.launch(launch)) is None

    def rented(self, fields):
        """A computer, by default this one, has noted in the store that it rents."""
        note = RentalNote(0.0, "desk", ME, "first", read(self.run).epoch)
        note = dataclasses.replace(note, **self.fields(fields))
        write_rental_note(self.run, note, read_rental_note(self.run)[1])

    def note(self, launch):
        """That launch is noted in the store; `none`: none."""
        note, _ = read_rental_note(self.run)
        assert (note.launch_id if note is not None else "none") == self.launch(launch)

    def wrote(self, words):
        """The run remembers what a watcher did first, or next, and why. Without words: no more."""
        events = [e for e in read_events(self.run.store, self.run.name) if e["event"] == "watch"]
        texts = [f"{event['what']}: {'; '.join(event['done'])}" for event in events]
        text = (texts[self.events_read :] or [""])[0]
        assert text.startswith(words) if words else not text
        self.events_read += 1

    def store_down(self, _):
        def down(*_, **__):
            raise StoreError("read", "HEAD.json", "no route to host", outage=True)

        for method in STORE_CALLS:
            setattr(self.run.store, method, down)

    def store_up(self, _):
        for method in STORE_CALLS:
            delattr(self.run.store, method)


class Rental(RentedDay):
    """A rental without a deadline: JOB, on pod `a`. One watcher follows it to its end."""

    beating = None

    def watch_until(self, at):
        last = max((line.at for line in self.left if line.at < math.inf), default=self.elapsed)

        def pass_time():
            while self.left and self.left[0].at <= self.elapsed:
                self.happen()
            if self.beating is not None:
                beat(self.sky.claim, **self.beating)
            assert self.elapsed < last + LONGEST, "the watcher never comes to its end"

        self.time.during_sleep = pass_time
        code = (self.looker or self.watcher()).follow()
        self.sky.orders.append(f"return {code}")
        assert all(line.at == math.inf for line in self.left), f"it ended at {self.elapsed:.0f} s"
        self.over, self.time.during_sleep = True, lambda: None

    def onlooks(self, _):
        """Another window acts, so this one only shows the rental."""
        self.looker = self.watcher(acting=False)

    def asks(self, _):
        """The job asks for a machine."""
        self.job(f"{self.sky.jobs[-1].id} status=STARTING submitted_at=now")

    def beat(self, status):
        """The owner gives one sign of life."""
        beat(self.sky.claim, **self.fields(status))

    def beats(self, status):
        """The owner gives a sign of life before each look from now on; without words: none."""
        self.beating = self.fields(status) or None

    def lost(self, expected):
        """The run keeps these pods as lost, each with when it was first and last seen."""
        events = [e for e in read_events(self.run.store, self.run.name) if e["event"] == "lost"]
        times = ((e["id"], e["begin"] - self.begun, e["end"] - self.begun) for e in events)
        pods = sorted(f"{pod} {begin:.0f}-{end:.0f}" for pod, begin, end in times)
        assert " ".join(pods) == expected
        assert all((e["gpu"], e["managed_job"], e["price"]) == ("A40", "7", 0.36) for e in events)


class TwoMarketsDay(RentedDay):
    """A rental with a deadline. From one time of the day to the next, a new watcher watches it."""

    def watch_until(self, at):
        def during_sleep():
            self.sky.tick()
            if self.elapsed >= at:
                raise Enough

        self.time.during_sleep = during_sleep
        with pytest.raises(Enough):
            self.watcher().follow()
        self.time.during_sleep = lambda: None

    def follow(self, _):
        """A watcher follows the rental to its end."""
        code = (self.looker or self.watcher()).follow()
        self.sky.orders.append(f"return {code}")

    def due(self, text):
        """The deadline is set: so many seconds from now; or it is switched `off`."""
        now = self.run.clock.now()
        at = None if text == "off" else now + seconds(text)
        deadline = RunDeadline(at, 1800.0, now, Author.me(), "pion deadline")
        change_deadline(self.run, lambda old: deadline)

    def offered(self, markets):
        """These markets, and no others, have machines."""
        self.sky.offered = {market: market.value in markets for market in (SPOT, ON_DEMAND)}

    def spot_owns(self, _=""):
        """By the second 120, a machine on spot owns the run, with time to spare."""
        self.offered("spot, on demand")
        self.due("RESERVE+3000")
        self.watch_until(120)
        self.owns("7")
        self.new_orders()

    def on_demand_owns(self, _=""):
        """By the second 150, a machine on demand owns the run."""
        self.due("RESERVE-100")
        self.watch_until(150)
        self.owns("8")
        self.new_orders()

    def spot_stands(self, _=""):
        """By the second 170, there is slack, so a request for spot stands next to it."""
        self.on_demand_owns()
        self.due("RESERVE+3000")
        self.watch_until(170)
        self.lives("8 9")
        self.new_orders()

    def spot_boots(self, _):
        """The standing request gets a machine."""
        self.job("9 status=RUNNING recovered_at=now cloud=RunPod region=CA")
        self.job("9 resources='1x[spot](A40:1)'")
        self.sky.listed.append(self.sky.pod("pod9", "RUNNING", 9))

    def idle(self, _):
        """From now on, no machine comes, boots or works."""
        self.sky.tick = lambda: None

    def machines_die(self, market):
        """The run knows as many machines of the launch as prove that none will own the run."""
        epoch, since = read(self.run).epoch, self.time.time - 100
        for n in range(FUTILE_LIVES):
            about = {"region": f"R{n}", "managed_job": f"{JOB.id}", "spot": market == "spot"}
            note_machine(self.run, epoch, f"pod{n}", rented_at=since + n, **about)

    def lives(self, job_ids):
        """These jobs live, and no others."""
        assert [job.id for job in self.sky.living] == [int(each) for each in job_ids.split()]

    def owns(self, job_id):
        """The machine of that job, which lives, owns the run."""
        assert self.find(job_id).live
        assert self.sky.claim is not None
        assert read(self.run).claims[0].owner.launch_id == self.launch(job_id)

    def saw(self, state):
        """The last watcher has said in the store what it saw, and when there is a risk; or not."""
        seen = read_beat(self.run)
        assert (seen.saw["state"] if seen.saw is not None else "none") == state
        assert state == "none" or seen.risk_at is not None
