"""A spot rental that waits for one region or one type of GPU is warned about, and nothing else."""

import pytest
import yaml

from pipeline.job.file import load_job
from pipeline.rent.plan.what_fits import narrow_spot
from pipeline.rent.sky_yaml import read_sky_yaml
from tests.paths import JOBS, RENTALS
from tests.support.sky_catalog import Price

REGIONS = {"CA": "CA-MTL-1", "CZ": "EU-CZ-1", "US": "US-TX-1"}


def warning(on, *overrides):
    sky_yaml = read_sky_yaml(on)
    job = load_job(JOBS / "pion-small.yaml", overrides)
    return narrow_spot(job, sky_yaml, sky_yaml.candidates)


def entries(words):
    """Return what a warning tells the user to add, as YAML reads it."""
    return yaml.safe_load(words.partition(":\n")[2])


def test_one_type_of_gpu_is_told_the_cheapest_others_that_the_job_fits_on(sky_home):
    on = sky_home.yaml("accelerators: A40:1\nuse_spot: true")
    words = warning(on)
    assert "every machine is a spot A40" in words
    assert "unproven" in words
    assert "AWS" not in words
    assert entries(words) == [
        {"infra": "runpod", "accelerators": f"{gpu}:1", "use_spot": True}
        for gpu in ("RTXA4000", "RTXA4500", "RTXA5000")
    ]


def test_a_gpu_that_is_too_small_is_not_suggested(sky_home):
    on = sky_home.yaml("accelerators: A40:1\nuse_spot: true")
    larger = entries(warning(on, "pretrain.global_batch=64", "hardware.micro_batch=32"))
    assert [entry["accelerators"] for entry in larger] == ["RTXA6000:1", "L40S:1"]


def test_one_zone_is_told_the_regions_that_have_the_machine(sky_home):
    sky_home.sell({"A40": Price(0.20, 0.40), "L4": Price(0.30, 0.50)}, REGIONS)
    zone = "infra: runpod/CA/CA-MTL-1, use_spot: true"
    on = sky_home.yaml(f"any_of: [{{accelerators: A40:1, {zone}}}, {{accelerators: L4:1, {zone}}}]")
    words = warning(on)
    assert "every machine is spot in RunPod/CA/CA-MTL-1" in words
    assert "from 23 h to 0.5 h" in words
    assert "unproven" not in words
    assert [entry["infra"] for entry in entries(words)] == ["runpod/CZ", "runpod/US"]


def test_skypilot_reads_the_list_with_the_suggested_entries(sky_home):
    one = "{accelerators: A40:1, use_spot: true}"
    found = entries(warning(sky_home.yaml(f"ordered: [{one}]")))
    listed = yaml.safe_dump({"ordered": [yaml.safe_load(one), *found]})
    assert warning(sky_home.yaml(listed)) is None


@pytest.mark.parametrize(
    "resources",
    [
        "accelerators: A40:1",
        "accelerators: A40:1\nuse_spot: false",
        "ordered: [{accelerators: A40:1, use_spot: true}, {accelerators: L4:1, use_spot: true}]",
        "ordered: [{accelerators: A40:1, use_spot: true}, {accelerators: A40:1, use_spot: false}]",
    ],
)
def test_a_rental_that_does_not_wait_for_one_kind_of_spot_machine_is_not_warned_about(
    sky_home, resources
):
    assert warning(sky_home.yaml(resources)) is None


@pytest.mark.parametrize("path", RENTALS, ids=lambda path: path.stem)
def test_no_rental_of_ours_is_warned_about(sky_home, path):
    assert warning(path) is None


def test_without_a_price_list_the_warning_has_no_entries(sky_home):
    on = sky_home.yaml("accelerators: A40:1\nuse_spot: true")
    read_sky_yaml(on)
    sky_home.lose_catalog()
    words = warning(on)
    assert words.endswith(f"Add entries to the list `ordered:` under `resources:` in {on}.")
