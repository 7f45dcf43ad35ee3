"""A spot rental that waits for one region or one type of GPU is warned about, and nothing else."""

import pytest
import yaml

from pipeline.job.file import load_job
from pipeline.rent.plan.what_fits import narrow_spot
from pipeline.rent.sky_yaml import read_sky_yaml
from tests.paths import JOBS, RENTALS
from tests.support.sky_catalog import Price

SPOT = "accelerators: A40:1\nuse_spot: true"
ZONE = "infra: runpod/CA/CA-MTL-1, use_spot: true"
IN_ONE_ZONE = f"any_of: [{{accelerators: A40:1, {ZONE}}}, {{accelerators: L4:1, {ZONE}}}]"
ONE_GPU, ONE_PLACE = "every machine is a spot A40", "every machine is spot in RunPod/CA/CA-MTL-1"


def warning(on, *overrides):
    sky_yaml = read_sky_yaml(on)
    job = load_job(JOBS / "pion-small.yaml", overrides)
    return narrow_spot(job, sky_yaml, sky_yaml.candidates)


@pytest.mark.parametrize(
    ("resources", "overrides", "words", "field", "entries"),
    [
        # The cheapest others that the job fits on.
        (SPOT, [], ONE_GPU, "accelerators", ["RTXA4000:1", "RTXA4500:1", "RTXA5000:1"]),
        (
            SPOT,
            ["pretrain.global_batch=64", "hardware.micro_batch=32"],
            ONE_GPU,
            "accelerators",
            ["RTXA6000:1", "L40S:1"],
        ),
        (IN_ONE_ZONE, [], ONE_PLACE, "infra", ["runpod/CZ", "runpod/US"]),
    ],
)
def test_what_to_add_is_said_as_entries_that_skypilot_reads(
    sky_home, resources, overrides, words, field, entries
):
    if resources is IN_ONE_ZONE:
        regions = {"CA": "CA-MTL-1", "CZ": "EU-CZ-1", "US": "US-TX-1"}
        sky_home.sell({"A40": Price(0.20, 0.40), "L4": Price(0.30, 0.50)}, regions)
    text = warning(sky_home.yaml(resources), *overrides)
    assert words in text
    assert ("unproven" in text, "from 23 h to 0.5 h" in text) == (
        words is ONE_GPU,
        field == "infra",
    )
    added = yaml.safe_load(text.partition(":\n")[2])
    assert [entry[field] for entry in added] == entries
    assert all(entry.keys() == {"infra", "accelerators", "use_spot"} for entry in added)
    mine = yaml.safe_load(resources)
    listed = yaml.safe_dump({"ordered": [*mine.get("any_of", [mine]), *added]})
    assert warning(sky_home.yaml(listed), *overrides) is None


@pytest.mark.parametrize(
    "resources",
    [
        "accelerators: A40:1",
        "accelerators: A40:1\nuse_spot: false",
        "ordered: [{accelerators: A40:1, use_spot: true}, {accelerators: L4:1, use_spot: true}]",
        "ordered: [{accelerators: A40:1, use_spot: true}, {accelerators: A40:1, use_spot: false}]",
        *(pytest.param(path, id=path.stem) for path in RENTALS),
    ],
)
def test_a_rental_that_does_not_wait_for_one_kind_of_spot_machine_is_not_warned_about(
    sky_home, resources
):
    assert warning(resources if resources in RENTALS else sky_home.yaml(resources)) is None


def test_without_a_price_list_the_warning_has_no_entries(sky_home):
    on = sky_home.yaml(SPOT)
    read_sky_yaml(on)
    sky_home.lose_catalog()
    end = f"Add entries to the list `ordered:` under `resources:` in {on}."
    assert warning(on).endswith(end)
