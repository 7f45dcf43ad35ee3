"""What `pion check` says of each machine of a rental, and of the GPUs that have enough memory."""

import pytest

from pion.bench.card import shipped_results
from pion.config.model_config import ModelConfig
from pion.errors import BadInput
from pipeline.console.formats import duration
from pipeline.job.file import load_job
from pipeline.rent.check.machines import check_machines, check_memory
from pipeline.rent.check.rental import check_disk
from pipeline.rent.plan.estimate import estimate
from pipeline.rent.plan.prices import look_up
from pipeline.rent.plan.speeds import NOTHING_KNOWN, known_speeds
from pipeline.rent.sky_yaml import read_sky_yaml
from tests.paths import JOBS
from tests.pipeline.rent.check.checked_job import unknown
from tests.pipeline.rent.fine_tuning import read_fine_tuning
from tests.support.sky_catalog import Price

A4000, A40 = "1 × RTXA4000 on demand on RunPod", "1 × A40 on demand on RunPod"


@pytest.fixture
def a4000(sky_home, runpod_api):
    return read_sky_yaml(sky_home.yaml("accelerators: RTXA4000"))


@pytest.fixture
def either(sky_home, runpod_api):
    return read_sky_yaml(sky_home.yaml("any_of: [{accelerators: A40}, {accelerators: RTXA4000}]"))


def machines(folder, name, on, *overrides):
    job = read_fine_tuning(folder, name, *overrides)
    return {row.name: row for row in check_machines(job, on, force=False)}


def test_a_machine_says_what_each_way_to_fine_tune_needs(tmp_path, a4000):
    row = machines(tmp_path, "Qwen3-0.6B", a4000)[A4000]
    assert row.ok
    assert "sft in full: ✗ 14.4 GiB (1 row); recomputed: ✓ 12.9 GiB (8 rows); by LoRA" in row.words


def test_a_machine_that_is_left_out_says_that_lora_would_fit(tmp_path, either):
    rows = machines(tmp_path, "Qwen3-1.7B", either)
    assert rows[A40].ok
    unknown(rows[A4000], "pion launch skips this machine", "By LoRA, it fits on RTXA4000")


def test_a_machine_takes_as_long_as_pion_plan_says(tmp_path, sky_home, runpod_api, monkeypatch):
    """Also where only a card was measured, by `pion bench`."""
    monkeypatch.setattr("pipeline.rent.plan.speeds.shipped_results", shipped_results)
    sky_home.sell({"H100": Price(2.0, 3.0)})
    on = read_sky_yaml(sky_home.yaml("accelerators: H100"))
    row = machines(tmp_path, "Qwen3-0.6B", on, "sft.epochs=99")["1 × H100 on demand on RunPod"]
    job = read_fine_tuning(tmp_path, "Qwen3-0.6B", "sft.epochs=99")
    offer = look_up(on.candidates[0], 1, job.prices)
    guesses = [estimate(job, offer, known) for known in (known_speeds(job), NOTHING_KNOWN)]
    measured, assumed = (f"about {duration(3600 * guess.hours)}" for guess in guesses)
    assert measured != assumed
    assert measured in row.words


def test_the_disk_holds_the_checkpoints_of_what_is_trained(tmp_path, a4000):
    """The base is on the disk too: as it was downloaded, and as the run's store has it."""
    with pytest.raises(BadInput, match=r"61\.9 checkpoints .* 13\.8 model\.from"):
        check_disk(read_fine_tuning(tmp_path, "Qwen3-1.7B"), a4000)
    (row,) = check_disk(read_fine_tuning(tmp_path, "Qwen3-1.7B", "sft.lora.rank=16"), a4000)
    assert row.ok
    assert "0.6 checkpoints" in row.words


# ---------------------------------------------------------------- without a rental


def test_a_job_that_fits_everywhere_lists_the_smallest_gpus():
    (row,) = check_memory(load_job(JOBS / "tachyon-tiny.yaml"))
    assert row.ok
    assert row.words == "It fits on T4, RTXA4000, RTXA4500, A10, A10G, L4 and 22 more."


@pytest.mark.soak
def test_the_largest_gpu_that_is_too_small_is_named_with_what_it_lacks():
    (row,) = check_memory(load_job(JOBS / "tachyon-large.yaml"))
    assert row.ok
    assert row.words.startswith(
        "It fits on H200, H200-SXM, B200. RTXPRO6000-WK: the model does not fit"
    )
    assert "needs 113.3 GiB, and 85.4 of this machine's 94.9 GiB can be used" in row.words


def test_a_job_too_large_for_every_gpu_is_refused():
    larger = 2 * ModelConfig.preset("tachyon-large").n_layers
    (row,) = check_memory(load_job(JOBS / "tachyon-large.yaml", [f"model.n_layers={larger}"]))
    assert row.ok is False
    assert row.words.startswith("It fits on no GPU known here. B200: the model does not fit")
