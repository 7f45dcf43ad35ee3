"""`pion prove`: does a run that is killed many times end with the same weights and rows?

One run of a shortened copy of the job is not killed: the unbroken run. Other runs of the same copy
are killed with SIGKILL, at marks in the code and at random instants, until enough kills have
landed. After each kill, the same `pion run` command resumes the run. Each result is compared with
the unbroken run.
"""

from __future__ import annotations

import json
import random
import shutil
import signal
import statistics
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pion.errors import BadInput, PionError
from pipeline.base.job_with_base import read_job
from pipeline.console.formats import counted, duration
from pipeline.job import Job
from pipeline.prove.attempt import Attempt, Instant, Place, attempt
from pipeline.prove.compare import Trained, first_difference, read_trained
from pipeline.prove.instants import SAVE_EVERY, Instants, cut_overrides
from pipeline.state.head import Head
from pipeline.state.run_state import RunState
from pipeline.state.stores import StoreError, open_store

Say = Callable[[str], None]


@dataclass(frozen=True)
class ProofOptions:
    """What a user asks of `pion prove`.

    Attributes:
        kills: how many kills must land.
        store: where the runs go; None: the job's store.
        seed: draws the instants of the kills; None: a random seed.
        json_path: where the result is written; None: NAME-prove.json.
        keep: whether the runs stay in the store.
    """

    kills: int = 20
    store: str | None = None
    seed: int | None = None
    json_path: str | None = None
    keep: bool = False


@dataclass
class Kill:
    """One SIGKILL that landed.

    Attributes:
        at: the mark at which it landed; None for a random instant.
        died: what was killed: the driver, the machine, or the machine and its disk.
        stage: the stage in training; None before training.
        step: the last reported step.
        committed: the last committed step.
        lost: how many reported steps were not committed.
        first_step_seconds: how long the next attempt took to its first step; None if it was killed
            earlier, or had no step to train.
    """

    run: str
    at: str | None
    during: str
    died: str
    stage: str | None
    step: int
    committed: int
    lost: int
    first_step_seconds: float | None = None


@dataclass
class Round:
    """One killed run, and where it differs from the unbroken run."""

    run: str
    kills: int = 0
    seconds: float = 0.0
    stages: dict[str, Any] = field(default_factory=dict)
    difference: str | None = None


def prove(job_path: str, overrides: Sequence[str], options: ProofOptions, say: Say = print) -> int:
    """Kill runs of a job; return 0 if all ended like the unbroken run, else 1.

    Raises BadInput for a job that can't run, and PionError if the unbroken run fails.
    """
    if options.kills < 1:
        raise BadInput(f"--kills {options.kills}: give at least 1")
    job = read_job(job_path, overrides)
    path = Path(options.json_path or f"{job.name}-prove.json")
    if not path.parent.is_dir():
        raise BadInput(f"--json {path}: there is no folder {path.parent}")
    with _ended_by_sigterm(), Place() as place:
        proof = _Proof(job, [job_path, *overrides], options, place, say)
        try:
            proof.go()
        finally:
            proof.tidy()
    result = proof.result()
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    for line in verdict_lines(result):
        say(line)
    say(f"written to {path}")
    return 0 if result["equal"] else 1


class _Proof:
    """The runs of one `pion prove`."""

    def __init__(
        self, job: Job, arguments: list[str], options: ProofOptions, place: Place, say: Say
    ) -> None:
        self.job, self.arguments, self.place, self.say = job, arguments, place, say
        self.wanted, self.keep = options.kills, options.keep
        self.seed = random.randrange(2**31) if options.seed is None else options.seed
        self.name = f"{job.name[:80]}-prove-{uuid.uuid4().hex[:6]}"
        self.store = open_store(options.store or job.store)
        cut = cut_overrides(job, self.name, self.store.url)
        self.cut = read_job(arguments[0], [*arguments[1:], *cut])
        self.remote = self.store.local_path(self.name) is None
        self.kills: list[Kill] = []
        self.rounds: list[Round] = []
        self.whole: dict[str, Trained] = {}
        self.unbroken = RunState(self.store, f"{self.name}-unbroken")
        self.unbroken_seconds = 0.0
        self.started = time.monotonic()

    def go(self) -> None:
        """Do the unbroken run, then killed runs until enough kills have landed or a run differs."""
        steps = ", ".join(f"{s} {self.cut.section(s).total_steps}" for s in self.cut.train_stages)
        self.say(
            f"{self.store.url}/{self.name}: {steps} steps, saved every {SAVE_EVERY}; "
            f"seed {self.seed}"
        )
        whole = self._attempt(self.unbroken, None)
        if whole.exit_code != 0:
            raise _failed(self.unbroken.name, whole)
        self.unbroken_seconds = whole.seconds
        self.whole = read_trained(self.unbroken, self.cut)
        for stage, trained in self.whole.items():
            if trained.problem is not None:
                raise PionError(f"The unbroken run itself is wrong: {stage}: {trained.problem}")
        self.say(f"unbroken run: {duration(whole.seconds)}")
        instants = Instants(
            random.Random(self.seed),
            whole,
            self.cut.train_stages,
            remote=self.remote,
            reference=any(
                self.cut.section(stage).needs_reference for stage in self.cut.train_stages
            ),
        )
        self.started = time.monotonic()
        while len(self.kills) < self.wanted and self._round(instants):
            continue

    def _round(self, instants: Instants) -> bool:
        """Run and kill one run until it is done; return whether it ends like the unbroken run."""
        run = RunState(self.store, f"{self.name}-{len(self.rounds) + 1}")
        this = Round(run.name)
        self.rounds.append(this)
        started, last = time.monotonic(), None
        while True:
            instant = None
            if len(self.kills) < self.wanted:
                head = run.read() or Head()
                instant = instants.next(head, self._saves_left(head))
            done = self._attempt(run, instant)
            if last is not None:
                last.first_step_seconds = done.first_step_seconds
            if not done.killed:
                break
            assert instant is not None
            last = self._record(run, instant, done)
            this.kills += 1
        this.seconds = time.monotonic() - started
        if done.exit_code != 0:
            this.difference = str(_failed(run.name, done))
        else:
            found = read_trained(run, self.cut)
            this.stages = {stage: trained.to_dict() for stage, trained in found.items()}
            this.difference = first_difference(self.unbroken, self.whole, run, found)
        verdict = this.difference or "like the unbroken run"
        self.say(f"run {len(self.rounds)}, killed {this.kills} times: {verdict}")
        return this.difference is None

    def _attempt(self, run: RunState, instant: Instant | None) -> Attempt:
        cut = cut_overrides(self.job, run.name, self.store.url)
        pion_run = [sys.executable, "-m", "pipeline.cli", "run"]
        return attempt([*pion_run, *self.arguments, *cut], self.place, run.name, instant)

    def _record(self, run: RunState, instant: Instant, done: Attempt) -> Kill:
        stage = next((s for s in reversed(self.cut.train_stages) if s in done.steps), None)
        step = done.steps[stage] if stage else 0
        committed = self._committed(run.read() or Head(), stage) if stage else 0
        died = "machine and disk" if instant.disk and self.remote else "machine"
        kill = Kill(
            run=run.name,
            at=done.at,
            during=done.during,
            died=died if instant.machine else "driver",
            stage=stage,
            step=step,
            committed=committed,
            lost=max(0, step - committed),
        )
        self.kills.append(kill)
        here = f"at {kill.at}" if kill.at else "at random"
        reached = f", {stage} step {step} ({kill.lost} lost)" if stage is not None else ""
        per_kill = (time.monotonic() - self.started) / len(self.kills)
        left = duration(per_kill * (self.wanted - len(self.kills)))
        self.say(
            f"kill {len(self.kills)}/{self.wanted} {here} in {kill.during}{reached}; "
            f"killed: {kill.died}; ETA {left}"
        )
        return kill

    def _committed(self, head: Head, stage: str) -> int:
        if stage in head.stages:
            return self.cut.section(stage).total_steps
        return max((e.step for e in head.checkpoints if e.stage == stage), default=0)

    def _saves_left(self, head: Head) -> int:
        """Return how many checkpoints will certainly still be made.

        The last save of every stage is certain. Of the others, count half: a save is skipped while
        the previous one is being written.
        """
        left = (
            self.cut.section(stage).total_steps - self._committed(head, stage)
            for stage in self.cut.train_stages
        )
        return sum(max(1, steps // (2 * SAVE_EVERY)) for steps in left if steps > 0)

    def tidy(self) -> None:
        """Remove the runs from the store, unless they are evidence or the user keeps them."""
        if self.keep or len(self.kills) < self.wanted or any(r.difference for r in self.rounds):
            self.say(f"kept in {self.store.url}: the runs named {self.name}-…")
            return
        for name in [self.unbroken.name, *(this.run for this in self.rounds)]:
            try:
                head = RunState(self.store, name).read() or Head()
                # Of a proof's run, nobody shares the data.
                for key in (*{k.rpartition("/")[0] for k in head.data.values()}, name):
                    self._remove(key)
            except StoreError as error:
                self.say(f"left in the store: {name} ({error})")

    def _remove(self, key: str) -> None:
        """Delete everything below `key`, and the folders that it leaves empty."""
        for entry in self.store.list(f"{key}/"):
            self.store.delete(entry.key)
        self.store.flush()
        folder = self.store.local_path(key)
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)
            with suppress(OSError):  # other runs share data
                folder.parent.rmdir()

    def result(self) -> dict[str, Any]:
        """Return all findings, as plain JSON."""
        seconds = time.monotonic() - self.started
        differences = [f"{r.run}: {r.difference}" for r in self.rounds if r.difference is not None]
        return {
            "format": 1,
            "job": self.arguments[0],
            "overrides": self.arguments[1:],
            "store": self.store.url,
            "runs": self.name,
            "seed": self.seed,
            "workers": self.cut.hardware.workers,
            "equal": not differences,
            "difference": differences[0] if differences else None,
            "kills_wanted": self.wanted,
            "seconds": round(seconds, 1),
            "seconds_per_kill": round(seconds / max(1, len(self.kills)), 2),
            "unbroken": {
                "seconds": round(self.unbroken_seconds, 1),
                "stages": {stage: trained.to_dict() for stage, trained in self.whole.items()},
            },
            "rounds": [asdict(this) for this in self.rounds],
            "kills": [asdict(kill) for kill in self.kills],
        }


def _failed(name: str, done: Attempt) -> PionError:
    kind = BadInput if done.exit_code == BadInput.exit_code else PionError
    return kind(
        f"pion run of {name} ended with exit code {done.exit_code}. Its last lines:\n"
        f"{done.last_lines}"
    )


@contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """Make SIGTERM end the runs too, not only this process: it raises KeyboardInterrupt."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def verdict_lines(result: Mapping[str, Any]) -> list[str]:
    """Return a table of where the kills landed, and the verdict."""
    kills = result["kills"]
    stages = result["unbroken"]["stages"]
    hits = sum(kill["during"] in stages for kill in kills)
    ended = "EQUAL: every run ended with these weights, trained on these rows."
    return [
        "",
        *_kills_table(kills),
        "",
        f"{counted(len(kills), 'kill')} in {counted(len(result['rounds']), 'run')}, "
        f"{hits or 'none'} of them in training, "
        f"{duration(result['seconds'])} ({result['seconds_per_kill']:.1f} s per kill)",
        *(
            f"{stage:<8}  {about['steps']} steps  weights {about['model_sha256'][:16]}  "
            f"rows {about['rows_sha256'][:16]}"
            for stage, about in stages.items()
        ),
        ended if result["equal"] else f"DIFFERENT: {result['difference']}",
    ]


def _kills_table(kills: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return how many kills landed where, how many steps were lost, and when training resumed."""
    places: dict[str, list[Mapping[str, Any]]] = {}
    for kill in kills:
        where = f"at {kill['at']}" if kill["at"] else f"random, in {kill['during']}"
        places.setdefault(where, []).append(kill)
    rows = [("landed", "kills", "machine gone", "steps lost", "at most", "next first step")]
    for where, landed in [*sorted(places.items()), ("all", list(kills))]:
        lost = [kill["lost"] for kill in landed]
        back = [s for kill in landed if (s := kill["first_step_seconds"]) is not None]
        rows.append(
            (
                where,
                str(len(landed)),
                str(sum(kill["died"] != "driver" for kill in landed)),
                f"{statistics.mean(lost):.1f}" if lost else "–",
                str(max(lost, default=0)),
                duration(statistics.median(back)) if back else "–",
            )
        )
    widths = [max(map(len, column)) for column in zip(*rows)]
    return [
        "  ".join(
            cell.ljust(width) if index == 0 else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths))
        ).rstrip()
        for row in rows
    ]
