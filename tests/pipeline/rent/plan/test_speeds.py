"""How fast a card is: past runs of the model, results of `pion bench`, or a share of its peak."""

import dataclasses
from pathlib import Path

import pytest

from pion.config.model_config import ModelConfig
from pion.errors import BadInput
from pion.model.params_and_flops import flops_per_token
from pion.train.hardware import gpu_flops
from pipeline.job.digest import model_inputs
from pipeline.job.file import load_job
from pipeline.rent.plan import speeds
from pipeline.rent.plan.command import show_plan
from pipeline.rent.plan.estimate import estimate
from pipeline.rent.plan.speeds import Known, PastSpeed, bench_results, past_speed_on, past_speeds
from pipeline.state.shared.speeds import keep_train_speed
from pipeline.state.stores import FileStore, open_store
from tests.paths import JOBS
from tests.pipeline.rent.plan.rows import rows_of
from tests.pipeline.rent.plan.test_estimate import offer
from tests.support.bench_results import A40, SOURCE, keep, results, train_row
from tests.support.jobs import tiny_job
from tests.support.many_runs import write_runs

MEASURED = f"measured by {SOURCE}"


def pretraining(found, *overrides, job="pion-small", gpu="A40", **more):
    """Return the estimate of pretraining on a GPU, with this result known."""
    loaded = load_job(JOBS / f"{job}.yaml", overrides)
    return estimate(loaded, offer(gpu), Known(more.pop("runs", ()), [found]), **more).stages[0]


# ---------------------------------------------------------------- which speed


@rows_of("speeds")
def test_a_speed_is_measured_or_estimated_from_what_was(row):
    of_row = dataclasses.replace(
        train_row(**row.get("measured", {})), verdict=row.get("verdict", "measured")
    )
    card = dataclasses.replace(A40, card=row.get("card", A40.card))
    stage = pretraining(results(of_row, card=card), *row.get("job", ()))
    assert stage.speed_from.startswith(row["from"])


def test_another_model_is_estimated_from_the_share_that_the_nearest_reached():
    found = results(train_row("pion-xl", mfu=0.4), train_row("pion-small", mfu=0.25))
    stage = pretraining(found, job="pion-base")
    flops = gpu_flops("A40", "bfloat16")
    per_token = flops_per_token(ModelConfig.preset("pion-base"), 2048)
    assert stage.tokens_per_second == pytest.approx(0.25 * flops / per_token)
    assert stage.speed_from == f"estimated: 25% MFU, as pion-small reached in {SOURCE}"
    again = pretraining(found, "hardware.recompute=true", job="pion-base")
    assert again.tokens_per_second == pytest.approx(6 / 8 * stage.tokens_per_second)


def test_lora_is_estimated_from_what_was_measured_with_all_weights():
    """With the share of the peak that all weights reached, for about 4/6 of their arithmetic.
    Conversations were not measured."""
    jobs = (load_job(JOBS / "pion-small.yaml", lora) for lora in ([], ["sft.lora.rank=16"]))
    known = Known((), [results(train_row())])
    whole, lora = (estimate(job, offer("A40"), known).stages[1] for job in jobs)
    assert lora.speed_from == whole.speed_from
    assert whole.speed_from.startswith("estimated: 25% MFU")
    assert 1.2 < lora.tokens_per_second / whole.tokens_per_second < 1.5


def test_eager_rows_are_for_jobs_that_are_not_compiled_and_runs_come_before_all_rows():
    found = results(train_row(), train_row(how="eager", tokens_per_second=30_000.0))
    assert pretraining(found, "hardware.compile=false").tokens_per_second == 30_000.0
    assert pretraining(found, "hardware.compile=true").tokens_per_second == 50_000.0
    assert pretraining(found).tokens_per_second == 50_000.0, "a GPU compiles by default"
    runs = [PastSpeed("mine", 0.0, "NVIDIA A40", 2048, 40_000.0)]
    stage = pretraining(found, runs=runs)
    assert (stage.tokens_per_second, stage.speed_from) == (40_000.0, "measured in run mine")


# ---------------------------------------------------------------- which files of `pion bench`


@pytest.fixture
def own(tmp_path, monkeypatch):
    """The folder of this user's results; no result ships with Pion."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(speeds, "shipped_results", list)
    return tmp_path / "cache" / "pion" / "bench"


def test_a_given_file_comes_before_the_users_and_the_users_before_pions(own, tmp_path, monkeypatch):
    dates = {"given": "2026-11-03", "own": "2026-11-02", "pion": "2026-11-01"}
    files = {
        name: keep(own if name == "own" else tmp_path / name, results(date=date))
        for name, date in dates.items()
    }
    monkeypatch.setattr(speeds, "shipped_results", lambda: [files["pion"]])
    assert [r.date for r in bench_results([str(files["given"])])] == list(dates.values())


def test_tiny_models_and_cpus_say_nothing_about_a_gpu(own):
    keep(own, results(train_row(), tiny=True))
    keep(own, results(card=dataclasses.replace(A40, card="CPU", capability=None)))
    assert bench_results([]) == []


def test_a_file_that_is_no_result_is_named(own, tmp_path):
    bad, wrong = tmp_path / "bad.json", r"bad\.json is no result of `pion bench`"
    with pytest.raises(BadInput, match=r"bad\.json can't be read"):
        bench_results([str(bad)])
    own.mkdir(parents=True)
    for path, files in ((bad, [str(bad)]), (own / "bad.json", [])):
        path.write_text('{"format": 1, "rows": []}')
        with pytest.raises(BadInput, match=wrong):
            bench_results(files)
        path.unlink()


def test_the_plan_says_which_result_its_speed_is_from(sky_home, tmp_path, capsys):
    path = keep(tmp_path, results(train_row()))
    job, store = str(JOBS / "pion-small.yaml"), f"store={tmp_path / 'runs'}"
    assert show_plan(job, [store], gpus=["A40"], as_json=False, bench=[str(path)]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert f"tokens/s {MEASURED}" in printed


# ---------------------------------------------------------------- past runs of the model


def train_somewhere(job, speed, device="NVIDIA A40", seq_len=32, *, lora=False):
    """Write to the job's store how fast a worker of a run trained."""
    found = PastSpeed(job.name, 1e9, device, seq_len, speed, lora)
    keep_train_speed(FileStore(Path(job.store)), model_inputs(job.model_config_resolved()), found)


def test_only_the_same_shape_row_length_and_kind_of_training_as_measured(tmp_path):
    job = tiny_job(store=str(tmp_path), sft__lora={"rank": 4})
    train_somewhere(job, 5000.0)
    train_somewhere(job, 9000.0, lora=True)
    runs = past_speeds(job)
    for gpu, seq_len, lora, reached in (
        ("A40", 32, False, 5000.0),
        ("NVIDIA A40", 32, True, 9000.0),
        ("A40", 64, False, None),
        ("RTXA4000", 32, False, None),
    ):
        found = past_speed_on(runs, gpu, seq_len, lora=lora)
        assert (found and found.tokens_per_second) == reached
    assert past_speeds(tiny_job(store=str(tmp_path), model__d_ff=64)) == []


def test_the_speed_of_the_newest_run_of_the_model_is_that_of_each_of_its_gpus(tmp_path):
    old, job = (tiny_job(store=str(tmp_path), name=name) for name in ("old", "new"))
    train_somewhere(old, 99.0)
    train_somewhere(job, 2500.0)
    again = tiny_job(store=str(tmp_path), name="again", pretrain__lr=5e-3)
    stage = estimate(again, offer("A40", count=4), Known(past_speeds(again))).stages[0]
    assert stage.tokens_per_second == pytest.approx(4 * 2500.0)
    assert (stage.measured, stage.speed_from) == (True, "measured in run new")


def test_a_record_or_a_store_that_can_not_be_read_says_nothing(tmp_path):
    job = tiny_job(store=str(tmp_path))
    train_somewhere(job, 99.0)
    (path,) = tmp_path.glob("_data/speeds/*/*.json")
    for content in (b"", b"{", b'{"format": 1}', path.read_bytes().replace(b"99.0", b"-99.0")):
        path.write_bytes(content)
        assert past_speeds(job) == []
    assert past_speeds(tiny_job(store=str(path))) == []


def test_a_plan_asks_the_same_of_a_store_whatever_lies_in_its_runs(sky_home, s3, proxy, capsys):
    job, counts = str(JOBS / "pion-small.yaml"), []
    for runs, objects in ((0, 0), (20, 3)):
        url = f"s3://{s3.bucket()}/runs"
        names = write_runs(open_store(url), runs, objects)
        proxy.requests.clear()
        assert show_plan(job, [f"store={url}"], gpus=["A40"], as_json=True) == 0
        assert not any(name in request for request in proxy.requests for name in names)
        counts.append(len(proxy.requests))
    assert counts[0] == counts[1] <= 10
