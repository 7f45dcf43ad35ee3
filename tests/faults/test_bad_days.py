"""After anything that goes wrong, the run ends correctly, or stops and says what to do."""

import contextlib
import errno
import json
import os
import shutil
import tempfile
from functools import partial
from pathlib import Path

import pytest

from pion.errors import NotDurable, PionError
from pion.train.trainer import TrainState
from pipeline.job import Checkpoint
from pipeline.state.checkpoints.layout import MANIFEST, MODEL
from pipeline.state.checkpoints.restore import FoundCheckpoint, check_entry
from pipeline.state.checkpoints.retention import Keep
from pipeline.state.claim import claim_run
from pipeline.state.head import TRASH_SECONDS
from pipeline.state.owner import Owner
from pipeline.state.rows.metrics import MetricsLog
from pipeline.state.run_state import RunState
from pipeline.state.stores import FileStore
from pipeline.state.stores.clock import Clock
from pipeline.state.stores.s3.store import S3Store
from pipeline.state.workspace import Workspace
from pipeline.training.cadence import SaveCadence
from pipeline.training.saving import Saving
from tests.faults.faulty_store import Crash, FaultyStore, fail
from tests.faults.light_job import RUN, Process, read_head, unbroken_weights, wrong_in
from tests.pipeline.state.checkpoints.conftest import (
    a_checkpointer,
    checkpointer_in_this_process,
    save,
    some_tensors,
)
from tests.support.far_store import FarStore
from tests.support.in_process_uploader import InProcessUploader
from tests.support.s3_server import FaultProxy
from tests.support.states import an_entry

STEPS = 8


class Days:
    """A run in `store`, and processes that advance the run on one machine."""

    def __init__(self, store, cache, new_owner):
        self.store, self.cache, self.new_owner = store, cache, new_owner
        self.clock = Clock()

    def process(self, at_step=None):
        """Return a process that calls `at_step` after some steps, counted through both stages."""
        steps = iter(range(1, 1000))
        store = FaultyStore(self.store)

        def between_steps():
            try:
                (at_step or {}).get(next(steps), lambda: None)()
            except Crash:
                store.die()

        return Process(
            store,
            self.cache,
            clock=self.clock,
            owner=self.new_owner(),
            keep=Keep(last=3),
            steps=STEPS,
            between_steps=between_steps,
        )

    def go(self, at_step=None):
        process = self.process(at_step)
        process.go()
        return process

    def work_until(self, step):
        """Run a process until it dies after `step`."""
        with pytest.raises(Crash):
            self.go({step: die})

    def listed(self):
        return [entry.key for entry in read_head(self.store).checkpoints]

    def check_done(self):
        head = read_head(self.store)
        assert not wrong_in(self.store, head)
        final = self.store.read(f"{RUN}/{head.stages['sft'].checkpoint}/{MODEL}")
        assert json.loads(final) == unbroken_weights(STEPS)


def die():
    raise Crash


class CutOff(FaultyStore):
    """A store on another machine. Once `cut`, the next swap lands, and then the store is `down`."""

    cut = down = False

    def do(self, action, key, call):
        if self.down:
            fail(f"{action} {key}")
        result = super().do(action, key, call)
        if self.cut and action == "swap":
            self.cut, self.down = False, True
            fail(f"{action} {key}")
        return result

    def come_back(self):
        self.down = False


@pytest.fixture
def folder(tmp_path, new_process, no_fsync):
    return Days(FileStore(tmp_path / "runs"), tmp_path / "cache", new_process)


@pytest.fixture(scope="module")
def client_of(s3):
    """A proxy and a client of it. To connect takes longer than a run, and a store connects again
    at each request that its credentials have expired for."""
    with FaultProxy(s3.url) as proxy, pytest.MonkeyPatch.context() as patch:
        proxy.use(patch)
        yield proxy, S3Store("any-bucket")._bucket.client


@pytest.fixture
def proxy(client_of, monkeypatch):
    proxy, client = client_of
    proxy.use(monkeypatch)
    monkeypatch.setattr("pipeline.state.stores.s3.bucket._connect", lambda checksums: client)
    yield proxy
    proxy.clear()


@pytest.fixture
def bucket(tmp_path, new_process, s3, proxy):
    store = S3Store(s3.bucket(), "runs", sleep=lambda seconds: None)
    return Days(store, tmp_path / "cache", new_process)


@pytest.fixture
def far(tmp_path, new_process, no_fsync):
    """Days in a store on another machine, without the time that a service takes."""
    return Days(CutOff(FarStore(tmp_path / "far")), tmp_path / "cache", new_process)


def lose_store(days, after):
    """Run a process whose store is down after a step, until it ends. Then the store works again."""
    with pytest.raises(NotDurable):
        days.go({after: partial(setattr, days.store, "down", True)})
    days.store.down = False


@pytest.fixture(params=["folder", "far"])
def days(request):
    return request.getfixturevalue(request.param)


# ---------------------------------------------------------------- damaged checkpoints


def truncate(store, key):
    store.write(key, store.read(key)[:-7])


def flip(store, key):
    content = bytearray(store.read(key))
    content[len(content) // 2] ^= 1
    store.write(key, bytes(content))


def remove(store, key):
    store.delete(key)


# In a bucket one damage, because what reads it is the same.
@pytest.mark.parametrize(
    ("days", "damaged", "file", "wreck"),
    [
        ("folder", 1, MODEL, truncate),
        ("folder", 1, MANIFEST, remove),
        ("folder", 2, MODEL, flip),
        ("bucket", 2, MODEL, flip),
    ],
    indirect=["days"],
)
def test_a_run_falls_back_behind_damaged_checkpoints_and_says_so(days, damaged, file, wreck):
    days.work_until(step=7)
    newest = days.listed()[:damaged]
    for key in newest:
        wreck(days.store, f"{RUN}/{key}/{file}")
    shutil.rmtree(days.cache, ignore_errors=True)
    process = days.go()
    assert process.restored["pretrain"] == 6 - 2 * damaged
    for key, line in zip(newest, process.said, strict=True):
        assert key in line
        assert file in line
    days.check_done()


def test_a_good_local_copy_replaces_a_damaged_checkpoint(far):
    far.work_until(step=7)
    flip(far.store, f"{RUN}/{far.listed()[0]}/{MODEL}")
    process = far.go()
    assert (process.restored["pretrain"], process.said) == (6, [])


def test_when_no_checkpoint_is_good_the_run_stops_and_changes_nothing(days):
    days.work_until(step=7)
    listed = days.listed()
    for key in listed:
        truncate(days.store, f"{RUN}/{key}/{MODEL}")
    shutil.rmtree(days.cache, ignore_errors=True)
    before = days.store.list(f"{RUN}/checkpoints/")
    with pytest.raises(PionError, match=r"None of the checkpoints of pretrain.*--redo pretrain"):
        days.go()
    assert days.listed() == listed
    assert days.store.list(f"{RUN}/checkpoints/") == before


# ---------------------------------------------------------------- an unreliable service


def test_a_storm_of_all_faults_at_once_changes_nothing(bucket, proxy):
    proxy.storm(every=3)
    # A bit that flips during a download is only detected if there is a hash: not in HEAD or a list.
    for number in range(1, 20):
        proxy.fail("PUT|POST|GET .*safetensors", after=3 * number, kind="flip")
    bucket.go()
    proxy.clear()
    bucket.check_done()


def expire(proxy):
    return lambda: proxy.deny("ExpiredToken", 400)


def test_credentials_that_expire_and_come_back_cost_no_step(bucket, proxy):
    process = bucket.go({3: expire(proxy), 7: proxy.clear})
    bucket.check_done()
    assert any("credentials have expired" in line for line in process.said)


def test_a_run_that_ends_undurable_resumes_from_the_copy_on_its_machine(bucket, proxy):
    with pytest.raises(NotDurable, match="credentials have expired") as ended:
        bucket.go({3: expire(proxy)})
    assert "The newest save is on this machine" in str(ended.value)
    proxy.clear()
    assert [key.split("/")[-1][0] for key in bucket.listed()] == ["2"]
    assert bucket.go().restored["pretrain"] == STEPS
    bucket.check_done()


def test_without_the_local_copy_the_run_resumes_from_the_last_commit(far):
    lose_store(far, after=3)
    shutil.rmtree(far.cache)
    assert far.go().restored["pretrain"] == 2
    far.check_done()


def test_a_local_copy_is_not_used_after_another_machine_trained_further(far, tmp_path):
    lose_store(far, after=3)
    here, far.cache = far.cache, tmp_path / "elsewhere"
    far.work_until(step=3)  # on another machine: from step 2 to step 5, saved at 4
    far.cache = here
    assert far.go().restored["pretrain"] == 4
    far.check_done()


def test_redoing_a_stage_ignores_local_copies_on_every_machine(far):
    """A stage is redone because its data or code were wrong."""
    lose_store(far, after=1)  # nothing is listed, step 8 is on this machine
    claim = claim_run(far.process().run, far.new_owner())
    claim.drop_stages(["pretrain"])
    claim.release()
    assert far.go().restored["pretrain"] == 0


def test_a_run_that_loses_write_access_stops_and_keeps_its_commits(bucket, proxy):
    with pytest.raises(NotDurable, match=r"access was denied.*Fix the problem"):
        bucket.go({5: lambda: proxy.deny(match="PUT|POST")})
    proxy.clear()
    assert bucket.go().restored["pretrain"] >= 4
    bucket.check_done()


@pytest.fixture
def cut_off(tmp_path):
    return CutOff(FarStore(tmp_path / "far"))


def test_a_checkpoint_whose_commit_landed_unacknowledged_is_not_written_again(cut_off, tmp_path):
    """A kill during a second write would leave HEAD's newest checkpoint half old and half new."""
    claim = claim_run(RunState(cut_off, "demo"), Owner.me())
    metrics = MetricsLog(cut_off, "demo", "pretrain", claim.epoch)
    metrics.append({"step": 10, "loss": 3.0})
    workspace = Workspace(cut_off, "demo", tmp_path / "here")
    checkpointer = checkpointer_in_this_process(
        claim,
        workspace=workspace,
        resumed=FoundCheckpoint(an_entry(5, epoch=0), folder=None, skipped=[]),
        metrics=metrics,
    )
    model, optimizer = some_tensors()
    saving = Saving(
        checkpointer,
        Checkpoint(),
        SaveCadence(None, None, preemption_seconds=7200.0, last_save=0.0),
        report=lambda message: None,
        clock=Clock(sleep=lambda seconds: cut_off.come_back()),
    )
    cut_off.cut = True
    saving.complete(TrainState(model, optimizer, {"step": 10}), patience=60.0)
    manifest = f"write demo/checkpoints/pretrain/10-1/{MANIFEST}"
    assert cut_off.operations.count(manifest) == 1
    (entry,) = claim.head.checkpoints
    assert checkpointer.last == entry
    assert entry.ancestor == "checkpoints/pretrain/5-0"
    assert check_entry(workspace, entry) is None
    save(checkpointer, 20)
    assert claim.head.checkpoints[0].ancestor == entry.key


def test_a_save_descends_from_a_commit_that_landed_unacknowledged(cut_off, tmp_path):
    """Otherwise the copy of the save on this machine could not be used."""
    claim = claim_run(RunState(cut_off, "demo"), Owner.me())
    workspace = Workspace(cut_off, "demo", tmp_path / "here")
    checkpointer = checkpointer_in_this_process(claim, workspace=workspace)
    cut_off.cut = True
    save(checkpointer, 10)
    assert checkpointer.stats.outage is not None
    assert claim.head.checkpoints == ()
    cut_off.come_back()
    save(checkpointer, 20)
    newer, older = claim.head.checkpoints
    assert (newer.step, newer.ancestor, older.step) == (20, older.key, 10)
    assert claim.head.trash == ()


# ---------------------------------------------------------------- a disk


@pytest.mark.parametrize(
    ("number", "reason"),
    [(errno.ENOSPC, "disk is full"), (errno.EDQUOT, "quota"), (errno.EROFS, "read-only")],
)
def test_a_full_disk_stops_the_run_until_there_is_space(folder, monkeypatch, number, reason):
    def refuse(descriptor):
        raise OSError(number, os.strerror(number))

    # Waiting would cost money and not help.
    refused = pytest.raises(NotDurable, match=f"{reason}.*Fix the problem")
    with monkeypatch.context() as full, refused:
        folder.go({5: lambda: full.setattr(os, "fsync", refuse)})
    assert not list(Path(folder.store.url.removeprefix("file://")).rglob(".tmp-*"))
    assert folder.go().restored["pretrain"] == 4
    folder.check_done()


@pytest.fixture
def as_nobody():
    """Yield a folder in which this process has only its owner's rights, even as root."""
    user = os.geteuid()
    place = Path(tempfile.mkdtemp(prefix="pion-nobody-"))
    os.chmod(place, 0o777)
    if user == 0:
        os.seteuid(65534)
    try:
        yield place
    finally:
        os.seteuid(user)
        for path, _, _ in os.walk(place):
            os.chmod(path, 0o755)
        shutil.rmtree(place)


def test_a_folder_that_becomes_read_only_stops_the_run_until_it_is_writable(as_nobody, new_process):
    days = Days(FileStore(as_nobody / "runs"), as_nobody / "cache", new_process)
    run = as_nobody / "runs" / RUN

    def set_mode(mode):
        for path, _, _ in os.walk(run):
            os.chmod(path, mode)

    with pytest.raises(NotDurable, match="no permission"):
        days.go({5: lambda: set_mode(0o555)})
    set_mode(0o755)
    assert days.go().restored["pretrain"] == 4
    days.check_done()


# ---------------------------------------------------------------- a clock


@pytest.mark.parametrize("jump", [90_000.0, -90_000.0])
def test_a_clock_that_jumps_loses_nothing(folder, jump):
    now = [10_000_000.0]
    folder.clock = Clock(now=lambda: now[0])

    def leap():
        now[0] += jump

    with contextlib.suppress(Crash):
        folder.go({step: leap for step in range(1, 11)} | {11: die})
    folder.go({step: leap for step in range(1, 20)})
    folder.check_done()
    assert read_head(folder.store).spent.hours < 2  # a jump of the clock is not counted


def test_a_checkpoint_dropped_after_a_slow_upload_has_its_hour_for_readers(tmp_path, time):
    class Slow(InProcessUploader):
        def save(self, request):
            time.sleep(2 * TRASH_SECONDS)
            return super().save(request)

    store = FileStore(tmp_path / "runs")
    claim = claim_run(RunState(store, RUN, time.clock()), Owner.me())
    checkpointer = a_checkpointer(claim, uploader=Slow(store))
    for step in (1, 2, 3):
        save(checkpointer, step)
    checkpointer.close()
    (dropped,) = claim.head.trash
    assert dropped.not_before == time.time + TRASH_SECONDS
    assert store.list(f"{RUN}/{dropped.key}/{MANIFEST}")
