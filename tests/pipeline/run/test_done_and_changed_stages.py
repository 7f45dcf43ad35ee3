"""Which stages a run still has to do, and what it refuses to redo without being asked."""

import json
from dataclasses import replace

import pytest

from pion.errors import BadInput
from pipeline.job import Job
from pipeline.job.digest import digest_job, digest_of
from pipeline.run.done_and_changed_stages import (
    ChangedStage,
    check_redo,
    first_stale,
    plan_stages,
    stage_inputs,
    work_left,
)
from pipeline.state.claim import claim_run
from pipeline.state.head import CheckpointEntry, Head, SkippedRows, StageRecord
from pipeline.state.owner import Owner
from pipeline.state.run_state import RunState
from pipeline.state.stores import FileStore
from pipeline.training.train_request import TrainRequest
from tests.support import later_version
from tests.support.jobs import tiny_dict, tiny_job
from tests.support.later_version import LaterJob

ONLY_OUT = {"rank": 4, "targets": ["o_proj"]}


def finished(job, *stages):
    digests = digest_job(job).stages
    return Head(stages={stage: StageRecord(digests[stage], at=0.0) for stage in stages})


def saved_at(job, stage, step):
    digest = digest_job(job).stages[stage]
    entry = CheckpointEntry(stage, step, 1, digest, f"checkpoints/{stage}/{step}-1", 0.0, 1, "")
    return Head(checkpoints=(entry,))


def changed(new, plans, digests):
    """Return the first stage whose work, done under `digests`, the job `new` changes."""
    stale = first_stale(plans)
    assert stale.old_digest == digests.stages[stale.stage]
    return ChangedStage(new, digest_job(new), stale, stage_inputs(stale.stage, digests))


def states(job, head):
    return {plan.stage: plan.state for plan in plan_stages(job, digest_job(job), head)}


def test_a_new_run_has_everything_to_do():
    assert set(states(tiny_job(), Head()).values()) == {"todo"}


def test_finished_stages_are_skipped_and_a_saved_one_continues():
    job = tiny_job()
    head = finished(job, "prepare")
    head = Head(stages=head.stages, checkpoints=saved_at(job, "pretrain", 5).checkpoints)
    assert states(job, head) == {
        "prepare": "done",
        "pretrain": "resume",
        "sft": "todo",
        "evaluate": "todo",
    }


@pytest.mark.parametrize(
    ("change", "difference", "keeps"),
    [
        ({"sft__lr": 2e-3}, "sft.lr: 0.001 → 0.002", "keeps prepare, pretrain"),
        ({"sft__held_out": 0.1}, "sft.held_out: 0.2 → 0.1", "keeps pretrain"),
    ],
)
def test_a_change_to_a_finished_stage_is_refused_with_the_exact_difference(
    change, difference, keeps
):
    old, new = tiny_job(), tiny_job(**change)
    head = finished(old, "prepare", "pretrain", "sft")
    plans = plan_stages(new, digest_job(new), head)
    with pytest.raises(BadInput) as error:
        check_redo(new, plans, None, changed(new, plans, digest_job(old)), "jobs/tiny.yaml")
    assert difference in str(error.value)
    assert "pion run jobs/tiny.yaml --redo sft" in str(error.value)
    assert keeps in str(error.value)


def test_a_redo_that_prepares_the_data_again_says_so():
    old, new = tiny_job(), tiny_job(data__seq_len=48)
    plans = plan_stages(new, digest_job(new), finished(old, "prepare", "pretrain", "sft"))
    with pytest.raises(BadInput) as error:
        check_redo(new, plans, None, changed(new, plans, digest_job(old)))
    assert "--redo pretrain    redo prepare, pretrain, sft, evaluate;" in str(error.value)


@pytest.mark.parametrize("changes", [{}, {"sft__lr": 2e-3}])
def test_a_stage_that_lora_trained_without_the_biases_of_its_base_is_named(changes):
    biased = {"model__heads": {"qkv_bias": True}}
    lora = {"sft__lora": {"rank": 4}}
    job = tiny_job(**biased, **lora)
    before, head = digest_job(job), finished(job, "prepare", "pretrain")
    del before.inputs["sft"]["sft.lora.biases"]
    head.stages["sft"] = StageRecord(digest_of(before.inputs["sft"]), at=0.0)
    new = tiny_job(**biased, **lora, **changes)
    digests = digest_job(new)
    plans = plan_stages(new, digests, head)
    old = stage_inputs("sft", before)
    said = ChangedStage(new, digests, first_stale(plans), old).refusal(plans, "job.yaml")
    assert said.startswith("sft trained the wrong model. An earlier version of Pion let LoRA")
    assert "pion run job.yaml --redo sft    redo sft, evaluate (keeps prepare, pretrain);" in said
    assert ("put the old values back" in said) is bool(changes)
    assert ("sft.lr: 0.001 → 0.002" in said) is bool(changes)
    for sound in (tiny_job(**biased), tiny_job(**lora), tiny_job(**biased, sft__lora=ONLY_OUT)):
        assert "sft.lora.biases" not in digest_job(sound).inputs["sft"]


@pytest.mark.parametrize(("old", "new"), [(None, True), (True, None), (True, False)])
def test_documents_may_not_change_within_a_stage(old, new):
    before, now = tiny_job(data__documents=old), tiny_job(data__documents=new)
    head = saved_at(before, "pretrain", 5)
    stage = changed(now, plan_stages(now, digest_job(now), head), digest_job(before))
    assert not stage.steps_may_be_raised(head)
    assert not stage.fork_may_continue(replace(head, forked=head.checkpoints[0].key))
    was, becomes = json.dumps(bool(old)), json.dumps(bool(new))
    assert [str(d) for d in stage.changes()] == [f"data.documents: {was} → {becomes}"]


def test_redo_of_that_stage_or_an_earlier_one_is_what_allows_it():
    old, new = tiny_job(), tiny_job(sft__lr=2e-3)
    plans = plan_stages(new, digest_job(new), finished(old, "prepare", "pretrain", "sft"))
    stage = changed(new, plans, digest_job(old))
    check_redo(new, plans, "sft", stage)
    check_redo(new, plans, "pretrain", stage)
    with pytest.raises(BadInput):
        check_redo(new, plans, "evaluate", stage)


def test_redo_of_a_stage_the_job_lacks_names_those_it_has():
    job = tiny_job()
    with pytest.raises(BadInput, match="prepare, pretrain, sft, evaluate"):
        check_redo(job, [], "publish", None)


def test_when_a_stage_was_finished_or_saved_is_said_with_its_time_zone():
    old, new = tiny_job(), tiny_job(sft__lr=2e-3)
    done, stale = plan_stages(new, digest_job(new), finished(old, "pretrain", "sft"))[1:3]
    assert done.why == "finished 1970-01-01 00:00:00 UTC with the same settings"
    assert stale.why == "finished 1970-01-01 00:00:00 UTC with different settings"
    begun = plan_stages(new, digest_job(new), saved_at(old, "sft", 5))[2]
    assert begun.why == "at step 5 with different settings, saved 1970-01-01 00:00:00 UTC"


@pytest.mark.parametrize(
    ("step", "change", "allowed"),
    [
        (16, {"pretrain__steps": 40}, True),  # 20 steps decay over their last fifth
        (17, {"pretrain__steps": 40}, False),  # the decay had begun
        (5, {"pretrain__steps": 10}, False),  # fewer steps
        (5, {"pretrain__steps": 40, "pretrain__lr": 2e-2}, False),  # and something else
    ],
)
def test_steps_may_be_raised_until_the_decay_begins(step, change, allowed):
    old, new = tiny_job(), tiny_job(**change)
    head = saved_at(old, "pretrain", step)
    stage = changed(new, plan_stages(new, digest_job(new), head), digest_job(old))
    assert stage.steps_may_be_raised(head) is allowed


@pytest.mark.parametrize(
    "grows",
    [
        {"pretrain__window_schedule": "cubic", "model__windows": {"tokens": 32, "block": 16}},
        {"pretrain__muon_momentum_start": 0.85},
        {"pretrain__phases": [{"until": 0.5, "rates": {"matrix": 2}}, {}]},
    ],
)
def test_steps_can_not_be_raised_if_the_plan_depends_on_them_and_the_fork_is_named(grows):
    old, new = tiny_job(**grows), tiny_job(**grows, pretrain__steps=40)
    head = saved_at(old, "pretrain", 5)
    plans = plan_stages(new, digest_job(new), head)
    with pytest.raises(BadInput) as refused:
        check_redo(new, plans, None, changed(new, plans, digest_job(old)))
    reason = "pretrain.steps can't be raised: windows, momentum or phases are in proportion to it"
    assert reason in str(refused.value)
    assert "pion fork tiny tiny-2 --stage pretrain --at 5" in str(refused.value)


# ---------------------------------------------------------------- defaults that are kept


def job_of(steps, **changes):
    """A job that names no warm-up; the default is 1,000 steps, or a tenth."""
    fields = tiny_dict(pretrain__steps=steps, sft=None, **changes)
    if "pretrain__warmup_steps" not in changes:
        del fields["pretrain"]["warmup_steps"]
    return Job.model_validate(fields)


@pytest.fixture
def begun(tmp_path):
    """A run of 60 steps, with 6 steps of warm-up, that has saved its third step."""
    return run_of(job_of(60), "pretrain", tmp_path)


def run_of(job, stage, folder):
    """A run that has saved the third step of that stage."""
    run = RunState(FileStore(folder), "tiny")
    claim = claim_run(run, Owner.me())
    digests = digest_job(job)
    inputs = {"format": 1, "inputs": stage_inputs(stage, digests)}
    run.write_stage(stage, digests.stages[stage], inputs)
    (entry,) = saved_at(job, stage, 3).checkpoints
    claim.commit(lambda head: head.with_checkpoint(entry))
    claim.release()
    return run


def test_more_steps_do_not_change_the_warm_up(begun):
    longer = job_of(5000)
    assert longer.section("pretrain").warmup_steps == 1000
    left = work_left(longer, begun)
    assert left.raised is not None
    assert longer.section("pretrain").total_warmup_steps == 6


def test_a_warm_up_that_the_job_names_counts(begun):
    named = job_of(5000, pretrain__warmup_steps=500)
    with pytest.raises(Exception, match=r"pretrain.warmup_steps: 6 → 500"):
        work_left(named, begun)


def test_a_stage_that_is_redone_has_the_default_of_its_steps(begun):
    longer = job_of(5000)
    work_left(longer, begun, redo="pretrain")
    assert longer.section("pretrain").total_warmup_steps == 1000


def test_a_few_steps_of_passes_have_the_same_warm_up_after_a_resume(tmp_path):
    def job():
        fields = tiny_dict(sft__epochs=10)
        for name in ("steps", "warmup_steps"):
            fields["sft"].pop(name, None)
        return Job.model_validate(fields | {"sft": fields["sft"] | {"global_batch": 4}})

    run, resumed = run_of(job(), "sft", tmp_path), job()
    work_left(resumed, run)
    request = TrainRequest.of(resumed, digest_job(resumed), Owner.me(), ["sft"])
    section = request.load_job().section("sft")
    section.know_rows(24)
    assert (section.total_steps, section.total_warmup_steps) == (60, 6)


# ---------------------------------------------------------------- under a later version of pion

TODAY = digest_job(tiny_job())
KEY = "checkpoints/pretrain/5-1"
FORKED = Head(
    checkpoints=(CheckpointEntry("pretrain", 5, 1, TODAY.stages["pretrain"], KEY, 0.0, 1, ""),),
    forked=KEY,
)


@pytest.fixture
def later(monkeypatch):
    later_version.install(monkeypatch)


@pytest.mark.parametrize(
    ("change", "raised", "forked"),
    [
        ({"pretrain__steps": 40}, True, True),
        ({"pretrain__steps": 40, "pretrain__z_loss": 0.0}, True, True),
        ({"pretrain__steps": 40, "pretrain__z_loss": 0.1}, False, True),  # of the schedule
        ({"pretrain__steps": 40, "pretrain__teacher": None}, False, False),
        ({"pretrain__steps": 40, "model__gate": True}, False, False),
        ({"pretrain__steps": 40, "data__shuffle": "shards"}, False, False),
    ],
)
def test_raised_steps_and_forks_read_an_omitted_field_as_its_value_of_before(
    change, raised, forked, later
):
    job = LaterJob.model_validate(tiny_dict(**change))
    stage = changed(job, plan_stages(job, digest_job(job), FORKED), TODAY)
    assert stage.steps_may_be_raised(FORKED) is raised
    assert stage.fork_may_continue(FORKED) is forked


def test_a_refusal_shows_what_the_old_run_computed(later):
    job = LaterJob.model_validate(tiny_dict(pretrain__teacher=None, model__gate=True))
    plans = plan_stages(job, digest_job(job), FORKED)
    text = changed(job, plans, TODAY).refusal(plans, "job.yaml")
    assert 'pretrain.teacher: "none" → (not set)' in text
    assert "model.gate: false → true" in text


# ---------------------------------------------------------------- phases with mixes

WEB, CODE, QA = (
    {"kind": "text", "path": f"{name}.txt", "name": name} for name in ("web", "code", "qa")
)
BEFORE = [{"until": 6, "mix": {"web": 3, "code": 1}}, {"mix": {"web": 1}}]


def in_phases(phases, sources=(WEB, CODE), **changes):
    changes = {"tokenizer": {"file": "t.json"}, "model__vocab_size": 300} | changes
    data = {"seq_len": 32, "sources": list(sources)}
    return tiny_job(data=data, pretrain__phases=phases, pretrain__steps=20, **changes)


@pytest.mark.parametrize(
    ("step", "after", "sources", "changes", "may"),
    [
        (6, [BEFORE[0], {"mix": {"code": 1}}], (WEB, CODE), {}, True),
        (6, [BEFORE[0], {"mix": {"web": 1, "qa": "2x"}}], (WEB, CODE, QA), {}, True),
        (6, [BEFORE[0], {"mix": {"web": 1}, "order": 1}], (QA, WEB, CODE), {}, True),
        (6, [BEFORE[0], {"until": 9}, BEFORE[1]], (WEB, CODE), {}, True),
        (6, [BEFORE[0], {"mix": {"web": 1}, "rates": {"matrix": 0.5}}], (WEB, CODE), {}, True),
        (6, BEFORE, (WEB, CODE), {"pretrain__lr": 2e-3}, True),
        (6, [{"until": 7, "mix": {"web": 3, "code": 1}}, BEFORE[1]], (WEB, CODE), {}, False),
        (6, [{"until": 6, "mix": {"web": 3, "code": 2}}, BEFORE[1]], (WEB, CODE), {}, False),
        (7, [BEFORE[0], {"mix": {"code": 1}}], (WEB, CODE), {}, False),
        (6, BEFORE, (WEB | {"split": "paragraph"}, CODE), {}, False),
        (6, BEFORE, (WEB, CODE, QA), {"data__held_out": 0.3}, False),
        (6, BEFORE, (WEB, CODE), {"seed": 5}, False),
    ],
)  # fmt: skip
def test_a_fork_may_change_phases_that_have_not_begun_and_add_sources(
    step, after, sources, changes, may
):
    old = digest_job(in_phases(BEFORE))
    (entry,) = saved_at(in_phases(BEFORE), "pretrain", step).checkpoints
    head = Head(checkpoints=(entry,), forked=entry.key)
    changes = dict(changes)
    job = in_phases(after, sources, **{k: v for k, v in changes.items() if "data" not in k})
    if "data__held_out" in changes:
        job.data.held_out = changes["data__held_out"]
    plans = plan_stages(job, digest_job(job), head)
    if first_stale(plans) is None:
        assert may
        return
    assert changed(job, plans, old).fork_may_continue(head) is may


def test_a_phase_that_has_begun_is_named_with_the_step_to_fork_at():
    old = digest_job(in_phases(BEFORE))
    (entry,) = saved_at(in_phases(BEFORE), "pretrain", 9).checkpoints
    job = in_phases([BEFORE[0], {"mix": {"code": 1}}])
    plans = plan_stages(job, digest_job(job), Head(checkpoints=(entry,)))
    text = changed(job, plans, old).refusal(plans, "job.yaml")
    assert 'pretrain.phases.1.mix: {"web": 1.0} → {"code": 1.0}' in text
    assert "Step 9 is trained, and phase 1 began after step 6" in text
    assert "or fork at step 6 or before" in text


def test_a_phase_has_begun_when_its_rows_were_read_although_a_batch_was_left_out():
    before, after = in_phases(BEFORE), in_phases([BEFORE[0], {"mix": {"web": 1}, "rope_theta": 9}])
    old, size = digest_job(before), before.pretrain.global_batch
    digest = old.stages["pretrain"]
    for step, first, may in ((6, 6, True), (5, 2, True), (6, 2, False)):
        spike = SkippedRows(first * size, (first + 1) * size, 7, 1, digest, "a spike", 0.0)
        (entry,) = saved_at(before, "pretrain", step).checkpoints
        head = Head(checkpoints=(entry,), forked=entry.key, skipped={"pretrain": (spike,)})
        plans = plan_stages(after, digest_job(after), head)
        found = changed(after, plans, old)
        assert found.fork_may_continue(head) is may
    assert "phase 1 began after step 5" in found.refusal(plans, "job.yaml")


@pytest.mark.parametrize(
    ("phases", "may"),
    [
        (BEFORE, True),
        ([{"until": "decay", "mix": {"web": 1}}, {"mix": {"code": 1}}], False),
        ([{"until": 6, "mix": {"web": 1}}, {"mix": {"web": 1, "code": "0.5x"}}], False),
        ([{"until": 0.5, "mix": {"web": 1}}, {"mix": {"code": 1}}], False),
        ([{"until": "decay", "rates": {"matrix": 1}}, {}], True),
    ],
)
def test_steps_can_be_raised_only_where_no_border_and_no_pass_follows_from_them(phases, may):
    old = digest_job(in_phases(phases))
    head = saved_at(in_phases(phases), "pretrain", 5)
    job = in_phases(phases, pretrain__warmup_steps=2)
    job.pretrain.steps = 40
    plans = plan_stages(job, digest_job(job), head)
    assert changed(job, plans, old).steps_may_be_raised(head) is may
