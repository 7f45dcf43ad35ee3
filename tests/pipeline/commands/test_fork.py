"""A fork is a separate run that continues from another run's checkpoint. No fork is partial."""

import json
import shutil

import pytest
import yaml

from pion.errors import BadInput, PionError
from pion.untrusted import LARGEST_RECORD
from pipeline.commands.fork import fork_run
from pipeline.job import Job
from pipeline.job.digest import digest_job
from pipeline.run.command import run_job
from pipeline.run.done_and_changed_stages import (
    ChangedStage,
    check_redo,
    first_stale,
    plan_stages,
    stage_inputs,
)
from pipeline.run.inputs import RunOptions
from pipeline.state.checkpoints.checkpointer import Checkpointer
from pipeline.state.checkpoints.hold import unless_held
from pipeline.state.checkpoints.restore import check_entry
from pipeline.state.checkpoints.retention import sweep_abandoned
from pipeline.state.claim import claim_run
from pipeline.state.head import SHARED, Head, SkippedRows
from pipeline.state.notes.deadline import Asked, new_deadline, read_deadline, write_first_deadline
from pipeline.state.notes.watcher_beat import read_beat, write_beat
from pipeline.state.owner import Owner
from pipeline.state.rows.metrics import read_events, read_metrics
from pipeline.state.run_state import INPUTS, RunState
from pipeline.state.stores import FileStore, StoreError
from pipeline.state.workspace import Workspace
from tests.faults.faulty_store import Crash, FaultyStore, can_be_torn, crash
from tests.support.far_store import FarStore
from tests.support.finished_run import make_run
from tests.support.jobs import SilentDisplay, tiny_dict, tiny_job, write_tiny_data
from tests.support.light_run import JOB, light_run, save_checkpoint, write_metrics
from tests.support.states import read as head_of


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """Where copies of remote runs are."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def store(tmp_path):
    return FileStore(tmp_path / "runs")


@pytest.fixture
def source(store, time):
    return light_run(store, clock=time.clock())


def fork(source, name="new", store=None, **which):
    target = RunState(store or source.store, name)
    fork_run(source, head_of(source), target, **which)
    return target


def checkpoints(run):
    return [(entry.stage, entry.step) for entry in head_of(run).checkpoints]


def problems(run):
    workspace = Workspace(run.store, run.name)
    return [check_entry(workspace, entry) for entry in head_of(run).checkpoints]


def contents(run):
    return {entry.key: run.store.read(entry.key) for entry in run.store.list(run.key(""))}


# ---------------------------------------------------------------- what is copied


def test_by_default_a_run_is_forked_at_its_newest_checkpoint(source):
    new = fork(source)
    assert checkpoints(new) == [("sft", 5), ("pretrain", 20)]
    head = head_of(new)
    assert set(head.stages) == {"prepare", "pretrain"}
    assert head.stages["pretrain"].checkpoint == "checkpoints/pretrain/20-1"
    assert head.stages["pretrain"].result == {"steps": 20}
    assert problems(new) == [None, None]


def test_what_is_forked_is_held_while_it_is_copied(source):
    fork(source, at=10)
    with unless_held(source.store, source.key("checkpoints/pretrain/10-1")) as free:
        assert not free


def test_a_fork_at_a_step_leaves_out_what_came_after_it(source):
    new = fork(source, at=10)
    assert checkpoints(new) == [("pretrain", 10)]
    assert set(head_of(new).stages) == {"prepare"}
    steps = [row["step"] for row in read_metrics(new.store, "new", head_of(new), "pretrain")]
    assert steps == list(range(1, 11))
    assert read_metrics(new.store, "new", head_of(new), "sft") == []


def test_a_stage_that_is_forked_at_its_last_step_can_continue(source):
    assert set(head_of(fork(source, stage="pretrain")).stages) == {"prepare"}


def test_a_fork_begins_a_history_of_its_own_and_says_where_it_comes_from(source):
    new = fork(source, at=20)
    head = head_of(new)
    assert (head.epoch, head.owner, head.committed_epoch) == (1, None, 1)
    assert [claim.owner.session for claim in head.claims] == [Owner.me().session]
    assert {entry.epoch for entry in head.checkpoints} == {1}
    assert head.forked == head.checkpoints[0].key == "checkpoints/pretrain/20-1"
    (event,) = read_events(new.store, "new")
    assert event["event"] == "forked"
    assert event["from"] == f"{source.store.url}/demo"
    assert (event["stage"], event["at_step"], event["epoch"]) == ("pretrain", 20, 1)


def test_a_fork_costs_nothing_of_what_its_process_has_cost_before(source, monkeypatch):
    monkeypatch.setattr("pipeline.state.owner._paid_since", lambda: source.clock.now() - 3600)
    assert fork(source).read().spent.hours == 0


def test_a_fork_inherits_no_deadline_and_no_watcher(source):
    asked = Asked(hours=42, at=None, margin=1800)
    write_first_deadline(source, new_deadline(asked, "pion launch", now=0))
    write_beat(source, None)
    target = RunState(source.store, "fork")
    fork_run(source, head_of(source), target)
    assert read_deadline(target) is None
    assert read_beat(target) is None


def test_the_next_claim_sweeps_nothing_of_a_fork(source):
    new = fork(source)
    assert sweep_abandoned(claim_run(new, Owner.me())) == []


def test_rows_that_the_source_had_rewound_are_not_in_the_fork(source):
    new = fork(source, at=20)
    steps = [row["step"] for row in read_metrics(new.store, "new", head_of(new), "pretrain")]
    assert steps == list(range(1, 21))


def test_a_fork_that_starts_a_stage_afresh_shows_nothing_of_the_sources_steps(source):
    new = fork(source, at=20)
    claim = claim_run(new, Owner.me())
    claim.drop_stages(["pretrain"])
    claim.set_restore("pretrain", 0)
    write_metrics(claim, "pretrain", 1, 2)
    rows = read_metrics(new.store, "new", head_of(new), "pretrain")
    assert [(row["step"], row["epoch"]) for row in rows] == [(1, 2), (2, 2)]


def test_rows_left_out_before_the_fork_stay_left_out(source):
    claim = claim_run(source, Owner.me())
    digest = head_of(source).checkpoints[1].digest
    for step in (8, 15):
        rows = SkippedRows(4 * step - 4, 4 * step, step, 3, digest, "loss is nan", 0.0)
        claim.commit(lambda head, rows=rows: head.with_skipped("pretrain", rows))
    assert [rows.step for rows in head_of(fork(source, at=10)).skipped["pretrain"]] == [8]
    kept = head_of(fork(source, "all", stage="sft")).skipped["pretrain"]
    assert [rows.step for rows in kept] == [8, 15]


def test_a_fork_shares_nothing_with_its_source(source):
    before = contents(source)
    new = fork(source)
    assert contents(source) == before
    copied = contents(new)
    shutil.rmtree(source.store.folder / "demo")
    assert contents(new) == copied
    assert problems(new) == [None, None]
    has_its_data(new)


def test_a_fork_has_the_files_that_its_source_was_started_with(source):
    large = LARGEST_RECORD + 1
    source.store.write(source.key(INPUTS), b"{}")
    source.store.write(source.key("inputs/" + 64 * "a"), bytes(large))
    new = fork(source)
    assert new.store.read(new.key(INPUTS)) == b"{}"
    assert len(new.store.read(new.key("inputs/" + 64 * "a"), large)) == large


def has_its_data(run):
    """Check that the run can use all parts of its data."""
    for part, digest in digest_job(Job.model_validate(JOB)).data.items():
        key = head_of(run).data[part].removeprefix(f"{SHARED}/")
        shard = Workspace(run.store, SHARED).bring(key) / "0/train/shard_00000.npy"
        assert shard.read_bytes() == f"rows of {digest}".encode()


def test_a_run_can_be_forked_from_store_to_store_and_back(tmp_path, cache, source):
    run, runs = source, []
    for name, kind in (("far", FarStore), ("farther", FarStore), ("home", FileStore)):
        run = fork(run, name, kind(tmp_path / name))
        runs.append(run)
    shutil.rmtree(cache)  # another machine
    for run in runs:
        assert checkpoints(run) == [("sft", 5), ("pretrain", 20)]
        assert problems(run) == [None, None]
        assert len(read_metrics(run.store, run.name, head_of(run), "pretrain")) == 20
        has_its_data(run)


def test_copies_that_were_only_needed_for_the_fork_are_gone_after_it(tmp_path, cache, source):
    far = fork(source, "far", FarStore(tmp_path / "far"))
    fork(far, "near", FileStore(tmp_path / "near"))
    assert list(cache.rglob("*.safetensors")) == []


# ---------------------------------------------------------------- what is refused


def test_a_step_that_was_not_kept_is_answered_with_those_that_were(source):
    for which in ({"at": 15}, {"at": 5, "stage": "pretrain"}):
        with pytest.raises(BadInput, match="are: sft 5, pretrain 20, pretrain 10") as refused:
            fork(source, **which)
        assert f"at step {which['at']}" in str(refused.value)
    assert list(source.store.list("new/")) == []


def test_a_step_that_two_stages_have_needs_the_stage(source):
    save_checkpoint(claim_run(source, Owner.me()), "sft", 10, "digest")
    with pytest.raises(BadInput, match=r"step 10 of pretrain and of sft. Choose one with --stage"):
        fork(source, at=10)
    assert checkpoints(fork(source, at=10, stage="pretrain")) == [("pretrain", 10)]


def test_a_run_that_exists_is_not_overwritten(source):
    other = light_run(source.store, "other")
    before = contents(other)
    for name in ("other", "demo"):
        with pytest.raises(BadInput, match=f"{name} exists already"):
            fork(source, name)
    assert contents(other) == before


def test_a_damaged_checkpoint_is_not_forked(source):
    key = source.key("checkpoints/pretrain/10-1/model.safetensors")
    source.store.write(key, b"weights of pretrain 1O")
    with pytest.raises(BadInput, match=r"pretrain/10-1 of demo can't be forked: model\.safetens"):
        fork(source, at=10)
    assert RunState(source.store, "new").read() is None
    assert checkpoints(fork(source, at=20)) == [("pretrain", 20)]


# ---------------------------------------------------------------- interrupted


def fill_the_disk(operation):
    raise StoreError("write", operation, "the disk is full")


@pytest.mark.parametrize("happen", [crash, pytest.param(fill_the_disk, marks=pytest.mark.soak)])
def test_a_fork_cut_short_at_any_write_leaves_no_run_and_is_completed_by_asking_again(
    tmp_path, source, happen
):
    unbroken = FaultyStore(FileStore(tmp_path / "whole"))
    whole = contents(fork(source, store=unbroken, at=10))
    writes = [n for n, done in enumerate(unbroken.operations, 1) if can_be_torn(done)]
    assert len(writes) > 10
    for at in writes:
        folder = tmp_path / f"cut at {at}"
        with pytest.raises((Crash, PionError)):
            fork(source, store=FaultyStore(FileStore(folder), at, happen=happen), at=10)
        assert RunState(FileStore(folder), "new").read() is None
        new = fork(source, store=FileStore(folder), at=10)
        assert contents(new).keys() == whole.keys()
        assert problems(new) == [None]
        assert len(read_events(new.store, "new")) == 1


def test_of_two_forks_to_one_name_one_is_told_that_it_lost(source):
    class Raced(FileStore):
        def compare_and_swap(self, key, data, expected):
            RunState(FileStore(self.folder), "new").swap(Head(), None, "of the other")
            return super().compare_and_swap(key, data, expected)

    raced = Raced(source.store.folder)
    with pytest.raises(BadInput, match="has just been started by someone else"):
        fork(source, store=raced, at=10)


# ---------------------------------------------------------------- continuing with other settings


def may_continue(run, **changes):
    """Return whether `pion run` with this job continues from the fork."""
    job = Job.model_validate(tiny_dict(checkpoint__keep={"last": 9}, **changes))
    digests, head = digest_job(job), head_of(run)
    stale = first_stale(plan_stages(job, digests, head))
    if stale is None:
        return True
    kept = run.read_stage(stale.stage, stale.old_digest)
    old = dict(kept["inputs"]) if kept else None
    return ChangedStage(job, digests, stale, old).fork_may_continue(head)


@pytest.mark.parametrize(
    ("at", "change", "allowed"),
    [
        (10, {}, True),
        (10, {"pretrain__lr": 2e-2}, True),
        (10, {"pretrain__steps": 40, "pretrain__weight_decay": 0.0}, True),
        (10, {"pretrain__schedule": "cosine", "sft__lr": 5e-4}, True),
        (10, {"pretrain__steps": 11}, True),
        (10, {"pretrain__steps": 10}, False),  # no step would be left under the new schedule
        (10, {"pretrain__steps": 9}, False),
        (10, {"pretrain__optimizer": "muon"}, False),  # other optimizer state
        (10, {"pretrain__global_batch": 8}, False),  # other rows in each step
        (10, {"seed": 43}, False),  # another order of rows
        (10, {"data__window": 2}, False),
        (10, {"data__held_out": 0.1}, False),  # other rows
        (10, {"model__d_model": 64, "pretrain__lr": 2e-2}, False),  # other weights
        (20, {}, True),  # at the last step of the stage
        (20, {"pretrain__lr": 2e-2}, False),
        (20, {"pretrain__lr": 2e-2, "pretrain__steps": 24}, True),
        (None, {"sft__lr": 5e-4}, True),  # at sft, which stands on what was pretrained
        (None, {"pretrain__lr": 2e-2}, False),
    ],
)
def test_a_fork_continues_under_another_schedule_but_as_nothing_else(source, at, change, allowed):
    assert may_continue(fork(source, at=at), **change) is allowed


def test_a_run_that_is_no_fork_does_not(source):
    assert not may_continue(source, pretrain__lr=2e-2)


def test_steps_of_its_own_bind_a_fork_to_its_settings(source):
    new = fork(source, at=10)
    claim = claim_run(new, Owner.me())
    save_checkpoint(claim, "pretrain", 15, head_of(new).checkpoints[0].digest)
    assert not may_continue(new, pretrain__lr=2e-2)


def test_the_data_of_a_fork_is_not_prepared_again(source):
    job = Job.model_validate(JOB)
    plans = plan_stages(job, digest_job(job), head_of(fork(source, at=10)))
    states = {plan.stage: plan.state for plan in plans}
    assert states["prepare"] == "done"
    assert states["pretrain"] == "resume"


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"sft__lr": 5e-4}, {"stage": "sft", "at": 5}),
        ({"pretrain__lr": 2e-2, "pretrain__steps": 24}, {"stage": "pretrain", "at": 20}),
    ],
)
def test_a_refused_change_of_schedule_is_shown_the_fork_that_continues_under_it(
    source, change, where
):
    line = "pion fork runs-elsewhere/demo demo-2 --stage {stage} --at {at} && pion run x.yaml name="
    assert line.format(**where) in refusal(source, tiny_job(**change))
    assert may_continue(fork(source, **where), **change)


def test_a_finished_stage_is_forked_at_the_one_before_as_nothing_of_it_is_left_to_train(source):
    claim = claim_run(source, Owner.me())
    digest = digest_job(Job.model_validate(JOB)).stages["sft"]
    entry = save_checkpoint(claim, "sft", 10, digest)
    claim.finish_stage("sft", digest, {}, entry.key)
    message = refusal(source, tiny_job(sft__lr=5e-4))
    assert "demo-2 --stage pretrain && pion run x.yaml name=demo-2    continue from pre" in message
    assert may_continue(fork(source, stage="pretrain"), sft__lr=5e-4)
    # There is no stage before the first one, but it has earlier checkpoints.
    assert "demo-2 --stage pretrain --at 10 && " in refusal(source, tiny_job(pretrain__lr=2e-2))


def test_a_refused_change_of_fine_tuning_data_may_fork_what_was_pretrained(source):
    message = refusal(source, tiny_job(sft__held_out=0.1))
    assert "demo-2 --stage pretrain && pion run x.yaml name=demo-2    continue from pre" in message
    assert "pion fork" not in refusal(source, tiny_job(seed=43))


def refusal(run, job):
    job = job.model_copy(update={"store": "runs-elsewhere", "name": "demo"})
    digests = digest_job(job)
    old = digest_job(Job.model_validate(JOB))
    plans = plan_stages(job, digests, head_of(run))
    stale = first_stale(plans)
    assert stale.old_digest == old.stages[stale.stage]
    changed = ChangedStage(job, digests, stale, stage_inputs(stale.stage, old))
    with pytest.raises(BadInput) as refused:
        check_redo(job, plans, None, changed, "x.yaml")
    return str(refused.value)


# ---------------------------------------------------------------- with real training


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with a job and its finished run, with checkpoints every 5 steps."""
    folder = tmp_path_factory.mktemp("trained")
    write_tiny_data(folder)
    job = tiny_dict(
        store=str(folder / "runs"),
        hardware__workers=0,
        checkpoint__every_steps=5,
        checkpoint__keep={"last": 9},
        evaluate__ngram_order=0,
    )
    del job["sft"]
    (folder / "tiny.yaml").write_text(yaml.safe_dump(job))
    train(folder)
    return folder


def train(folder, **changes):
    from pipeline.job.file import load_job

    def wait(checkpointer):
        checkpointer.wait()
        return False

    overrides = [f"{path.replace('__', '.')}={value}" for path, value in changes.items()]
    job = load_job(folder / "tiny.yaml", overrides)
    options = RunOptions(job_text=(folder / "tiny.yaml").read_text())
    with pytest.MonkeyPatch.context() as patch:
        # A busy machine would skip saves, but the tests fork at these steps.
        patch.setattr(Checkpointer, "busy", property(wait))
        assert run_job(job, options, SilentDisplay()) == 0
    return RunState(FileStore(folder / "runs"), job.name)


def final_weights(run):
    head = head_of(run)
    last = head.stages["pretrain"].checkpoint
    return next(entry.model_sha256 for entry in head.checkpoints if entry.key == last)


def test_a_fork_trained_as_its_source_was_ends_with_the_same_weights(trained):
    source = RunState(FileStore(trained / "runs"), "tiny")
    fork(source, "same", at=10)
    same = train(trained, name="same")
    assert final_weights(same) == final_weights(source)
    rows = read_metrics(same.store, "same", head_of(same), "pretrain")
    trained_on = [row["rows"] for row in rows if "rows" in row]
    assert trained_on == [[4 * step, 4 * step + 4] for step in range(20)]
    events = read_events(same.store, "same")
    assert [e["from_step"] for e in events if e["event"] == "training"] == [10]


@pytest.mark.soak
def test_a_fork_trains_on_under_another_learning_rate(trained):
    source = RunState(FileStore(trained / "runs"), "tiny")
    fork(source, "hotter", at=10)
    hotter = train(trained, name="hotter", pretrain__lr=3e-2, pretrain__steps=24)
    assert final_weights(hotter) != final_weights(source)
    rows = read_metrics(hotter.store, "hotter", head_of(hotter), "pretrain")
    rates = {row["step"]: row["lr"] for row in rows if "lr" in row}
    assert rates[10] == pytest.approx(1e-2)
    assert rates[11] == pytest.approx(3e-2)
    assert max(rates) == 24
    assert json.loads(json.dumps(head_of(source).stages["pretrain"].result))["steps"] == 20


# ---------------------------------------------------------------- the command


def test_a_fork_is_listed_next_to_its_source_and_can_be_used(here, pion):
    claim = claim_run(make_run(here / "runs"), Owner.me())
    claim.finish_stage("publish", "digest", {"target": "hf://me/model/"})
    claim.release()
    code, out, _ = pion("fork", "demo", "new", "--at", "20")
    assert code == 0
    assert "copying pretrain step 20" in out
    assert "new from demo at pretrain step 20. To train it: pion run JOB name=new publish.to" in out
    assert "publish.to=hf://me/model-new [key=value" in out
    (only,) = json.loads(pion("checkpoints", "new", "--json", "--verify")[1])
    assert (only["stage"], only["step"], only["verified"]) == ("pretrain", 20, True)
    code, out, _ = pion("fork", "new", f"{here}/elsewhere/third")
    assert code == 0
    assert f"name=third store=file://{here}/elsewhere" in out
    assert pion("status", f"{here}/elsewhere/third")[0] == 0


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["demo", "demo"], "demo exists already"),
        (["demo", "a b"], "can't be the name of a run"),
        (["dmeo", "new"], "no run 'dmeo'"),
        (["demo", "new", "--at", "ten"], "--at"),
        (["demo", "gs://bucket/new"], "unknown scheme 'gs'"),
    ],
)
def test_a_fork_that_can_not_be_made_exits_with_2_and_leaves_nothing(
    run_folder, pion, monkeypatch, arguments, expected
):
    monkeypatch.chdir(run_folder.parent)
    code, _, err = pion("fork", *arguments)
    assert code == 2
    assert expected in err
    assert sorted(path.name for path in run_folder.iterdir()) == ["demo"]
