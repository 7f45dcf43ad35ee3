"""`pion plan --dollars N`: what it prints, its JSON, its next command, and what it refuses."""

import json
import re
import shlex
from pathlib import Path

import pytest

from pion.bench.card import shipped_results
from pion.errors import BadInput
from pipeline.job.file import load_job
from pipeline.rent.plan.command import show_dollars
from pipeline.rent.plan.dollars import Asked, Money
from pipeline.rent.plan.estimate import estimate
from pipeline.rent.plan.prices import Offer
from tests.paths import JOBS, REPOSITORY
from tests.pipeline.rent.plan.test_prices import also_by_four
from tests.support.sky_catalog import Price

SMALL = str(JOBS / "pion-small.yaml")
CARDS = {"A40": Price(0.2, 0.4), "RTXA4000": Price(None, 0.25)}


@pytest.fixture(autouse=True)
def market(sky_home, monkeypatch):
    """Two cards on the market, and the jobs of this checkout."""
    sky_home.sell(CARDS)
    monkeypatch.chdir(REPOSITORY)


@pytest.fixture
def store(tmp_path):
    return str(tmp_path / "runs")


def asked_of(store, dollars=20.0, **more):
    overrides = [f"store={store}", *more.pop("job_overrides", ())]
    return Asked(more.pop("job", SMALL), overrides, Money(dollars, more.pop("hours", None)), **more)


def lines_of(asked, capsys):
    assert show_dollars(asked, as_json=False) == 0
    return capsys.readouterr().out.splitlines()


def json_of(asked, capsys):
    assert show_dollars(asked, as_json=True) == 0
    return json.loads(capsys.readouterr().out)


def test_without_a_job_it_says_what_to_run(store, capsys):
    lines = lines_of(asked_of(store, job=None), capsys)
    assert len(lines) <= 12
    assert lines[0] == "What to train for $20.00. The best cards:"
    names = ["GPU", "way", "$/h", "model", "tokens", "a", "parameter", "tokens/s", "time", "$"]
    assert lines[1].split() == names
    assert lines[2].startswith("A40      spot")
    text = "\n".join(lines)
    assert "the largest model that gets 10 tokens for each parameter" in text
    assert "estimated: 15% MFU assumed" in text
    assert " in bf16; a laptop" in text
    assert lines[-1].startswith("  pion launch jobs/pion2-max-")


@pytest.mark.soak
def test_the_example_in_the_document_is_what_the_program_prints(
    sky_home, tmp_path, capsys, monkeypatch
):
    document = (REPOSITORY / "docs" / "renting.md").read_text()
    found = re.search(
        r"`(prices: \{.*?)`\..*?\$ pion plan my\.yaml --dollars 20\n(.*?)```", document, re.S
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("pipeline.rent.plan.speeds.shipped_results", shipped_results)
    sky_home.lose_catalog()
    job = (JOBS / "pion2-max-small.yaml").read_text()
    named = re.sub(r"(?m)^name: .*$", "name: my", job)
    Path("my.yaml").write_text(f"{named}\n{found[1].replace(chr(10), ' ')}\n")
    assert show_dollars(Asked("my.yaml", [], Money(20)), as_json=False) == 0
    assert capsys.readouterr().out.splitlines() == found[2].splitlines()


def test_the_command_trains_what_was_said_within_the_money(store, capsys):
    found = json_of(asked_of(store), capsys)
    pion, launch, path, on, sky, *overrides = shlex.split(found["command"])
    assert (pion, launch, path, on, sky) == ("pion", "launch", SMALL, "--on", "sky/mine.yaml")
    assert "store=s3://my-bucket/runs" in overrides
    job = load_job(path, overrides)
    assert job.budget.dollars == 20
    option = found["options"][0]
    assert job.model.preset == option["chosen"]["model"] == "pion-base"
    assert job.name == "pion-base-20-dollars"
    fields = {name: option[name] for name in Offer.__dataclass_fields__}
    again = estimate(job, Offer(**fields))
    assert again.dollars == pytest.approx(option["chosen"]["dollars"])
    assert again.dollars <= 18
    pretrain = job.section("pretrain")
    assert option["chosen"]["tokens"] == pretrain.total_steps * pretrain.global_batch * 2048


def test_the_file_to_rent_with_rents_the_recommended_card(store, sky_home, capsys):
    text = "\n".join(lines_of(asked_of(store), capsys))
    assert (
        "Next, copy sky/runpod-spot.yaml to sky/mine.yaml with infra: runpod, accelerators: A40:1, "
        "use_spot: true in place of its machines, then:"
    ) in text
    on_demand = json_of(asked_of(store, gpus=["RTXA4000"]), capsys)
    assert "--on sky/runpod-a4000.yaml" in on_demand["command"]
    mine = str(sky_home.yaml("accelerators: A40:1\nuse_spot: true"))
    assert f"--on {mine} " in json_of(asked_of(store, on=mine), capsys)["command"]


def test_machines_with_several_cards_are_compared_too(store, sky_home, capsys):
    also_by_four(sky_home, "A40", Price(0.8, 1.6))
    asked = asked_of(store, 20, gpus=["A40"])
    lines = lines_of(asked, capsys)
    assert len(lines) <= 12
    assert [line.split()[0] for line in lines[2:4]] == ["A40", "A40"]  # spot and on demand
    counts = [(o["count"], o["use_spot"]) for o in json_of(asked, capsys)["options"]]
    assert sorted(counts) == [(1, False), (1, True), (4, False), (4, True)]
    in_time = json_of(asked_of(store, 20, gpus=["A40"], hours=24), capsys)
    first = in_time["options"][0]
    assert (first["count"], first["use_spot"], first["chosen"]["sharded"]) == (4, True, False)
    asked = asked_of(store, 20, gpus=["A40"], job_overrides=["hardware.workers=1"])
    assert {o["count"] for o in json_of(asked, capsys)["options"]} == {1}


@pytest.mark.parametrize("value", [0.0, -5.0, float("nan"), float("inf"), 1e12])
def test_numbers_that_are_no_money_are_refused(store, value):
    with pytest.raises(BadInput, match=r"--dollars .*: give a number above 0"):
        show_dollars(asked_of(store, value), as_json=False)
    with pytest.raises(BadInput, match=r"--hours .*: give a number above 0"):
        show_dollars(asked_of(store, hours=value), as_json=False)


def test_without_a_catalog_it_says_how_to_give_prices_which_do_without_a_job(
    store, sky_home, capsys
):
    sky_home.lose_catalog()
    with pytest.raises(BadInput, match="no machine with a GPU has a price here") as refused:
        show_dollars(asked_of(store), as_json=False)
    assert "prices={A40: 0.4}" in str(refused.value)
    asked = asked_of(store, job=None, job_overrides=["prices={A40: 0.4}"])
    assert lines_of(asked, capsys)[2].startswith("A40 demand 0.40")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["plan", SMALL, "--hours", "3"], "--hours is for `pion plan --dollars N`"),
        (["plan", SMALL, "--ladder", "a"], "`pion plan --ladder` is gone: leave the option out."),
        (["plan"], "name a JOB, or say how much money there is"),
        (["plan", "--dollars", "twenty"], "--dollars: invalid float value: 'twenty'"),
        (["plan", "jobs/no-such.yaml", "--dollars", "20"], "jobs/no-such.yaml"),
    ],
)
def test_mistakes_on_the_command_line_get_one_message(pion, arguments, said):
    code, out, err = pion(*arguments)
    assert (code, out) == (2, "")
    assert said in err
    assert "Traceback" not in err
    assert err.count("error: ") == 1


def test_the_command_line_needs_no_job(pion, store):
    code, out, _ = pion("plan", "--dollars", "20", f"store={store}", "--gpu", "A40", "--json")
    assert (code, {option["gpu"] for option in json.loads(out)["options"]}) == (0, {"A40"})
