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
from pipeline.rent.plan.dollars import Money
from pipeline.rent.plan.estimate import estimate
from pipeline.rent.plan.prices import Offer
from pipeline.rent.plan.sizes import sizes_of
from tests.paths import JOBS, REPOSITORY
from tests.pipeline.rent.plan.rows import rows_of
from tests.pipeline.rent.plan.test_prices import also_by_four
from tests.support.sky_catalog import Price

SMALL = str(JOBS / "pion-small.yaml")


@pytest.fixture(autouse=True)
def market(sky_home, monkeypatch):
    """Two cards on the market, and the jobs of this checkout."""
    sky_home.sell({"A40": Price(0.2, 0.4), "RTXA4000": Price(None, 0.25)})
    monkeypatch.chdir(REPOSITORY)


@pytest.fixture
def plan(tmp_path, capsys):
    """What `pion plan --dollars` prints of jobs with an empty store: as JSON, or as lines."""

    def run(dollars=20.0, *overrides, job=SMALL, hours=None, as_json=True, **options):
        sizes = sizes_of(job, [f"store={tmp_path / 'runs'}", *overrides])
        assert show_dollars(sizes, Money(dollars, hours), as_json=as_json, **options) == 0
        printed = capsys.readouterr().out
        return json.loads(printed) if as_json else printed.splitlines()

    return run


def test_without_a_job_it_says_what_to_run(plan):
    lines = plan(job=None, as_json=False)
    assert len(lines) <= 12
    assert lines[0] == "What to train for $20.00. The best cards:"
    names = ["GPU", "way", "$/h", "model", "tokens", "a", "parameter", "tokens/s", "time", "$"]
    assert lines[1].split() == names
    assert lines[2].startswith("A40      spot")
    text = "\n".join(lines)
    for part in (
        "the largest model that gets 10 tokens for each parameter",
        "estimated: 15% MFU assumed",
        " in bf16; a laptop",
        "Next, copy sky/runpod-spot.yaml to sky/mine.yaml with infra: runpod, accelerators: A40:1, "
        "use_spot: true in place of its machines, then:\n  pion launch jobs/pion2-max-",
    ):
        assert part in text


@pytest.mark.soak
def test_the_example_in_the_document_is_what_the_program_prints(
    sky_home, tmp_path, capsys, monkeypatch
):
    document = (REPOSITORY / "docs" / "dollars.md").read_text()
    found = re.search(
        r"`(prices: \{.*?)`\..*?\$ pion plan my\.yaml --dollars 20\n(.*?)```", document, re.S
    )
    monkeypatch.chdir(tmp_path)
    Path("sky").mkdir()
    Path("sky/runpod-spot.yaml").touch()  # as in a checkout
    monkeypatch.setattr("pipeline.rent.plan.speeds.shipped_results", shipped_results)
    sky_home.lose_catalog()
    job = (JOBS / "pion2-max-small.yaml").read_text()
    named = re.sub(r"(?m)^name: .*$", "name: my", job)
    Path("my.yaml").write_text(f"{named}\n{found[1].replace(chr(10), ' ')}\n")
    assert show_dollars(sizes_of("my.yaml", []), Money(20), as_json=False) == 0
    assert capsys.readouterr().out.splitlines() == found[2].splitlines()


def test_the_command_trains_what_was_said_within_the_money(plan, sky_home):
    found = plan()
    pion, launch, path, on, sky, *overrides = shlex.split(found["command"])
    assert (pion, launch, path, on, sky) == ("pion", "launch", SMALL, "--on", "sky/mine.yaml")
    assert "store=s3://my-bucket/runs" in overrides
    job, option = load_job(path, overrides), found["options"][0]
    assert (job.budget.dollars, job.name) == (20, "pion-base-20-dollars")
    assert job.model.preset == option["chosen"]["model"] == "pion-base"
    again = estimate(job, Offer(**{name: option[name] for name in Offer.__dataclass_fields__}))
    assert again.dollars == pytest.approx(option["chosen"]["dollars"])
    assert again.dollars <= 18
    assert option["chosen"]["tokens"] == job.trained_tokens("pretrain")
    assert "--on sky/runpod-a4000.yaml" in plan(gpus=["RTXA4000"])["command"]
    mine = str(sky_home.yaml("accelerators: A40:1\nuse_spot: true"))
    assert f"--on {mine} " in plan(on=mine)["command"], "the file rents the recommended card"


def test_machines_with_several_cards_are_compared_too(plan, sky_home):
    also_by_four(sky_home, "A40", Price(0.8, 1.6))
    lines = plan(gpus=["A40"], as_json=False)
    assert [line.split()[:2] for line in lines[2:4]] == [["A40", "spot"], ["A40", "demand"]]
    counts = [(o["count"], o["use_spot"]) for o in plan(gpus=["A40"])["options"]]
    assert sorted(counts) == [(1, False), (1, True), (4, False), (4, True)]
    first = plan(gpus=["A40"], hours=24)["options"][0]
    assert (first["count"], first["use_spot"], first["chosen"]["sharded"]) == (4, True, False)
    alone = plan(20, "hardware.workers=1", gpus=["A40"])
    assert {option["count"] for option in alone["options"]} == {1}


def test_without_a_catalog_it_says_how_to_give_prices_which_do_without_a_job(plan, sky_home):
    sky_home.lose_catalog()
    with pytest.raises(BadInput, match=r"(?s)no machine with a GPU has a .*prices\.A40=0\.4"):
        plan()
    lines = plan(20, "prices.A40=0.4", job=None, as_json=False)
    assert lines[2].startswith("A40 demand 0.40")


@rows_of("command_line")
def test_mistakes_on_the_command_line_get_one_message(pion, row):
    code, out, err = pion(*(SMALL if word == "SMALL" else word for word in row["arguments"]))
    assert (code, out) == (2, "")
    assert row["says"] in err
    assert "Traceback" not in err
    assert err.count("error: ") == 1


def test_the_command_line_needs_no_job(pion, tmp_path):
    code, out, _ = pion("plan", "--dollars", "20", f"store={tmp_path}", "--gpu", "A40", "--json")
    assert (code, {option["gpu"] for option in json.loads(out)["options"]}) == (0, {"A40"})
