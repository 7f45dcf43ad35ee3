"""The page in a real browser: it follows runs, says what is wrong, and asks nobody else.

By default, three tests open it; what scripts compute without a server is tried in test_page.py.
"""

import contextlib
import csv
import io
from pathlib import Path

import pytest

from pipeline.live import watched_run
from pipeline.report.reading import read_history
from pipeline.state.notes.deadline import Asked, new_deadline, write_first_deadline
from pipeline.state.notes.watcher_beat import Saw, write_beat
from pipeline.state.stores import FileStore
from pipeline.web.address import API_KEY
from tests.support.browser import PHONE, Tab, needs_chromium
from tests.support.contrast import CONTRAST
from tests.support.live_page import showing
from tests.support.rented_run import RentedRun
from tests.support.waiting import wait_until

pytestmark = needs_chromium

KEY = "0123456789abcdef"
LOSS = "[data-metric=loss]"
LINE = f"{LOSS} path.line:not(.raw):not(.held)"
STEPS = 3000
# The page asks every five seconds, as it does outside tests: there is nothing new.
UNCHANGED = 5000


@contextlib.contextmanager
def quick():
    """Look at the stores again and again."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(watched_run, "PAUSE", 0.05)
        patch.setattr(watched_run, "LONGEST_PAUSE", 0.1)
        yield


def a_run(folder, name="demo", lr=3e-4):
    run = RentedRun(FileStore(folder / "runs"), name, steps=100, lr=lr)
    run.rent()
    run.train(50)
    run.save()
    run.rent("RTX 4090")
    run.train(10)
    return run


def test_the_page_follows_a_run_through_a_store_that_goes_away(browser, tmp_path):
    run = a_run(tmp_path)
    events = run.events()
    events.append("note", why="<img src=x onerror=alert(1)>")
    events.flush()
    asked = Asked(hours=1.0, at=None, margin=60)
    write_first_deadline(run.state, new_deadline(asked, "pion launch", run.state.clock.now()))
    saw = Saw(state="arming", slack=-60.0, reserve=2700.0, work_left=3000.0)
    write_beat(run.state, None, saw)
    with quick(), showing(run) as url:
        tab = Tab(browser, url)
        tab.wait_for("#tiles", "60")
        tab.wait_for("#tiles", "Deadline")
        tab.wait_for("#tiles", "requesting a machine on demand; 50 min 00 s of work left, no slack")
        tab.wait_for("#machines", "RTX 4090 on RunPod/CA, spot")
        tab.wait_for("#events", "<img src=x onerror=alert(1)>")
        tab.wait_for_count("[data-metric=loss] path", 3)
        tab.wait_for_count("[data-metric=loss] .attempt", 1)
        run.train(5)
        tab.wait_for("#tiles", "65")
        folder = tmp_path / "runs" / "demo"
        away = folder.rename(tmp_path / "away")
        tab.wait_for("#trouble", "is not there")
        away.rename(folder)
        tab.page.wait_for_selector("#trouble", state="hidden")
        run.train(35)
        run.finish()
        tab.wait_for("#tiles div:first-child dd", "Done")
        tab.wait_for("#tiles", "met, ")
        assert not tab.wrong
    tab.wait_for("#trouble", "does not answer")
    assert "Done" in tab.page.inner_text("#tiles")
    tab.page.close()


@pytest.mark.soak
def test_the_read_out_and_all_controls_work_with_the_keyboard(browser, tmp_path):
    with quick(), showing(a_run(tmp_path)) as url:
        tab = Tab(browser, url)
        page = tab.page
        page.wait_for_selector("[data-metric=loss] path")
        page.focus("#smoothing")
        before = page.get_attribute("[data-metric=loss] path.line:not(.raw)", "d")
        page.keyboard.press("Home")
        assert page.get_attribute("[data-metric=loss] path.line:not(.raw)", "d") != before
        page.keyboard.press("Tab")
        page.keyboard.press("Space")
        assert page.is_checked("#log")
        for _ in range(5):  # the zoom, the choice of charts, and the chart's files
            page.keyboard.press("Tab")
        page.keyboard.press("Tab")
        page.keyboard.press("Home")
        assert "step 1\n" in page.inner_text("[data-metric=loss] .readout")
        for _ in range(3):
            page.keyboard.press("ArrowRight")
        assert "step 4\n" in page.inner_text("[data-metric=loss] .readout")
        page.keyboard.press("Tab")
        assert page.is_hidden("[data-metric=loss] .readout")
        tab.close()


@pytest.mark.soak
def test_the_read_out_shows_each_point_as_it_was_measured(browser, tmp_path):
    run = a_run(tmp_path)
    run.train(3)
    with quick(), showing(run) as url:
        tab = Tab(browser, url)
        tab.page.wait_for_selector("[data-metric=loss] path")
        curves = tab.page.evaluate("known.runs[0].curves.pretrain")
        loss, held = (
            {step: value for step, value, _ in curves[name]} for name in ("loss", "held_out_loss")
        )
        # By the arrow keys, and by positions of the pointer next to each point.
        read = "charts.get('loss').read(n + side); return charts.get('loss').readout.innerText;"
        arrow = (
            "charts.get('loss').key({key: n > 1 ? 'ArrowRight' : 'Home', preventDefault() {}}); "
            "return charts.get('loss').readout.innerText;"
        )
        for side, act in ((0, arrow), (-0.4, read), (0.4, read)):
            script = f"(side) => [...Array(63)].map((_, i) => {{ const n = i + 1; {act} }})"
            texts = tab.page.evaluate(script, side)
            for step, text in enumerate(texts, 1):
                assert text.startswith(f"step {step}\n")
                assert f"training\n{loss[step]:.4f}" in text
                nearest = min(held, key=lambda at, step=step: abs(at - step))
                label = "held-out" if nearest == step else f"held-out, step {nearest}"
                shown = f"{label}\n{held[nearest]:.4f}" in text
                assert shown == (min(held) <= step <= max(held)), text
        assert "(smoothed " in texts[30]
        tab.close()


@pytest.mark.parametrize("scheme", ["light", pytest.param("dark", marks=pytest.mark.soak)])
def test_two_runs_fit_on_a_phone_and_can_be_read(scheme, browser, tmp_path):
    runs = [a_run(tmp_path, "slow", 1e-4), a_run(tmp_path, "fast", 2e-4)]
    with quick(), showing(*runs) as url:
        tab = Tab(browser, url, color_scheme=scheme, viewport=PHONE, has_touch=True)
        tab.wait_for("#settings", "pretrain.lr")
        tab.wait_for_count("[data-metric=loss] path", 6)
        tab.page.uncheck("#curves-0")
        assert tab.page.locator("[data-metric=loss] path").count() == 3
        tab.page.tap("#run-1")
        tab.wait_for("#runs button[aria-pressed=true]", "fast")
        assert tab.page.evaluate("document.documentElement.scrollWidth") == 390
        least, text, count = tab.page.evaluate(CONTRAST)
        assert least >= 4.5, text
        assert count > 100
        tab.close()


def test_the_page_asks_for_the_key_and_sends_it_in_no_address(browser, tmp_path, monkeypatch):
    monkeypatch.setenv(API_KEY, KEY)
    with quick(), showing(a_run(tmp_path)) as url:
        tab = Tab(browser, url)
        asked = []
        tab.page.on("request", lambda request: asked.append(request.url))
        tab.page.fill("#key", "another-key")
        tab.page.keyboard.press("Enter")
        tab.wait_for("#trouble", "not the key")
        tab.page.fill("#key", KEY)
        tab.page.keyboard.press("Enter")
        tab.wait_for("#tiles", "60")
        assert tab.page.is_hidden("#key-form")
        assert not any(KEY in address for address in asked)
        tab.page.close()


# ---------------------------------------------------------------- charts of two long runs


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two runs of more steps than a page draws, each of which had two machines."""
    return [
        a_long_run(tmp_path_factory.mktemp(name), name, lr)
        for name, lr in (("a", 1e-4), ("b", 3e-4))
    ]


def a_long_run(folder, name, lr):
    run = RentedRun(FileStore(folder), name, steps=STEPS, lr=lr, flush_steps=1000)
    run.rent()
    run.train(STEPS // 2)
    run.save()
    run.train(100)  # lost
    run.time.time += 1800
    run.rent("RTX 4090")
    run.train(STEPS // 2)
    return run


@pytest.fixture(scope="module")
def address(runs):
    """The address of the page of both runs. They do not change: one look at them is enough."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(watched_run, "PAUSE", 3600)
        with showing(*runs) as url:
            yield url


@pytest.fixture
def tab(browser, address):
    """A tab with the page of both runs, whose errors fail the test."""
    opened = Tab(browser, address, poll=UNCHANGED)
    opened.page.wait_for_selector(LINE)
    yield opened
    opened.close()


def steps_drawn(page):
    """Return the steps of the first run's points of the loss."""
    return page.evaluate("charts.get('loss').series[1].step")


def drag(page, begin, end):
    """Drag over the chart of the loss, from one share of its width to another."""
    box = page.locator(f"{LOSS} .plot").bounding_box()
    left, width, y = box["x"] + 46, box["width"] - 54, box["y"] + box["height"] / 2
    page.mouse.move(left + begin * width, y)
    page.mouse.down()
    page.mouse.move(left + end * width, y, steps=4)
    assert page.locator(f"{LOSS} .chosen").count() == 1
    page.mouse.up()


def paid_until(at, costs):
    """Return the seconds and dollars that were paid for until that moment."""
    times = [(max(0.0, min(at, time.end) - time.begin), time.price or 0.0) for time in costs.paid]
    return sum(each for each, _ in times), sum(each * price / 3600 for each, price in times)


@pytest.mark.soak
def test_a_drag_zooms_all_charts_and_draws_every_step_that_was_measured(tab):
    page = tab.page
    whole = steps_drawn(page)
    assert (whole[0], whole[-1]) == (1, STEPS)
    assert len(whole) <= 2000  # thinned
    drag(page, 0.5, 0.6)
    wait_until(
        lambda: {*range(STEPS // 2 + 1, 6 * STEPS // 10)} <= {*steps_drawn(page)},
        "the finer points",
    )
    assert len(steps_drawn(page)) < 400
    ranges = page.evaluate("[...charts.values()].map((chart) => [chart.first, chart.last])")
    assert len(ranges) == 3
    assert all(each == ranges[0] for each in ranges)
    assert ranges[0][0] == pytest.approx(1 + 0.5 * (STEPS - 1), abs=10)
    page.dblclick(f"{LOSS} .plot")
    wait_until(lambda: steps_drawn(page) == whole, "the whole curve")
    assert page.is_disabled("#whole")


@pytest.mark.soak
def test_keys_and_buttons_zoom_around_the_read_out(tab):
    page = tab.page
    page.focus(f"{LOSS} .plot")
    page.keyboard.press("Home")
    page.keyboard.press("+")
    page.keyboard.press("+")
    assert page.evaluate("view.zoom") == [1, pytest.approx(1 + (STEPS - 1) / 4)]
    page.keyboard.press("-")
    page.click("#farther")
    assert page.evaluate("view.zoom") is None
    page.click("#closer")
    assert page.evaluate("view.zoom")[1] == pytest.approx(1 + 0.75 * (STEPS - 1))
    page.click("#whole")
    assert page.evaluate("view.zoom") is None


@pytest.mark.soak
def test_the_axis_counts_tokens_time_or_dollars_as_the_costs_do(tab, runs):
    page = tab.page
    page.select_option("#axis", "tokens")
    each = page.evaluate("known.runs[0].tokens_per_step.pretrain")
    assert page.evaluate("charts.get('loss').last") == STEPS * each
    points = page.evaluate("known.runs[1].curves.pretrain.loss")
    costs = read_history(runs[1].state).costs
    for name, number in (("time", 0), ("dollars", 1)):
        page.select_option("#axis", name)
        drawn = page.evaluate("[...charts.get('loss').series.filter((one) => one.run === 1)[1].x]")
        for i in (0, 1, len(points) // 2, len(points) // 2 + 1, len(points) - 1):
            assert drawn[i] == pytest.approx(paid_until(points[i][2], costs)[number], rel=1e-6)
    page.focus(f"{LOSS} .plot")
    page.keyboard.press("End")
    assert page.inner_text(f"{LOSS} .readout").startswith(f"${costs.dollars:.4f}\n")
    # The second machine began after a pause that nobody paid for.
    after = next(point for point in points if point[0] > STEPS // 2)
    page.click("#run-1")
    paid = paid_until(after[2], costs)[1]
    assert page.evaluate("charts.get('loss').attempts") == [pytest.approx(paid, rel=1e-6)]


@pytest.mark.soak
def test_every_metric_can_have_a_chart_and_layers_have_three_lines(tab):
    page = tab.page
    shown = "[...document.querySelectorAll('#charts .chart')].map((one) => one.dataset.metric)"
    assert page.evaluate(shown) == ["loss", "lr", "tokens_per_second"]
    page.click("#choose summary")
    names = page.evaluate(
        "[...document.querySelectorAll('#metrics input')].map((one) => one.value)"
    )
    assert names == [
        "loss",
        "held_out_loss",
        "lr",
        "grad_norm",
        "tokens_per_second",
        "mfu",
        "memory",
        "expert_load",
    ]
    for name in names:
        page.set_checked(f"#choose-{name}", name in ("expert_load", "memory"))
    page.wait_for_selector("[data-metric=expert_load] path.edge", state="attached")
    assert page.evaluate(shown) == ["memory", "expert_load"]
    assert page.locator("[data-metric=expert_load] path").count() == 6
    page.focus("[data-metric=expert_load] .plot")
    page.keyboard.press("End")
    assert "b, lowest\n1.25" in page.inner_text("[data-metric=expert_load] .readout")
    assert "b, highest\n1.50" in page.inner_text("[data-metric=expert_load] .readout")
    page.focus("[data-metric=memory] .plot")
    page.keyboard.press("End")
    assert "21.5 GB" in page.inner_text("[data-metric=memory] .readout")


@pytest.mark.soak
def test_a_link_restores_the_view_and_the_page_follows_its_address(tab, browser):
    page = tab.page
    page.select_option("#axis", "dollars")
    page.click("#choose summary")
    page.check("#choose-grad_norm")
    page.check("#log")
    page.uncheck("#curves-0")
    page.click("#run-1")
    page.click("#closer")
    state = page.evaluate("JSON.stringify(view)")
    link = page.evaluate("location.href")
    assert "#x=dollars&charts=loss,held_out,accuracy,chosen,reward,signal," in link
    assert ",lr,grad_norm&log=1&zoom=" in link
    other = Tab(browser, link, poll=UNCHANGED)
    other.page.wait_for_selector("[data-metric=grad_norm] path")
    assert other.page.evaluate("JSON.stringify(view)") == state
    assert other.page.evaluate("location.href") == link
    assert (other.page.is_checked("#log"), other.page.is_checked("#curves-0")) == (True, False)
    other.page.evaluate("location.hash = 'x=__proto__&charts=<b>,loss'")
    wait_until(lambda: other.page.evaluate("view.x") == "step", "the view of the address")
    assert other.page.evaluate("view.charts") == ["loss"]
    other.page.wait_for_selector(LINE)
    assert all(each.startswith(link.partition("#")[0]) for each in other.wrong)
    other.page.close()


@pytest.mark.soak
def test_a_chart_is_saved_as_the_points_that_it_shows_and_as_a_picture(tab):
    page = tab.page
    page.evaluate("choose({ zoom: [10, 20] })")
    wait_until(lambda: {*range(10, 21)} <= {*steps_drawn(page)}, "the finer points")
    with page.expect_download() as saved:
        page.click(f"{LOSS} .save:text('CSV')")
    assert saved.value.suggested_filename == "a-b-pretrain-loss.csv"
    rows = list(csv.DictReader(io.StringIO(Path(saved.value.path()).read_text())))
    assert [int(row["step"]) for row in rows if row["run"] == "b"] == [*range(10, 21)]
    points = {
        step: value for step, value, _ in page.evaluate("known.runs[1].detail.curves.pretrain.loss")
    }
    for row in rows:
        assert (row["stage"], row["metric"]) == ("pretrain", "loss")
        if row["run"] == "b":
            assert float(row["value"]) == points[int(row["step"])]
            assert float(row["dollars"]) > 0
    with page.expect_download() as saved:
        page.click(f"{LOSS} .save:text('PNG')")
    picture = Path(saved.value.path()).read_bytes()
    assert picture.startswith(b"\x89PNG")
    # Curves are in it, in the color of the first run.
    found = page.evaluate(
        """async () => {
          const picture = await createImageBitmap(await pngOf(charts.get("loss")));
          const { width, height } = picture;
          const context = new OffscreenCanvas(width, height).getContext("2d");
          context.drawImage(picture, 0, 0);
          const { data } = context.getImageData(0, 0, width, height);
          let count = 0;
          for (let i = 0; i < data.length; i += 4)
            count += [11, 122, 128].every((value, n) => data[i + n] === value);
          return [width, count];
        }"""
    )
    assert found[0] == 2 * (page.evaluate("charts.get('loss').plot.clientWidth") + 24)
    assert found[1] > 500


@pytest.mark.soak
def test_samples_of_several_runs_stand_side_by_side_at_the_same_step(tab):
    page = tab.page
    assert page.locator("#samples .card").count() == 2
    page.focus("#moment")
    page.keyboard.press("Home")
    assert page.inner_text("#samples output") == "Pretraining step 750"
    texts = page.locator("#samples .card").all_inner_texts()
    for i, name in enumerate(("a", "b")):
        samples = page.evaluate(f"known.runs[{i}].samples.filter((one) => one.step === 750)")
        assert texts[i].split("\n")[0].strip() == f"{name}, Pretraining step 750"
        assert samples[0]["text"].strip() in texts[i]
    page.uncheck("#curves-0")
    assert page.locator("#samples .card").count() == 1
    assert page.inner_text("#samples output") == "Pretraining step 750"
