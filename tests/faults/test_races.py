"""Two machines that both believe they own a run, in many orders of events.

Processes on two machines do one store operation at a time, in an order that hypothesis chooses.
Processes die, at once or leaving writes that land later; disks are lost; the store is down or loses
its answers; clocks jump; checkpoints rot; steps go wrong; time passes and the garbage is collected.
"""

import dataclasses
import json
import shutil
import tempfile
import uuid
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from unittest.mock import patch

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from pion.errors import BadInput, Fenced, NotDurable, PionError
from pipeline.state.checkpoints.layout import MANIFEST, MODEL
from pipeline.state.checkpoints.retention import Keep, sweep, sweep_abandoned
from pipeline.state.claim import claim_run
from pipeline.state.head import TRASH_SECONDS, Head
from pipeline.state.owner import Owner
from pipeline.state.run_state import RunState
from pipeline.state.stores import StoreError
from pipeline.state.stores.clock import Clock
from tests.faults.faulty_store import Crash
from tests.faults.light_job import (
    BATCH,
    DIGESTS,
    RUN,
    TRAINING,
    Process,
    left_over,
    read_head,
    what_is_wrong,
)
from tests.faults.simulation import UNTOLD, MemoryStore, OneAtATime, SteppedStore, land

STEPS = 12
# A write lands at most this many seconds after it was given up.
ON_ITS_WAY = 1000.0
A_YEAR = 3e7
MACHINES = ("a", "b")
ALL_STAGES = {"prepare", *TRAINING, "evaluate", "publish"}
HICCUPS = ("outage", "lost", "late")
DEATHS = ("dies", "dies after", "dies late")

machines = st.sampled_from(MACHINES)
some_operations = st.sampled_from([0, 1, 2, 3, 5, 8, 13, 21, 34])


@dataclass
class Machine:
    """A machine. One process at a time advances the run there."""

    disk: Path
    ahead: float = 0.0  # seconds that the machine's clock is ahead of the true time
    process: Process | None = None
    store: SteppedStore | None = None
    heard: int = 0

    @property
    def alive(self):
        return self.store is not None and not self.store.ended


class Race(RuleBasedStateMachine):
    """The world, and the invariants that must be true at every instant."""

    def __init__(self):
        super().__init__()
        self.patches = ExitStack()
        for where in ("stores.base", "checkpoints.uploader", "workspace"):
            name = f"pipeline.state.{where}.ThreadPoolExecutor"
            self.patches.enter_context(patch(name, OneAtATime))
        self.patches.enter_context(patch("os.fsync", lambda descriptor: None))
        self.folder = Path(tempfile.mkdtemp(prefix="pion-race-"))
        self.machines = {name: Machine(self.folder / name) for name in MACHINES}
        self.now = 1_000_000.0
        self.late = []
        self.violations = []
        self.rotten = set()
        self.bad_rows = set()
        self.published = []
        self.unlisted = {}
        self.clocks_agree = True
        self.store = MemoryStore(self.swapped)

    @initialize(
        clocks_agree=st.booleans(),
        ahead=st.sampled_from([0.0, 7200.0, -90_000.0]),
        operations=st.integers(0, 150),
    )
    def begin(self, clocks_agree, ahead, operations):
        self.clocks_agree = clocks_agree
        if not clocks_agree:
            self.machines["b"].ahead = ahead
        self.start("a", operations)

    # ------------------------------------------------------------ what happens

    @rule(name=machines, operations=some_operations)
    def start(self, name, operations):
        """Start the run on that machine, as a person does with --take-over."""
        machine = self.machines[name]
        if machine.alive:
            return
        store = SteppedStore(self.store, self.late)
        clock = Clock(lambda: self.now + machine.ahead, lambda: self.now, lambda seconds: None)
        owner = dataclasses.replace(
            Owner.me(), session=uuid.uuid4().hex, host=name, boot_id=name, launch_id=None
        )
        machine.store, machine.heard = store, 0
        machine.process = Process(
            store,
            machine.disk,
            lambda content: store.do("publish", "publish", partial(self.publish, content)),
            clock,
            owner,
            Keep(last=3),
            STEPS,
            goes_wrong=lambda stage, rows: any((stage, row) in self.bad_rows for row in rows),
        )
        store.start(machine.process.go)
        self.go_ahead(name, operations)

    @rule(name=machines, operations=some_operations)
    def go_ahead(self, name, operations):
        machine = self.machines[name]
        for _ in range(operations):
            if machine.alive and machine.store is not None:
                machine.store.step()

    @rule(name=machines, operations=some_operations, fate=st.sampled_from(HICCUPS))
    def store_hiccups(self, name, operations, fate):
        self.go_ahead(name, operations)
        store = self.machines[name].store
        if store is not None:
            store.step(fate)

    @rule(
        name=machines, operations=some_operations, fate=st.sampled_from(DEATHS), disk=st.booleans()
    )
    def die(self, name, operations, fate, disk):
        """Let a process die; with `disk`, its machine loses its disk too."""
        self.go_ahead(name, operations)
        machine = self.machines[name]
        if machine.alive and machine.store is not None:
            machine.store.step(fate)
            if disk:
                shutil.rmtree(machine.disk, ignore_errors=True)

    @rule(which=st.integers(0, 9))
    def late_write_lands(self, which):
        if self.late:
            land(self.late.pop(which % len(self.late)))

    @rule(seconds=st.sampled_from([60.0, 1800.0, 3700.0]))
    def time_passes(self, seconds):
        if seconds > ON_ITS_WAY:
            self.late.clear()
            for machine in self.machines.values():  # no commit takes this long
                while machine.alive and machine.store and "HEAD" in machine.store.pending:
                    machine.store.step()
        self.now += seconds

    @precondition(lambda self: not self.clocks_agree)
    @rule(name=machines, seconds=st.sampled_from([-90_000.0, -5.0, 4000.0, 90_000.0]))
    def clock_jumps(self, name, seconds):
        self.machines[name].ahead += seconds

    @precondition(lambda self: self.may_rot() is not None)
    @rule()
    def newest_checkpoint_rots(self):
        entry = self.may_rot()
        self.rotten.add(entry.key)
        key = f"{RUN}/{entry.key}/{MODEL}"
        self.store.write(key, b"rotten" + self.store.read(key)[6:])

    def may_rot(self):
        """Return the newest good checkpoint, if its stage has another good checkpoint and did not
        end with this one."""
        good = [entry for entry in self.entries() if entry.key not in self.rotten]
        if len(good) < 2 or good[0].stage != good[1].stage or good[0].step == STEPS:
            return None
        return good[0]

    @precondition(lambda self: len(self.bad_rows) < 2)
    @rule(ahead=st.integers(0, 4 * BATCH))
    def row_turns_out_bad(self, ahead):
        """Make a row bad that comes soon or was trained recently."""
        entries = self.entries()
        stage, step = (entries[0].stage, entries[0].step) if entries else ("pretrain", 0)
        self.bad_rows.add((stage, step * BATCH + ahead))

    # ------------------------------------------------------------ what must hold

    @invariant()
    def nothing_is_violated(self):
        for machine in self.machines.values():
            self.listen_to(machine)
        assert not self.violations, self.violations

    @invariant()
    def head_names_complete_verified_checkpoints_of_rows_trained_once(self):
        head = read_head(self.store)
        for key in head.listed() if head else ():
            if key not in self.rotten:
                assert what_is_wrong(self.store, key) is None
        if head:
            assert {e.key for e in head.checkpoints} >= head.listed()

    @invariant()
    def rows_left_out_are_on_record(self):
        head = read_head(self.store)
        for entry in self.entries():
            if entry.key not in self.rotten and head is not None:
                state = json.loads(self.store.read(f"{RUN}/{entry.key}/state.json"))
                recorded = {
                    row for r in head.skipped.get(entry.stage, ()) for row in range(r.first, r.stop)
                }
                left_out = {row for first, stop in state["skipped"] for row in range(first, stop)}
                assert left_out <= recorded

    @invariant()
    def nothing_vanishes_under_a_reader_who_is_done_within_the_hour(self):
        for key, since in self.unlisted.items():
            if self.clocks_agree and self.now - since < TRASH_SECONDS - ON_ITS_WAY:
                assert self.store.list(f"{RUN}/{key}/{MANIFEST}"), f"{key} went too early"
                assert self.store.list(f"{RUN}/{key}/{MODEL}"), f"{key} went too early"

    @invariant()
    def each_digest_is_published_once(self):
        assert len(self.published) <= 1

    def teardown(self):
        """Check that one more process can always finish the run."""
        try:
            if not self.violations:
                self.end()
        finally:
            for machine in self.machines.values():
                if machine.alive and machine.store is not None:
                    machine.store.step("dies")
            self.patches.close()
            shutil.rmtree(self.folder, ignore_errors=True)

    def end(self):
        self.bad_rows.clear()
        for name in ("a", "b", "a"):  # the first process may still be fenced
            self.start(name, 1000)
            self.go_ahead(name, 1000)
            assert not self.machines[name].alive
            while self.late:
                land(self.late.pop())
        self.nothing_is_violated()
        self.head_names_complete_verified_checkpoints_of_rows_trained_once()
        head = read_head(self.store)
        assert {stage: record.digest for stage, record in head.stages.items()} == DIGESTS
        assert set(head.stages) == ALL_STAGES
        assert len(self.published) == 1
        self.now += A_YEAR  # the clocks that dated the garbage may have been far ahead
        run = RunState(self.store, RUN, Clock(lambda: self.now, lambda: self.now))
        claim = claim_run(run, Owner.me(), take_over=True)
        sweep_abandoned(claim)
        self.now += A_YEAR
        sweep(claim)
        assert not left_over(self.store, claim.head)

    # ------------------------------------------------------------ watching

    def entries(self):
        head = read_head(self.store)
        return head.checkpoints if head else ()

    def publish(self, content):
        if content not in self.published[-1:]:  # the Hub makes no empty commit
            self.published.append(content)

    def listen_to(self, machine):
        """Check that the run's owner found every checkpoint that HEAD lists."""
        process, head = machine.process, read_head(self.store)
        if process is None or machine.store is None or head is None:
            return
        owns = process.epoch == head.epoch
        for line in process.said[machine.heard :]:
            if owns and "Skipped" in line and not any(key in line for key in self.rotten):
                self.violations.append(line)
        machine.heard = len(process.said)
        error = machine.store.error
        refused = isinstance(error, BadInput) and "has owned run" in str(error)
        untold = isinstance(error, StoreError | NotDurable) and UNTOLD in str(error)
        gave_up = isinstance(error, PionError) and "attempts in a row failed" in str(error)
        if owns and error is not None and not refused and not untold and not gave_up:
            if not isinstance(error, (Crash, Fenced)):
                self.violations.append(f"a process ended with {error!r}")
            machine.store.error = None

    def swapped(self, key, old_json, new_json):
        """Check every change of HEAD as it happens."""
        old = Head.from_json(old_json, key) if old_json else Head()
        new = Head.from_json(new_json, key)
        kept, had = [e.key for e in new.checkpoints], [e.key for e in old.checkpoints]
        added = [entry for entry in new.checkpoints if entry.key not in had]
        gone = [entry for entry in old.checkpoints if entry.key not in kept]
        wrong = self.violations.append
        self.unlisted.update({entry.key: self.now for entry in gone})
        if new.epoch == old.epoch + 1:
            if (kept, new.stages) != (had, old.stages):
                wrong("a claim changed what is listed")
            return
        if new.epoch != old.epoch:
            wrong(f"epoch {new.epoch} came after {old.epoch}")
        for entry in added:
            if entry.epoch != new.epoch:
                wrong(f"{entry.key} was committed under epoch {new.epoch}")
            if problem := what_is_wrong(self.store, entry.key, entry.model_sha256):
                wrong(f"HEAD listed a bad checkpoint: {problem}")
        if added and kept[:2] != [added[0].key, *had[:1]]:
            wrong(f"the newest two are not kept: {had} became {kept}")
        if not added and new.restores == old.restores and gone:
            wrong(f"{[e.key for e in gone]} were removed for no reason")
        if not added:
            for entry in gone:
                if entry.key not in self.rotten:
                    wrong(f"the good checkpoint {entry.key} was undone")
        for stage, record in old.stages.items():
            if new.stages.get(stage) != record:
                wrong(f"{stage} was finished, and its record is gone or changed")


def quick(examples, **options):
    return settings(
        max_examples=examples,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        **options,
    )


def test_two_owners_never_undo_each_other_nor_lose_what_was_committed():
    run_state_machine_as_test(Race, settings=quick(6, stateful_step_count=50, derandomize=True))


@pytest.mark.soak
def test_two_owners_never_undo_each_other_in_many_more_orders():
    run_state_machine_as_test(Race, settings=quick(600, stateful_step_count=80))
