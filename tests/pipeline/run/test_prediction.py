"""A run is predicted by its ladder when pretraining begins, and only then."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pion.errors import BadInput
from pion.model.params_and_flops import cost_of
from pipeline.job import Job
from pipeline.job.digest import digest_job
from pipeline.ladder.fit import Fit, fit
from pipeline.run.prediction import RunPrediction, predict
from pipeline.run.stage_plan import WorkLeft, plan_stages
from pipeline.state.head import CheckpointEntry, Head, StageRecord
from pipeline.state.rows.metrics import read_events
from pipeline.state.run_state import RunState
from pipeline.state.stores import FileStore
from tests.pipeline.ladder.made_up import LAWS, keep_ladder, ladder
from tests.support.jobs import tiny_job
from tests.support.whole_runs import finish, write_job

# Of the tiny job: 20 steps of 4 rows of 32 tokens.
TOKENS = 20 * 4 * 32


@pytest.fixture(scope="module")
def fitted() -> Fit:
    """A ladder whose runs are about as long as the tiny job."""
    sizes, lengths = (10_000, 20_000, 40_000), (1000, 2000, 4000)
    return fit(ladder(LAWS[0], sizes=sizes, lengths=lengths))


@pytest.fixture
def store(tmp_path: Path, fitted: Fit) -> FileStore:
    store = FileStore(tmp_path / "runs")
    keep(store, fitted)
    return store


def keep(store: FileStore, fitted: Fit | None, **settings: Any) -> None:
    """Keep a ladder with the settings of the tiny job, but for those that are given."""
    inputs = digest_job(tiny_job()).inputs
    own = {**inputs["data.pretrain"], **inputs["pretrain"], **settings}
    keep_ladder(store, fitted, {k: v for k, v in own.items() if not k.startswith("input.")})


def job_of(**changes: Any) -> Job:
    return tiny_job(**{"evaluate__ladder": "small", **changes})


def left_of(job: Job, head: Head | None = None, redo: str | None = None) -> WorkLeft:
    digests = digest_job(job)
    return WorkLeft(digests, head, plan_stages(job, digests, head), redo, raised=None)


def predicted(job: Job, store: FileStore) -> RunPrediction:
    found = predict(job, store, left_of(job))
    assert found is not None
    return found


def test_it_is_for_the_model_and_the_tokens_of_the_run(store: FileStore, fitted: Fit) -> None:
    job = job_of()
    found = predicted(job, store)
    macs_per_token = cost_of(job.model_config_resolved()).macs_per_token
    said = fitted.predict(macs_per_token, TOKENS)
    assert (found.ladder, found.digest) == ("small", digest_job(job).stages["pretrain"])
    assert (found.macs_per_token, found.tokens) == (macs_per_token, TOKENS)
    assert (found.bits_per_byte, found.low, found.high) == (said.bits_per_byte, said.low, said.high)
    assert (round(found.trusted_times), found.other) == (100, ())


def test_beyond_the_trusted_range_there_is_no_number(store: FileStore) -> None:
    found = predicted(job_of(pretrain__steps=1_000_000), store)
    assert (found.bits_per_byte, found.low, found.high) == (None, None, None)
    assert found.times > found.trusted_times


def test_settings_of_the_text_that_the_ladder_had_otherwise_are_named(
    store: FileStore, fitted: Fit
) -> None:
    # The shape, the rates and the batch are what a ladder varies.
    keep(store, fitted, **{"pretrain.lr": 5.0, "model.d_model": 16, "data.seq_len": 64})
    assert predicted(job_of(), store).other == ("data.seq_len",)


@pytest.mark.parametrize("begun", ["finished", "with a checkpoint"])
def test_a_run_that_has_begun_is_not_predicted_and_needs_no_ladder(
    store: FileStore, begun: str
) -> None:
    job = job_of(evaluate__ladder="deleted")
    digest = digest_job(job).stages["pretrain"]
    entry = CheckpointEntry("pretrain", 5, 1, digest, "checkpoints/pretrain/5-1", 0.0, 9, "ab")
    head = Head().with_checkpoint(entry)
    if begun == "finished":
        head = Head().with_stage("pretrain", StageRecord(digest, 0.0))
    assert predict(job, store, left_of(job, head)) is None
    with pytest.raises(BadInput, match="no ladder 'deleted'"):
        predict(job, store, left_of(job, head, redo="pretrain"))


def test_a_run_that_continues_with_more_steps_is_predicted_for_all_of_them(
    store: FileStore,
) -> None:
    entry = CheckpointEntry("pretrain", 5, 1, "of fewer steps", "a", 0.0, 9, "ab")
    job = job_of(pretrain__steps=40)
    found = predict(job, store, left_of(job, Head().with_checkpoint(entry)))
    assert found is not None
    assert found.tokens == 2 * TOKENS


def test_a_start_that_only_prepares_predicts_nothing(store: FileStore) -> None:
    job = job_of()
    assert predict(job, store, left_of(job), until="prepare") is None


def test_a_job_without_a_ladder_predicts_nothing(store: FileStore) -> None:
    job = tiny_job()
    assert predict(job, store, left_of(job)) is None


def test_a_ladder_that_is_not_there_is_refused_with_the_ones_that_are(store: FileStore) -> None:
    job = job_of(evaluate__ladder="tall")
    with pytest.raises(BadInput) as refused:
        predict(job, store, left_of(job))
    words = str(refused.value)
    assert f"there is no ladder 'tall' in {store.url}, which has small. To make one: pion" in words
    assert words.endswith(
        "Nothing was started. Without evaluate.ladder, the run trains the same and predicts "
        "nothing."
    )


def test_a_ladder_without_a_fit_is_refused(store: FileStore) -> None:
    keep(store, None)
    with pytest.raises(BadInput, match=r"'small' in .* is not finished.* Without evaluate\.ladder"):
        predict(job_of(), store, left_of(job_of()))


def test_a_job_without_pretraining_from_random_weights_is_refused(store: FileStore) -> None:
    job = job_of(pretrain__init_from="other")
    with pytest.raises(BadInput, match=r"evaluate\.ladder: a ladder predicts pretraining"):
        predict(job, store, left_of(job))


def test_a_name_that_no_ladder_has_is_a_mistake_of_the_job_file() -> None:
    with pytest.raises(ValueError, match=r"evaluate\.ladder"):
        job_of(evaluate__ladder="../runs/demo")


def test_naming_a_ladder_changes_no_digest() -> None:
    assert digest_job(job_of()) == digest_job(tiny_job())


def test_a_real_run_records_the_prediction_before_its_first_step_and_shows_the_result(
    store: FileStore, tmp_path: Path
) -> None:
    job = write_job(tmp_path, sft=None, evaluate__ladder="small")
    output = " ".join(finish(job).split())
    assert "bits per byte (90 %: " in output
    run = RunState(store, "tiny")
    (said,) = (event for event in read_events(store, "tiny") if event["event"] == "predicted")
    trained = next(e for e in read_events(store, "tiny") if e["event"] == "training")
    assert said["at"] < trained["at"]
    words = f"{said['bits_per_byte']:.3f} bits per byte (90 %: {said['low']:.3f} to "
    assert f"predicted {words}" in output
    report = store.local_path(run.key("report.html")).read_text()
    assert f"Pretraining: predicted {words}" in report
    assert "by ladder small; reached " in report
    # A finished run needs no ladder.
    store.delete("_ladders/small.json")
    finish(job)
