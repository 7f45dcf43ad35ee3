"""The numbers of a replay: given, measured by the run, or assumed, with their origin."""

from __future__ import annotations

import argparse
import math
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from pion.errors import BadInput
from pipeline.job.file import load_job
from pipeline.rent.replay.command import show_replay
from pipeline.rent.replay.numbers import job_numbers
from pipeline.rent.replay.options import HELP, WORDS, Given, Number, add_options
from pipeline.state.claim import claim_run
from pipeline.state.owner import Owner
from pipeline.state.rows.metrics import EventLog
from pipeline.state.run_state import RunState
from pipeline.state.stores import FileStore
from tests.paths import JOBS
from tests.pipeline.rent.conftest import SkyHome
from tests.pipeline.rent.plan.test_prices import also_by_four
from tests.pipeline.rent.replay.test_command import GIVEN, SPOT, write_job
from tests.support import sky_catalog
from tests.support.bench_results import SOURCE, keep, results, save_row, train_row
from tests.support.light_run import light_run


def store_of(job: str) -> FileStore:
    return FileStore(Path(job).parent / "store")


def numbers(job: str, given: Given | None = None, *overrides: str) -> Any:
    return job_numbers(load_job(job, overrides), given or Given())


def add_events(job: str, *events: dict[str, Any]) -> None:
    """Let another process claim the run, report these events, and release the run."""
    run = RunState(store_of(job), "demo")
    claim = claim_run(run, Owner.me())
    log = EventLog(run.store, run.name, claim.epoch)
    for event in events:
        log.append(**event)
    log.flush()
    claim.release()


def add_event(job: str, epoch: int, kind: str, **fields: Any) -> None:
    """Add an event under an earlier epoch. `light_run` last trained under epoch 2."""
    log = EventLog(store_of(job), "demo", epoch)
    log.append(kind, **fields)
    log.flush()


def phase(name: str, seconds: float) -> dict[str, Any]:
    return {"kind": "phase", "name": name, "seconds": seconds}


def test_without_any_number_it_is_refused_with_the_options_to_pass(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="there is no run demo in") as refused:
        show_replay(write_job(tmp_path), [], traces=[SPOT])
    assert "--step-seconds" in str(refused.value)
    assert "--gpu" in str(refused.value)


def test_a_run_that_has_trained_gives_its_own_speed(tmp_path: Path) -> None:
    job = write_job(tmp_path)
    light_run(store_of(job))  # 9 tokens per second
    steps = numbers(job).steps
    assert steps["pretrain"].value == pytest.approx(4 * 32 / 9)
    assert steps["sft"].value == pytest.approx(4 * 96 / 9)
    assert steps["pretrain"].origin == "measured: 10 steps of pretrain on CPU"


def test_what_is_given_wins_over_what_was_measured(tmp_path: Path) -> None:
    job = write_job(tmp_path)
    light_run(store_of(job))
    assert numbers(job, Given(step_seconds=1.0)).steps["pretrain"] == Number(1.0, "--step-seconds")


def test_a_run_of_another_model_measured_nothing(tmp_path: Path) -> None:
    job = write_job(tmp_path)
    light_run(store_of(job))
    with pytest.raises(BadInput, match="run demo trained another model"):
        numbers(job, None, "model.d_ff=96")


def test_a_run_that_can_t_be_read_is_said_to_be_so(tmp_path: Path) -> None:
    job = write_job(tmp_path)
    light_run(store_of(job))
    (Path(job).parent / "store/demo/HEAD.json").write_text("{")
    with pytest.raises(BadInput, match=r"can't be read: .*HEAD\.json is damaged"):
        numbers(job)
    assert numbers(job, GIVEN).boot.value == 50  # not needed if all numbers are given


def test_starts_are_measured_by_phase_without_their_first_step(tmp_path: Path) -> None:
    job = write_job(tmp_path)
    light_run(store_of(job))
    for extra in (0.0, 2.0, 40.0):
        add_events(
            job,
            phase("Ray and workers", 20 + extra),
            phase("pretrain restored", 3.0),
            phase("first step", 60 + extra),
        )
    for unusual in ("prepare", "waited to own the run"):
        add_events(job, phase(unusual, 500.0), phase("first step", 520.0))
    found = numbers(job)
    assert found.restore == Number(3.0, "measured: median of 3 starts")
    assert found.boot.value == pytest.approx(30 + 62 - 3 - 4 * 32 / 9)
    assert "3 starts on your own machines, plus 30 s assumed for booting" in found.boot.origin
    assert "Ray and workers 22.0 s" in found.boot.origin
    add_events(job, phase("paid to first step", 90.0), phase("first step", 50.0))
    on_a_rental = numbers(job).boot
    assert on_a_rental.value == pytest.approx(90 - 4 * 32 / 9)
    assert on_a_rental.origin.startswith("measured: median of 1 start (")


def test_what_saves_cost_is_measured_or_follows_from_their_size(tmp_path: Path) -> None:
    job = write_job(tmp_path)
    run = light_run(store_of(job))
    head = run.read()
    assert head is not None
    size = head.checkpoints[0].bytes
    slow = numbers(job, Given(upload_mb_per_second=0.001)).write
    assert slow.value == pytest.approx(size / 1000, rel=1e-3)
    assert slow.origin.startswith("--upload-mb-per-second")
    for stall in (0.2, 0.3, 7.0):
        add_events(job, {"kind": "saved", "stall": stall, "write": 40 * stall})
    found = numbers(job)
    assert found.stall == Number(0.3, "measured: median of 3 attempts")
    assert found.write.value == pytest.approx(12.0)


def test_before_anything_is_saved_its_size_follows_from_the_model(tmp_path: Path) -> None:
    job = load_job(JOBS / "pion-small.yaml", [f"store={tmp_path}"])
    found = job_numbers(job, Given(step_seconds=4.3))
    # 1,235,674,063 bytes were measured for this model (benchmarks/results/checkpoint.json).
    assert found.stall.value == pytest.approx(1.2357e9 / 4e9, rel=1e-3)
    assert "1.24 GB from the parameter count, copied at 4 GB/s" in found.stall.origin
    assert "uploaded at 100 MB/s" in found.write.origin


# A step of 128 tokens takes the card longer than its host.
LARGE = {"d_model": 4096, "n_layers": 2, "n_heads": 8, "n_kv_heads": 8, "d_ff": 32_768}


def test_a_gpu_nobody_has_measured_is_estimated_and_says_so(
    tmp_path: Path, sky_home: SkyHome
) -> None:
    steps = numbers(write_job(tmp_path, model=LARGE), Given(gpu="A40")).steps
    assert steps["sft"].value > steps["pretrain"].value > 0
    assert "A40: estimated: 15% MFU assumed" in steps["pretrain"].origin


def test_a_gpu_that_was_benched_gives_its_speed_and_the_time_of_a_save(
    tmp_path: Path, sky_home: SkyHome
) -> None:
    path = keep(tmp_path / "bench", results(train_row(), save_row()))
    job = write_job(tmp_path, model=LARGE)
    found = numbers(job, Given(gpu="A40", bench=(str(path),)))
    assert "A40: estimated: 25% MFU, as pion-small reached in" in found.steps["pretrain"].origin
    assert SOURCE in found.steps["pretrain"].origin
    assert f"copied at 8 GB/s, which {SOURCE} measured" in found.stall.origin
    assert found.stall.origin.startswith("estimated: ")


def test_a_gpu_nobody_knows_is_refused_with_the_closest_name(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="did you mean 'A40'"):
        numbers(write_job(tmp_path), Given(gpu="A04"))


# ---------------------------------------------------------------- prices

BOTH = {"A40": {"spot": 0.2, "on_demand": 0.4}, "L40S": 0.9}


def test_prices_are_those_of_the_job_for_its_gpu_and_all_its_workers(tmp_path: Path) -> None:
    job = write_job(tmp_path, prices=BOTH, hardware={"workers": 2})
    found = numbers(job, Given(gpu="A40", step_seconds=1.0))
    assert found.spot == Number(0.4, "the job's prices.A40.spot × 2 workers")
    assert found.on_demand is not None
    assert found.on_demand.value == 0.8


def test_the_only_price_needs_no_name_and_an_option_wins(tmp_path: Path) -> None:
    job = write_job(tmp_path, prices={"L40S": 0.9})
    found = numbers(job, Given(step_seconds=1.0, price=0.5))
    assert found.spot == Number(0.5, "--price")
    assert found.on_demand == Number(0.9, "the job's prices.L40S.on_demand")


def test_the_gpu_that_was_rented_last_is_the_one_that_is_paid_for(tmp_path: Path) -> None:
    job = write_job(tmp_path, prices=BOTH)
    light_run(store_of(job))
    assert numbers(job).spot is None  # two prices, and the GPU is unknown
    add_events(job, {"kind": "machine", "id": "m", "gpu": "L40S", "phases": {}})
    assert numbers(job).spot == Number(0.9, "the job's prices.L40S.spot")


def test_a_gpu_without_a_price_is_refused_where_others_have_one(tmp_path: Path) -> None:
    job = write_job(tmp_path, prices=BOTH)
    with pytest.raises(BadInput, match="only for A40, L40S"):
        numbers(job, Given(gpu="A100", step_seconds=1.0))
    both = Given(gpu="A100", step_seconds=1.0, price=1.0, on_demand_price=2.0)
    assert numbers(job, both).spot == Number(1.0, "--price")


def test_a_measured_speed_costs_all_gpus_that_it_was_measured_on(tmp_path: Path) -> None:
    job = write_job(tmp_path, prices=BOTH)
    light_run(store_of(job))
    add_event(job, 1, "machine", id="m", gpu="L40S", count=4, nodes=2)
    add_events(
        job, {"kind": "machine", "id": "m", "gpu": "A40", "count": 1, "phases": {}}
    )  # never trained
    found = numbers(job)
    assert found.spot == Number(
        pytest.approx(7.2), "the job's prices.L40S.spot × the 8 GPUs of the measurement"
    )
    assert found.on_demand is not None
    assert found.on_demand.value == pytest.approx(7.2)
    assert numbers(job, Given(gpu="L40S", step_seconds=1.0)).spot.value == 0.9


def test_a_speed_measured_at_home_costs_a_gpu_for_each_worker(tmp_path: Path) -> None:
    job = write_job(tmp_path, prices={"L40S": 0.9})
    light_run(store_of(job))
    add_event(job, 2, "process", host="desk")
    add_event(job, 2, "training", stage="sft", device="NVIDIA L40S", workers=4)
    assert numbers(job).spot.value == pytest.approx(3.6)


def test_without_prices_of_the_job_the_catalog_says_them(tmp_path: Path, sky_home: SkyHome) -> None:
    job = write_job(tmp_path)
    found = numbers(job, Given(gpu="A40", price=0.1))
    assert found.spot == Number(0.1, "--price")
    assert found.on_demand == Number(0.4, "SkyPilot's catalog: 1 × A40 on demand on RunPod/CA")
    light_run(store_of(job))
    add_event(job, 1, "machine", id="m", gpu="A40", count=4, nodes=2)
    assert numbers(job).spot is None  # nobody offers four
    also_by_four(sky_home, "A40", sky_catalog.Price(0.7, 1.5))
    assert numbers(job).spot == Number(
        1.4, "SkyPilot's catalog: 4 × A40 spot on RunPod/CA × 2 nodes"
    )


def test_without_a_catalog_either_no_price_is_known(tmp_path: Path, sky_home: SkyHome) -> None:
    sky_home.lose_catalog()
    found = numbers(write_job(tmp_path), Given(gpu="A40"))
    assert (found.spot, found.on_demand) == (None, None)


def test_skypilot_is_not_asked_where_no_gpu_is_known_or_all_prices_are_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("SkyPilot was asked")

    monkeypatch.setattr("pipeline.rent.plan.prices.market", fail)
    job = write_job(tmp_path)
    assert numbers(job, Given(step_seconds=1.0)).spot is None
    given = Given(gpu="A40", step_seconds=1.0, price=0.2, on_demand_price=0.4)
    assert numbers(job, given).spot == Number(0.2, "--price")


@pytest.mark.parametrize("name", [name for name in HELP if name not in WORDS])
@pytest.mark.parametrize("value", [-1.0, math.nan, math.inf])
def test_an_invalid_amount_is_refused_and_its_option_named(
    tmp_path: Path, name: str, value: Any
) -> None:
    with pytest.raises(BadInput, match=f"--{name.replace('_', '-')} is {value:g}"):
        numbers(write_job(tmp_path), replace(Given(step_seconds=1.0), **{name: value}))


def test_every_number_has_an_option() -> None:
    parser = argparse.ArgumentParser()
    add_options(parser)
    given: dict[str, Any] = {**dict.fromkeys(HELP, 7.0), "gpu": "A40", "deadline": "42h"}
    words = [
        word for n, value in given.items() for word in (f"--{n.replace('_', '-')}", f"{value}")
    ]
    given["bench"] = ("a.json", "b.json")
    words += ["--bench", "a.json", "--bench", "b.json"]
    assert asdict(Given.of(parser.parse_args(words))) == given
    assert Given.of(parser.parse_args([])) == Given()


def test_a_step_takes_time(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="--step-seconds is 0; it must be above 0"):
        numbers(write_job(tmp_path), Given(step_seconds=0.0))
