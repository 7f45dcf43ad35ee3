"""`pion plan`: what a job takes on each GPU, ranked by dollars."""

import json
import re

import pytest

from pion.errors import BadInput
from pion.train.hardware import device_name, pick_device
from pipeline.console.formats import duration
from pipeline.job.digest import model_inputs
from pipeline.job.file import load_job
from pipeline.machine.gpus import GPU_TYPES
from pipeline.rent.plan.command import show_plan
from pipeline.state.shared.speeds import PastSpeed, keep_train_speed
from pipeline.state.stores import open_store
from tests.paths import JOBS, OWN_JOBS
from tests.pipeline.rehearsal.jobs import pair_job
from tests.pipeline.rent.fine_tuning import write_fine_tuning
from tests.pipeline.rent.plan.test_prices import also_by_four
from tests.support.sky_catalog import PRICES, Price

SMALL, XL = (str(JOBS / f"pion-{size}.yaml") for size in ("small", "xl"))
FEW = ("sft=null", "pretrain.steps=4", "pretrain.warmup_steps=1")


@pytest.fixture
def table(sky_home, tmp_path, capsys):
    """What `pion plan` prints of a job in an empty store."""

    def run(job=SMALL, *overrides, gpus=(), on=None, as_json=False):
        store = f"store={tmp_path / 'runs'}"
        assert show_plan(str(job), [store, *overrides], gpus=gpus, as_json=as_json, on=on) == 0
        return capsys.readouterr().out

    return run


@pytest.fixture
def plan(table):
    """`pion plan --json` of a job in an empty store."""
    return lambda *job, **options: json.loads(table(*job, **options, as_json=True))


def test_machines_are_ranked_by_what_the_whole_job_costs_and_what_is_assumed_is_said(plan):
    shown = plan()
    rows, notes = shown["estimates"], "\n".join(shown["notes"])
    dollars = [row["dollars"] for row in rows]
    assert dollars == sorted(dollars)
    assert len(rows) == 2 * len(PRICES), "spot and on demand"
    assert {(row["gpu"], row["use_spot"]) for row in rows[:2]} == {("A40", True), ("L40S", True)}
    row = next(row for row in rows if row["gpu"] == "A40" and row["use_spot"])
    assert row["fits"]
    assert row["price"] == 0.2
    assert row["dollars"] == pytest.approx(row["hours"] * 0.2)
    assert row["dollars_per_billion_tokens"] == pytest.approx(row["dollars"] / 3.047424)
    assert 0 < row["preemption_loss_hours"] < row["hours"]
    assert row["tokens_per_second"] > 0
    assert row["peak_bytes"] == max(stage["peak_bytes"] for stage in row["stages"])
    assert [stage["stage"] for stage in row["stages"]] == ["pretrain", "sft"]
    for words in (
        "batch 32×2: in pretrain, each GPU computes 32 rows at once, 2 times for a step",
        "tokens/s estimated: 15% MFU assumed",
        "lost: the time that preemptions cost. On spot, a preemption every 2 h",
        "a restart of 120 s",
        "time and $: a boot of 120 s and training",
    ):
        assert words in notes
    assert "no price of" not in notes


def test_below_a_minute_of_training_the_price_of_an_hour_decides(plan):
    shown = plan(SMALL, *FEW, "prices={RTXA4000: 0.40, A40: 0.42}", gpus=("A40", "RTXA4000"))
    slow, *_, fast = shown["estimates"]
    assert (slow["gpu"], fast["gpu"]) == ("RTXA4000", "A40")
    assert slow["dollars"] > fast["dollars"]
    assert "training takes less than a minute on each GPU" in "\n".join(shown["notes"])


def test_the_pass_of_a_reference_has_its_own_column(plan, table, tmp_path):
    pair_job(tmp_path, steps=8)
    path = tmp_path / "job.yaml"
    shown = plan(path, gpus=("A40",))
    assert all(row["stages"][1]["reference_seconds"] > 0 for row in shown["estimates"])
    note = "of it: the time of computing the reference of prefer, once before its first step"
    assert note in shown["notes"]
    header, first = table(path, gpus=("A40",)).splitlines()[1:3]
    assert " time  of it   lost " in header
    assert " 2 min <1 min <1 min " in first
    assert "of it" not in table(SMALL, gpus=("A40",))


def test_what_has_no_price_says_why_and_how_to_give_one(sky_home, table):
    sky_home.lose_catalog()
    lines = table(gpus=("A40", "L40S")).splitlines()
    assert "SkyPilot's catalog can't be read" in lines[0], "above the table"
    assert "no price of A40, L40S is known" in lines[1]
    assert sum("catalog" in line for line in lines) == 1
    [how] = re.findall(r"such as\s+(prices\.\S+)", " ".join(lines))
    assert re.search(r"A40 +demand 0\.40 ", table(SMALL, how, gpus=("A40",)))


def test_a_gpu_without_a_price_comes_after_others_and_one_that_does_not_fit_last(plan):
    shown = plan(XL, gpus=("T4", "H100", "A40"))
    *first, unpriced, unfit = rows = shown["estimates"]
    assert [row["gpu"] for row in rows] == ["A40", "A40", "H100", "T4"]
    assert unpriced["dollars"] is None
    assert unpriced["hours"] < first[0]["hours"]
    assert [row["fits"] for row in rows] == [True, True, True, False]
    assert unfit["hours"] is None
    assert any(note.startswith("$/h ?: no price of H100 is known.") for note in shown["notes"])
    assert (
        "T4 (13.1 GiB usable): the model does not fit: training on one row of 2048 tokens needs "
        "13.7 GiB"
    ) in shown["notes"]


# A first plan of a job traces its steps, which takes seconds, so most are soak.
SOME_JOBS = ("demo", "tachyon-large")


@pytest.mark.parametrize(
    "job",
    [
        pytest.param(job, marks=() if job.stem in SOME_JOBS else pytest.mark.soak, id=job.stem)
        for job in OWN_JOBS
    ],
)
def test_every_job_of_ours_fits_on_some_gpu(sky_home, plan, job):
    sky_home.lose_catalog()
    shown = plan(job, f"prices={{{', '.join(f'{gpu}: 1.0' for gpu in GPU_TYPES)}}}")
    fitting = {row["gpu"] for row in shown["estimates"] if row["fits"]}
    assert "B200" in fitting
    assert (fitting == {"H200", "H200-SXM", "B200"}) == (job.stem == "tachyon-large")


def refusal(plan, *job, **options):
    """Return the lines of the message that refuses a job."""
    with pytest.raises(BadInput) as refused:
        plan(*job, **options)
    return str(refused.value).splitlines()


def test_a_job_that_fits_on_none_of_the_gpus_is_refused_with_what_would_do(plan, tmp_path):
    large = JOBS / "tachyon-large.yaml"
    assert refusal(plan, large, "hardware.workers=1", gpus=("A40", "A100-80GB")) == [
        "tachyon-large fits on none of these GPUs.",
        "  A40 (39.9 GiB usable), A100-80GB (71.2 GiB usable): the model does not fit: training on "
        "one row of 2048 tokens needs 113.3 GiB",
        "It fits on H200, H200-SXM, B200.",
    ]
    few = refusal(plan, SMALL, "pretrain.global_batch=3", "hardware.workers=4", gpus=("A40",))
    assert few[1] == "  A40: pretrain.global_batch is less than one row for each of the 4 workers"
    job = write_fine_tuning(tmp_path, "Qwen3-1.7B")
    assert refusal(plan, job, gpus=("RTXA4000", "L4"))[-2:] == [
        "It fits on A100, A40, L40, L40S, RTX6000-Ada, RTXA6000 and 11 more.",
        "By LoRA, it fits on RTXA4000 (11.4 GiB), L4 (15.8 GiB): write `sft: {lora: {rank: 16}}` "
        "next to the other fields of sft, or add sft.lora.rank=16 to the command.",
    ]
    lora = plan(job, "sft.lora.rank=16", gpus=("RTXA4000",))
    assert all(row["fits"] for row in lora["estimates"])
    both = plan(job, gpus=("RTXA4000", "A40"))
    assert any(note.startswith("By LoRA, it fits on RTXA4000") for note in both["notes"])


def test_each_card_says_what_each_way_to_fine_tune_needs(plan, table, tmp_path):
    job = write_fine_tuning(tmp_path, "Qwen3-0.6B")
    rows = plan(job, gpus=("RTXA4000", "A40"))["estimates"]
    fits = {
        row["gpu"]: [row["ways"][way]["fits"] for way in ("full", "recomputed", "lora")]
        for row in rows
    }
    assert fits == {"RTXA4000": [False, True, True], "A40": [True, True, True]}
    assert all(row["ways_by_stage"] == {"sft": row["ways"]} for row in rows)
    printed = table(job, "prices={RTXA4000: 0.25}", gpus=("RTXA4000",))
    (line,) = [line for line in printed.splitlines() if line.startswith("RTXA4000   14.1")]
    assert re.findall("[✗✓]", line) == ["✗", "✓", "✓"]
    assert "tokens (sft)" in printed
    assert "billion tokens (sft)" not in printed


def test_as_many_gpus_are_paid_for_as_the_job_has_workers_at_least(sky_home, plan):
    also_by_four(sky_home, "A40", Price(0.7, 1.5))
    one = plan(SMALL, gpus=("A40",))["estimates"][-1]
    shown = plan(SMALL, "hardware.workers=4", gpus=("A40",))
    four = shown["estimates"][-1]
    assert (four["count"], four["use_spot"], four["price"]) == (4, False, 1.5)
    assert four["tokens_per_second"] == pytest.approx(4 * 0.9 * one["tokens_per_second"])
    assert four["dollars"] == pytest.approx(1.5 * four["hours"])
    assert any("a machine's 4 GPUs" in note for note in shown["notes"])
    assert any("each of several GPUs at 90% of that: not measured" in n for n in shown["notes"])
    own = plan(SMALL, "hardware.workers=4", "prices={A40: 0.4}", gpus=("A40",))["estimates"]
    assert [row["price"] for row in own] == [1.6, 1.6]
    elastic = plan(SMALL, "hardware.workers=[4,8]", gpus=("A40",))
    assert elastic["estimates"] == shown["estimates"]
    assert "hardware.workers [4, 8]: planned for 4 workers" in elastic["notes"]


def test_the_table_has_a_line_for_each_machine(sky_home, table):
    sky_home.sell({"A40": Price(0.2, 0.4), "RTXA4000": Price(0.1, 0.25)})
    printed = table(XL, "hardware.recompute=false")
    lines = [line.split() for line in printed.splitlines() if line[:3] in ("A40", "RTX")]
    assert [line[:2] for line in lines[:2]] == [["A40", "spot"], ["A40", "demand"]]
    assert [line[-2:] for line in lines[2:4]] == [["no", "fit"], ["no", "fit"]]
    assert "22.1 billion tokens (pretrain, sft)" in printed
    few = ("pretrain.steps=200", "sft=null", "prices={A40: 0.4}")
    short = table(SMALL, *few, "hardware.workers=2", gpus=("A40",))
    assert re.search(r"2 × A40 demand 0.80 .* \d\d min ", short)
    assert "26.2 million tokens (pretrain)" in short


def test_a_rental_is_compared_with_its_own_machines_and_its_narrowness_is_said(sky_home, plan):
    shown = plan(on=str(sky_home.yaml("accelerators: A40:1\nuse_spot: true")))
    assert [(row["gpu"], row["use_spot"]) for row in shown["estimates"]] == [("A40", True)]
    [warning] = [note for note in shown["notes"] if note.startswith("warning: ")]
    assert "every machine is a spot A40" in warning
    with pytest.raises(BadInput, match=r"nobody offers a machine of .*\n1 × T4"):
        plan(on=str(sky_home.yaml("accelerators: T4:1")))


def test_80_columns_hold_the_whole_table_of_spot_and_demand(table, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    gpus = "RTXA4000: {spot: 0.11, on_demand: 0.25}, RTXPRO6000-MaxQ: 2.5"
    settings = ["pretrain.global_batch=8", f"prices={{{gpus}}}"]
    assert "…" not in table(SMALL, *settings, gpus=("RTXA4000", "RTXPRO6000-MaxQ"))


def test_this_machine_has_a_line_with_what_its_runs_reached(table, tmp_path):
    job = load_job(SMALL, FEW)

    def here():
        return re.search(r"here +own +(.*?) *\n", table(SMALL, *FEW, gpus=["A40"]))[1]

    assert here() == "?"
    device, seq_len = device_name(pick_device()), job.seq_len("pretrain")
    model = model_inputs(job.model_config_resolved())
    speed = PastSpeed("mine", 1.0, device, seq_len, 4096.0)
    keep_train_speed(open_store(str(tmp_path / "runs")), model, speed)
    assert here() == duration(job.trained_tokens("pretrain") / 4096)
