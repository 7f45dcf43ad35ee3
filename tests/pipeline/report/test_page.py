"""report.html in a real browser: it draws everything from the file alone, and says what to do
where scripts are off."""

import copy
import csv
import dataclasses
import io
from pathlib import Path

import pytest

from pipeline.job import Job
from pipeline.job.file import load_job
from pipeline.job.stages import TRAINING
from pipeline.report.history import differing
from pipeline.report.report_file import write_report
from pipeline.state.head import SkippedRows
from tests.paths import JOBS
from tests.pipeline.report.test_model_card import JOB
from tests.pipeline.report.test_page_data import (
    DONE,
    costs_of_two_machines,
    history,
    row,
    sample_row,
)
from tests.support.browser import PHONE, WIDE, Tab, needs_chromium
from tests.support.chat_page import AXE
from tests.support.contrast import CONTRAST

pytestmark = needs_chromium

HEBREW = "\u05e9\u05dc\u05d5\u05dd"
ATTACK = "<img src=x onerror=alert(1)></script>"
EVENTS = [
    {"event": "hop", "epoch": 2, "at": 200.0, "receipt": ["hop: a to b", "first row 64"]},
    {"event": "watch", "epoch": 2, "at": 200.0, "what": "resubmitted", "why": "x", "done": []},
    {"event": "changed", "epoch": 2, "at": 200.0, "changes": [ATTACK]},
    # An attempt whose facts do not fit in one line.
    {"event": "training", "stage": "sft", "epoch": 1, "at": 30.0, "device": "NVIDIA H100 80GB"}
    | {f"a_setting_of_the_plan_{n}": n for n in range(16)},
]


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """The address of the report of a run with everything that a report shows."""
    samples = [sample_row(48 * n, f" {HEBREW} {n}.", prompt=HEBREW) for n in range(1, 11)]
    digest = DONE.stages["pretrain"].digest
    left_out = SkippedRows(2800, 2832, step=88, epoch=1, digest=digest, why=ATTACK, at=0.0)
    path = tmp_path_factory.mktemp("report") / "report.html"
    shown = history(
        head=DONE.with_skipped("pretrain", left_out),
        samples=[*samples, sample_row(480, ATTACK, prompt=ATTACK)],
        events=EVENTS,
        costs=costs_of_two_machines(36.0),
    )
    write_report(path, shown)
    return path.as_uri()


HEADINGS = [
    *("Curves", "Evaluation", "Where the time went", "Machines", "Samples", "Checkpoints"),
    *("Stages", "Where this start's time went", "Attempts", "Rows left out", "Hops"),
    *("What the watcher did", "Changes of code", "Where things are", "Events"),
]


def test_everything_is_drawn_from_the_file_alone(browser, report):
    tab = Tab(browser, report)
    page = tab.page
    assert page.title() == "demo · Pion"
    assert page.locator("h2:visible").all_inner_texts() == HEADINGS
    assert page.inner_text("#fresh") == "as of 1970-01-01 00:00:00 UTC"
    # Fine-tuning: measured, and smoothed.
    assert page.locator("[data-metric=loss] path").count() == 2
    page.click("#stages button:first-child")
    assert page.locator("[data-metric=loss] path").count() == 3
    assert page.locator("[data-metric=loss] .attempt").count() == 1
    page.focus("[data-metric=loss] .plot")
    page.keyboard.press("Home")
    assert "step 10\n" in page.inner_text("[data-metric=loss] .readout")
    assert page.locator("#samples .card").count() == 7
    page.click("#samples .more")
    assert page.locator("#samples .card").count() == 11
    assert page.get_by_text(ATTACK).count() >= 4
    assert page.locator("img").count() == 0
    # Text of people has its own direction.
    direction = "(element) => getComputedStyle(element).direction"
    assert page.locator("#samples p", has_text=HEBREW).first.evaluate(direction) == "rtl"
    assert page.locator("#title").evaluate(direction) == "ltr"
    # All stages are printed.
    page.evaluate("choose({ stage: 'sft' })")
    page.emulate_media(media="print")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.locator("#other-stages .chart:visible").count() == 4
    assert page.locator("#charts:visible, .more:visible").count() == 0
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert page.locator("#charts .chart:visible").count() == 2
    assert page.locator("#other-stages .chart").count() == 0
    tab.close()


def test_what_the_scripts_compute(browser, report):
    tab = Tab(browser, report)
    page = tab.page
    assert page.evaluate("Object.keys(STAGES)") == list(TRAINING)
    # What can't be read in an address is left out.
    bad = "x=__proto__&zoom=5,NaN&charts=<b>,loss&smoothing=1e9&run=-1&hidden=x&stage=constructor"
    kept = page.evaluate(f"history.replaceState(null, '', '#{bad}'); readView(); view")
    first = {"stage": None, "x": "step", "log": False, "zoom": None, "hidden": [], "run": 0}
    assert kept == first | {"charts": ["loss"], "smoothing": 100}
    # An address says what was chosen, and no more.
    chosen = "Object.assign(view, { x: 'dollars', log: true, zoom: [10, 20] }); keepView();"
    assert page.evaluate(f"{chosen} location.hash") == (
        "#x=dollars&charts=loss&smoothing=100&log=1&zoom=10,20"
    )
    # A file has the points that the chart shows.
    page.evaluate("Object.assign(view, FIRST_VIEW, { stage: 'pretrain', zoom: [15, 45] }); show();")
    saved = page.evaluate("[fileName(charts.get('loss'), 'csv'), csvOf(charts.get('loss'))]")
    assert saved[0] == "demo-pretrain-loss.csv"
    rows = list(csv.DictReader(io.StringIO(saved[1])))
    losses = [(row["step"], float(row["value"])) for row in rows if row["metric"] == "loss"]
    assert losses == [(str(step), float(f"{8 / step + 3:.6g}")) for step in (20, 30, 40)]
    # The curves of a run that another replaced are gone: the server has not read the other run.
    page.evaluate("Object.assign(view, FIRST_VIEW);")
    two = "learn({ runs: [frozen.runs[0], frozen.runs[0]], settings: null }); show();"
    page.evaluate(two)
    assert page.locator("[data-metric=loss] path").count() == 4
    unread = "{ name: 'demo', url: 'runs/demo', trouble: null }"
    page.evaluate(two.replace("frozen.runs[0]", unread, 1))
    assert page.locator("[data-metric=loss] path").count() == 2
    assert "reading …" in page.inner_text("#runs")
    tab.close()


@pytest.mark.parametrize(
    ("scheme", "viewport"),
    [
        pytest.param("light", WIDE, id="light-wide", marks=pytest.mark.soak),
        pytest.param("dark", PHONE, id="dark-phone"),
        pytest.param("light", PHONE, id="light-phone", marks=pytest.mark.soak),
        pytest.param("dark", WIDE, id="dark-wide", marks=pytest.mark.soak),
    ],
)
def test_it_fits_and_can_be_read(scheme, viewport, browser, report):
    tab = Tab(browser, report, color_scheme=scheme, viewport=viewport)
    assert tab.width() == viewport["width"]
    least, text, count = tab.page.evaluate(CONTRAST)
    assert least >= 4.5, text
    assert count > 100
    # What an attempt was like is on the page, not beyond its edge.
    box = tab.page.locator("dt", has_text="a setting of the plan 15").bounding_box()
    assert 0 <= box["x"] <= box["x"] + box["width"] <= viewport["width"]
    # Bars of time stand under or next to their names, never over them.
    for bars in tab.page.locator(".bars li").all():
        name, value, bar = (each.bounding_box() for each in bars.locator("> *").all())
        assert name["x"] + name["width"] <= value["x"]
        assert bar["x"] >= value["x"] + value["width"] or bar["y"] >= name["y"] + name["height"]
    tab.close()


@pytest.mark.soak
@pytest.mark.parametrize("viewport", [WIDE, PHONE], ids=["wide", "phone"])
def test_the_settings_of_jobs_with_little_in_common_fold_and_fit(viewport, browser, report):
    jobs = ("demo.yaml", "pion-small.yaml", "demo-prefer.yaml")
    settings = differing([load_job(JOBS / job) for job in jobs])
    tab = Tab(browser, report, viewport=viewport)
    run = "{...frozen.runs[0], name: 'a_run_with_a_long_name_'.repeat(4)}"
    tab.page.evaluate(
        f"settings => {{ learn({{ runs: [{run}, {run}, frozen.runs[0]], settings }}); show(); }}",
        settings,
    )
    rows = tab.page.locator("#settings tbody tr")
    assert rows.count() < len(settings) / 2
    assert not any("–" in text for text in rows.all_inner_texts()), "all runs have these settings"
    assert tab.width() == viewport["width"]
    tab.page.click("#settings .more")
    assert rows.count() == len(settings)
    assert "prefer.beta" in tab.page.inner_text("#settings")
    assert tab.width() == viewport["width"]
    tab.close()


@pytest.mark.soak
def test_of_many_attempts_and_hops_the_newest_are_open(browser, tmp_path):
    epochs = range(2, 40)
    rows = [{**row(n), "epoch": n} for n in epochs]
    events = [
        event
        for n in epochs
        for event in (
            {"event": "hop", "epoch": n, "at": 100.0 * n, "receipt": [f"to machine {n}"]},
            {"event": "training", "stage": "sft", "epoch": n, "at": 1.0 * n, "device": f"card {n}"},
        )
    ]
    path = tmp_path / "report.html"
    write_report(path, history(events=events, metrics={"pretrain": [], "sft": rows}))
    tab = Tab(browser, path.as_uri())
    for title, newest in (("Hops", "to machine 39"), ("Attempts", "card 39")):
        section = tab.page.locator("section", has=tab.page.locator(f"h2:text-is('{title}')"))
        shown = section.locator(".dated li, .card")
        assert shown.count() == 4
        assert newest in shown.last.inner_text()
        section.locator(".more").click()
        assert shown.count() == len(epochs)
    tab.close()


@pytest.mark.soak  # by default, test_report_file.py reads the same text in the file
def test_without_scripts_it_says_the_numbers_and_what_to_do(browser, report):
    tab = Tab(browser, report, java_script_enabled=False)
    text = tab.page.inner_text("body")
    for shown in ("demo", "pion status RUN", "Fine-tuning step", "5.12M", "$0.90"):
        assert shown in text, shown
    assert "Curves" not in text
    assert tab.width() == WIDE["width"]
    tab.close()


@pytest.mark.skipif(AXE is None, reason="PION_AXE does not name a script of axe-core")
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing(scheme, browser, report):
    tab = Tab(browser, report, color_scheme=scheme, bypass_csp=True)
    tab.page.evaluate(Path(str(AXE)).read_text(encoding="utf-8"))
    found = tab.page.evaluate("axe.run().then((result) => result.violations.map((one) => one.id))")
    assert found == []
    tab.close()


@pytest.mark.soak
def test_the_losses_on_each_source_are_drawn_with_the_mix_where_a_phase_begins(browser, tmp_path):
    job = copy.deepcopy(JOB)
    sources = job["data"]["sources"]
    for name, source in zip(("docs", "web", "notes"), sources):
        source.pop("weight", None)
        source["name"] = name
    job["pretrain"]["phases"] = [{"until": 240, "mix": {"docs": 1}}, {"mix": {"docs": 1, "web": 3}}]
    shown = dataclasses.replace(history(), known_job=Job.model_validate(job))
    rows = [
        {**one, "held_out": {"docs": 3.0 - one["step"] / 480, "web": 2.5}}
        for one in shown.metrics["pretrain"]
    ]
    path = tmp_path / "report.html"
    write_report(path, dataclasses.replace(shown, metrics={"pretrain": rows}))
    tab = Tab(browser, path.as_uri())
    chart = tab.page.locator("[data-metric=held_out]")
    assert chart.locator(".legend span").all_inner_texts() == ["all sources", "docs", "web"]
    assert chart.locator("path.line").count() == 3
    assert chart.locator(".border").count() == 1
    assert chart.locator(".mix").text_content() == "25 % docs, 75 % web"
    tab.close()


def test_chosen_and_rejected_answers_are_drawn_in_one_chart(browser, tmp_path):
    answers = [
        {"step": step, "epoch": 1, "at": 0.1 * step, "loss": 0.6, "accuracy": 0.7}
        | {"chosen": 0.01 * step, "rejected": -0.02 * step}
        for step in range(1, 41)
    ]
    shown = history()
    path = tmp_path / "report.html"
    write_report(path, dataclasses.replace(shown, metrics={**shown.metrics, "prefer": answers}))
    tab = Tab(browser, path.as_uri())
    tab.page.click("[data-stage=prefer]")
    tab.page.wait_for_selector("[data-metric=chosen] path.held", state="attached")
    assert tab.page.locator("[data-metric=rejected]").count() == 0
    tab.page.focus("[data-metric=chosen] .plot")
    tab.page.keyboard.press("End")
    said = tab.page.inner_text("[data-metric=chosen] .readout")
    assert "chosen\n0.4" in said
    assert "rejected\n-0.8" in said
    assert "choose-rejected" not in tab.page.content()
    tab.close()
