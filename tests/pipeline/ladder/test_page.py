"""The page of a ladder shows its points and curves, and sends no request."""

import dataclasses
import math
import re
from pathlib import Path

import pytest

from pion.errors import Stopped
from pipeline.ladder.cap import Cap
from pipeline.ladder.command import fit_lines
from pipeline.ladder.look import Ladder, Step
from pipeline.ladder.page import COLORS, page_html, write_page
from pipeline.ladder.prediction import fit
from pipeline.ladder.record import PredictionRecord, RungRecord
from pipeline.state.stores import FileStore
from tests.pipeline.ladder.made_up import LAWS, ladder


@pytest.fixture(scope="module")
def fitted():
    points = ladder(LAWS[0], noise=0.004)
    steps = [
        Step(
            RungRecord(point.run, "", point.macs_per_token, point.tokens, number > 13),
            dataclasses.replace(point, bits_per_byte_sem=0.01),
            prediction=PredictionRecord(2.0, 1.9, 2.1, 1.0) if number > 13 else None,
        )
        for number, point in enumerate(points)
    ]
    return Ladder("small", "runs/small", steps, fit(points[:14]), Cap(hours=1.0))


def test_it_has_a_point_for_each_run_and_a_curve_for_each_size(fitted):
    html = page_html(fitted).decode()
    assert html.count("<circle") == 16
    assert html.count('class="held-out') == 2
    assert html.count("<polyline") == 4
    assert html.count("<tr>") == 17
    assert "bits per byte = 0." in html
    assert "1.9000 to 2.1000" in html
    assert "$" not in re.sub(r"<style>.*?</style>", "", html, flags=re.DOTALL)


def test_the_noise_is_in_bits_per_byte_here_and_on_the_terminal(fitted):
    found = fitted.fit
    assert found is not None
    rest = [p.bits_per_byte - found.law.loss(p.macs_per_token, p.tokens) for p in found.points]
    noise = math.sqrt(sum(r * r for r in rest) / (len(rest) - 5))
    words = f"{noise:.4f} bits per byte from"
    assert words in page_html(fitted).decode()
    assert words in " ".join(fit_lines(found))


def test_it_sends_no_request_and_runs_no_script(fitted):
    html = page_html(fitted).decode()
    assert "default-src 'none'" in html
    assert "<script" not in html
    assert "http" not in html.replace("http-equiv", "")


def test_points_are_inside_the_chart(fitted):
    html = page_html(fitted).decode()
    places = re.findall(r'cx="([\d.]+)" cy="([\d.]+)"', html)
    assert len(places) == 16
    assert all(0 < float(x) < 900 and 0 < float(y) < 420 for x, y in places)
    lines = re.findall(r'points="([^"]+)"', html)
    numbers = [float(n) for line in lines for pair in line.split() for n in pair.split(",")]
    assert min(numbers) >= 0


def test_names_from_a_store_are_text(fitted):
    bad = dataclasses.replace(fitted, name="<b>&", url="<i>", fit=None)
    html = page_html(bad).decode()
    assert "<b>" not in html
    assert "<i>" not in html
    assert "No fit yet" in html


def test_a_ladder_without_results_or_with_one_has_a_page(fitted, tmp_path):
    first = fitted.steps[0]
    empty = dataclasses.replace(first, result=None)
    failed = dataclasses.replace(first, result=None, failed="diverged: step 3 gave nan")
    for steps in ([empty], [failed], [first]):
        found = dataclasses.replace(fitted, steps=steps, fit=None, stopped=Stopped("no"))
        path = Path(write_page(found, FileStore(tmp_path)))
        assert path == tmp_path / "_ladders" / "small" / "ladder.html"
        assert path.read_bytes() == page_html(found)
    assert b"Nothing is measured yet" in page_html(
        dataclasses.replace(fitted, steps=[empty], fit=None)
    )


def test_every_color_of_a_size_has_a_style(fitted):
    html = page_html(fitted).decode()
    for number in range(COLORS):
        assert f".s{number} {{ stroke: var(--c{number}); }}" in html
        assert f".f{number} {{ fill: var(--c{number}); }}" in html
