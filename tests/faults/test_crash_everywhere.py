"""A process may die at any instant: the run ends as if nothing had happened."""

import contextlib
import itertools
import json
import signal
import sys

import pytest

from pion.errors import NotDurable, PionError
from pipeline.state.checkpoints.layout import MODEL
from pipeline.state.checkpoints.retention import sweep, sweep_abandoned
from pipeline.state.claim import claim_run
from pipeline.state.owner import Owner
from pipeline.state.rows.metrics import read_metrics
from pipeline.state.run_state import RunState
from pipeline.state.stores import FileStore, StoreError
from pipeline.state.stores.s3.store import S3Store
from tests.faults.faulty_store import Crash, FaultyStore, can_be_torn, crash, fail
from tests.faults.light_job import (
    RUN,
    STEPS,
    TRAINING,
    Process,
    left_over,
    read_head,
    unbroken_weights,
    wrong_in,
)
from tests.support.waiting import run_to_end

HOUR, STEP_SECONDS = 3600.0, 2000.0

pytestmark = pytest.mark.usefixtures("no_fsync")


class World:
    """Everything that outlives a process: a store, a machine, and the published files."""

    def __init__(self, store, cache, time, new_owner):
        self.store, self.cache, self.time, self.new_owner = store, cache, time, new_owner
        self.published = []

    def process(self, store, training=TRAINING):
        """Return a new process. Between its steps, enough time passes for trash to become due."""

        def publish(content):
            store.do("publish", "", lambda: self._publish(content))

        return Process(
            store,
            self.cache,
            publish,
            self.time.clock(),
            self.new_owner(),
            training=training,
            between_steps=lambda: self.time.sleep(STEP_SECONDS),
        )

    def _publish(self, content):
        if content not in self.published[-1:]:  # the Hub makes no empty commit
            self.published.append(content)

    def check_safe(self):
        """Check what must be true at every instant."""
        head = read_head(self.store)
        if head is not None:
            assert not wrong_in(self.store, head)

    def check_done(self, training, unknown=None):
        """Check that the run ended like an unbroken run; metrics of `unknown` steps may be
        missing."""
        head = read_head(self.store)
        assert set(head.stages) == {"prepare", *training, "evaluate", "publish"}
        wanted = {stage: unbroken_weights()[stage] for stage in training}
        final = self.store.read(f"{RUN}/{head.stages[training[-1]].checkpoint}/{MODEL}")
        assert json.loads(final) == wanted
        assert [json.loads(content) for content in self.published] == [wanted]
        for stage in training:
            metrics = read_metrics(self.store, RUN, head, stage)
            steps = [row["step"] for row in metrics if "trained_on" in row]
            missing = set(range(1, STEPS + 1)) - set(steps)
            assert steps == sorted(set(steps))
            assert missing <= set((unknown or {}).get(stage, ()))
        assert not wrong_in(self.store, head)

    def check_nothing_forgotten(self):
        """Check that all files of failed saves are listed as trash."""
        head = read_head(self.store)
        assert left_over(self.store, head) <= {item.key for item in head.trash}

    def check_swept(self):
        """Check that an hour after the next claim no file of a failed save is left."""
        run = RunState(self.store, RUN, self.time.clock())
        self.time.sleep(HOUR + 1)
        claim = claim_run(run, self.new_owner())
        sweep_abandoned(claim)
        self.time.sleep(HOUR + 1)
        sweep(claim)
        assert not left_over(self.store, claim.head)
        assert not claim.head.trash


def operations_of_an_unbroken_run(world, training):
    store = FaultyStore(world.store)
    world.process(store, training).go()
    world.check_done(training)
    return store.operations


def newest_step(world, stage):
    head = read_head(world.store)
    return max((e.step for e in head.checkpoints if e.stage == stage), default=0) if head else 0


def break_at(world, k, when, happen, training):
    """Call `happen` at a process's k-th operation, and let a second process finish the run.

    Returns the operation.
    """
    broken = FaultyStore(world.store, k, when, happen)
    with contextlib.suppress(Crash, StoreError, NotDurable):
        world.process(broken, training).go()
    world.check_safe()
    committed = {stage: newest_step(world, stage) for stage in training}
    second = world.process(FaultyStore(world.store), training)
    second.go()
    for stage, step in second.restored.items():
        assert step >= committed[stage], f"{stage} went back behind what was committed"
    # A save that exists only on its machine is restored without the metrics that were in memory.
    ahead = {
        stage: range(committed[stage] + 1, step + 1) for stage, step in second.restored.items()
    }
    world.check_done(training, ahead)
    return broken.operations[k - 1]


def sample(count, every, first=1):
    return range(first, count + 1, every)


# ---------------------------------------------------------------- a folder


@pytest.fixture
def folder_world(tmp_path, time, new_process):
    def make(name):
        store = FileStore(tmp_path / str(name) / "runs")
        return World(store, tmp_path / "cache", time, new_process)

    return make


def some_or_all(every, **firsts):
    """Return when something happens, the first operation at which it does, and the distance to the
    next: by default, other operations in each case. Under soak, at each operation."""
    some = [pytest.param(when, first, every, id=when) for when, first in firsts.items()]
    soak = pytest.mark.soak
    return some + [pytest.param(when, 1, 1, id=f"{when}-each", marks=soak) for when in firsts]


@pytest.mark.parametrize(("when", "first", "every"), some_or_all(9, before=1, halfway=4, after=7))
def test_a_process_may_die_at_operations_on_a_folder(folder_world, when, first, every):
    make = folder_world
    operations = operations_of_an_unbroken_run(make("unbroken"), TRAINING)
    for kind in ("write", "swap", "delete", "publish", "list"):  # the soak test tries them all
        assert any(operation.startswith(kind) for operation in operations)
    for k in sample(len(operations), every, first):
        operation = operations[k - 1]
        if when == "halfway" and not can_be_torn(operation):
            continue
        world = make(k)
        assert break_at(world, k, when, crash, TRAINING).split()[0] == operation.split()[0]
        world.check_swept()
        torn = list((world.cache.parent / str(k)).rglob(".tmp-*"))
        # Only files that are an hour old, by the disk's clock, may be treated as abandoned.
        assert len(torn) == (when == "halfway")


@pytest.mark.parametrize(("when", "first", "every"), some_or_all(11, before=4, after=9))
def test_a_folder_may_fail_at_operations(folder_world, when, first, every):
    operations = operations_of_an_unbroken_run(folder_world("unbroken"), TRAINING)
    for k in sample(len(operations), every, first):
        world = folder_world(k)
        break_at(world, k, when, fail, TRAINING)
        world.check_nothing_forgotten()


def test_a_process_may_die_again_while_it_recovers(folder_world):
    world = folder_world("again and again")
    for k in range(1, 200):
        store = FaultyStore(world.store, k, "after", crash)
        try:
            world.process(store).go()
        except Crash:
            world.check_safe()
        except PionError as error:
            if "attempts in a row failed before anything was committed" not in str(error):
                raise
        else:
            break
    world.check_done(TRAINING)


# ---------------------------------------------------------------- S3


@pytest.fixture
def bucket_world(s3, tmp_path, monkeypatch, time, new_process):
    """Return a function that makes runs in a bucket, each on its own machine. The bucket's clock is
    `time`."""
    s3.use(monkeypatch)
    monkeypatch.setattr(S3Store, "service_time", lambda _: time.time)
    bucket = s3.bucket()

    def make(name):
        store = S3Store(bucket, str(name), sleep=lambda seconds: None)
        store._bucket._client = client
        return World(store, tmp_path / str(name), time, new_process)

    client = S3Store(bucket)._bucket.client  # connecting takes longer than a whole run
    return make


ONE_STAGE = ("pretrain",)


def test_a_process_may_die_at_every_14th_operation_on_a_bucket(bucket_world):
    """It dies before, in and after operations by turns; `soak` tries each way at each operation."""
    operations = operations_of_an_unbroken_run(bucket_world("unbroken"), ONE_STAGE)
    ways = itertools.cycle(("before", "halfway", "after"))
    for k, when in zip(sample(len(operations), 14), ways):
        break_at(bucket_world(k), k, when, crash, ONE_STAGE)


@pytest.mark.soak
@pytest.mark.parametrize("happen", [crash, fail])
@pytest.mark.parametrize("when", ["before", "halfway", "after"])
def test_a_process_may_die_at_every_operation_on_a_bucket(bucket_world, when, happen):
    operations = operations_of_an_unbroken_run(bucket_world("unbroken"), TRAINING)
    for k in sample(len(operations), 1):
        world = bucket_world(k)
        break_at(world, k, when, happen, TRAINING)
        world.check_swept()


@pytest.mark.parametrize("every", [43, pytest.param(1, marks=pytest.mark.soak)])
def test_a_machine_may_vanish_with_its_disk(bucket_world, every):
    operations = operations_of_an_unbroken_run(bucket_world("unbroken"), ONE_STAGE)
    for k in sample(len(operations), every):
        world = bucket_world(k)
        with pytest.raises(Crash):
            world.process(FaultyStore(world.store, k, "after"), ONE_STAGE).go()
        world.cache = world.cache / "another"
        world.process(FaultyStore(world.store), ONE_STAGE).go()
        world.check_done(ONE_STAGE)


# ---------------------------------------------------------------- a real kill

# Forks the processes, because the imports take far longer than what each then does.
_KILLED = """
import os, sys
from pathlib import Path
from pipeline.state.stores import open_store
from tests.faults.faulty_store import FaultyStore, kill
from tests.faults.light_job import Process
folder, when, *ks = sys.argv[1:]
for k in ks:
    child = os.fork()
    if child == 0:
        store = FaultyStore(open_store(f"file://{folder}/{k}/runs"), int(k), when, kill)
        Process(store, Path(folder, k, "cache")).go()
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


def kill_at(ks, when, folder):
    """Return the exit codes of processes that kill themselves at their k-th operation, each in its
    own folder below `folder`."""
    command = [sys.executable, "-c", _KILLED, str(folder), when, *map(str, ks)]
    return [int(line) for line in run_to_end(command).stdout.split()]


def check_killed(ks, when, folder, time, new):
    """Return at how many of these operations a process was killed. After each kill, another process
    finishes the run.

    A process is not killed if it ends before the operation.
    """
    killed = 0
    for k, code in zip(ks, kill_at(ks, when, folder), strict=True):
        world = World(FileStore(folder / str(k) / "runs"), folder / "cache", time, new)
        assert code in (0, -signal.SIGKILL)
        killed += code != 0
        world.check_safe()
        world.process(FaultyStore(world.store)).go()
        head = read_head(world.store)
        final = world.store.read(f"{RUN}/{head.stages['sft'].checkpoint}/{MODEL}")
        assert json.loads(final) == unbroken_weights()
    return killed


def test_another_process_takes_over_from_a_killed_one_at_once(tmp_path, time):
    """The next owner is not of the same launch; it sees that the process is dead."""
    assert check_killed(range(24, 80, 25), "halfway", tmp_path, time, Owner.me) == 3


@pytest.mark.soak
@pytest.mark.parametrize("when", ["before", "halfway", "after"])
def test_a_process_may_be_killed_at_every_operation(tmp_path, time, when):
    count = len(
        operations_of_an_unbroken_run(
            World(FileStore(tmp_path / "unbroken"), tmp_path, time, Owner.me), TRAINING
        )
    )
    killed = check_killed(range(1, count + 1), when, tmp_path, time, Owner.me)
    assert killed > count / 2
