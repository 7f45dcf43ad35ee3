"""The page's server: what it answers, to whom, and how often it looks at a store."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from pipeline.live import watched_run
from pipeline.live.server import MOST_VIEWS, _Told
from pipeline.live.watched_run import View, WatchedRun
from pipeline.state.stores import FileStore
from pipeline.web.address import API_KEY
from tests.support.live_page import showing
from tests.support.rented_run import RentedRun
from tests.support.waiting import PATIENCE_SECONDS, wait_until

KEY = "0123456789abcdef"
LOSS = "?stage=pretrain&names=loss"


@pytest.fixture
def run(tmp_path: Path) -> RentedRun:
    return a_run(tmp_path, "demo")


def a_run(folder: Path, name: str, lr: float = 3e-4) -> RentedRun:
    run = RentedRun(FileStore(folder / "runs"), name, steps=100, lr=lr)
    run.rent()
    run.train(20)
    return run


def ask(url: str, view: str = "", **headers: str) -> httpx.Response:
    return httpx.get(f"{url}/data{view}", headers=headers, timeout=PATIENCE_SECONDS)


def data(url: str) -> dict[str, Any]:
    """Return the answer once every run has been read."""
    wait_until(lambda: all(ask(url).headers["Look-Ages"].split(",")), "every run is read")
    found: dict[str, Any] = ask(url).json()
    return found


def test_a_page_that_knows_everything_gets_only_the_age_of_it(run: RentedRun) -> None:
    with showing(run) as url:
        assert data(url)["runs"][0]["summary"]["step"] == 20
        first = ask(url)
        again = ask(url, **{"If-None-Match": first.headers["ETag"]})
        assert (again.status_code, again.content) == (304, b"")
        assert again.headers["ETag"] == first.headers["ETag"]
        assert float(again.headers["Look-Ages"]) >= 0
        assert again.headers["Cache-Control"] == "no-store"
        for other in ('"another"', "*nonsense", "W/" + first.headers["ETag"][:-2]):
            assert ask(url, **{"If-None-Match": other}).json() == first.json(), other


def test_a_page_gets_the_curves_that_it_draws_and_no_others(run: RentedRun) -> None:
    with showing(run) as url:
        (told,) = data(url)["runs"]
        assert told["curves"] == {}
        assert {"loss", "lr", "mfu", "expert_load.highest"} <= {*told["metrics"]["pretrain"]}
        tags = set()
        for view, names, steps in (
            (LOSS, {"loss"}, [*range(1, 21)]),
            ("?stage=pretrain&names=lr,mfu,unknown", {"lr", "mfu"}, [*range(1, 21)]),
            (f"{LOSS}&steps=5-8", {"loss"}, [*range(4, 10)]),
            ("?stage=sft&names=loss", set(), []),
        ):
            answer = ask(url, view)
            curves = answer.json()["runs"][0]["curves"].get("pretrain", {})
            assert set(curves) == names
            assert all([step for step, _, _ in points] == steps for points in curves.values())
            tag = answer.headers["ETag"]
            assert ask(url, view, **{"If-None-Match": tag}).status_code == 304
            tags.add(tag)
        assert len(tags) >= 3
        refused = ask(url, "?names=../HEAD")
        assert (refused.status_code, refused.json()["error"]["code"]) == (400, "bad_view")


def test_what_is_kept_for_pages_does_not_grow_with_their_views(run: RentedRun) -> None:
    told = _Told([WatchedRun(run.state)])
    for step in range(100):
        told.of(View("pretrain", ("loss",), (range(step),)))
    assert told._made.cache_info().currsize == MOST_VIEWS


def test_the_page_follows_a_run(run: RentedRun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watched_run, "PAUSE", 0.01)
    with showing(run) as url:
        page = httpx.get(url, timeout=PATIENCE_SECONDS)
        assert "<title>Pion</title>" in page.text
        assert "sha256-" in page.headers["Content-Security-Policy"]
        data(url)
        tag = ask(url).headers["ETag"]
        run.train(2)
        wait_until(lambda: ask(url, **{"If-None-Match": tag}).status_code == 200, "the new rows")
        wait_until(lambda: data(url)["runs"][0]["summary"]["step"] == 22, "all new rows")
        found = ask(url, LOSS).json()["runs"][0]["curves"]["pretrain"]
        assert [step for step, _, _ in found["loss"]] == list(range(1, 23))


def test_a_page_that_asks_after_a_pause_is_told_the_present_state(
    run: RentedRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watched_run, "PAUSE", 0.01)
    now = [1000.0]
    monkeypatch.setattr(watched_run, "time", SimpleNamespace(monotonic=lambda: now[0]))
    with showing(run) as url:
        for step in (20, 22):
            (told,) = ask(url).json()["runs"]
            assert told["summary"]["step"] == step
            run.train(2)
            now[0] += 3600.0


def test_several_runs_come_with_the_settings_in_which_they_differ(tmp_path: Path) -> None:
    runs = [a_run(tmp_path, "slow", 1e-4), a_run(tmp_path, "fast", 2e-4)]
    with showing(*runs) as url:
        found = data(url)
        assert [run["name"] for run in found["runs"]] == ["slow", "fast"]
        assert found["settings"]["pretrain.lr"] == [1e-4, 2e-4]
        assert len(ask(url).headers["Look-Ages"].split(",")) == 2


def test_one_thread_looks_at_a_run_however_many_pages_ask(
    run: RentedRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[str] = []
    look = WatchedRun.look

    def counted(watched: WatchedRun) -> None:
        looks.append(threading.current_thread().name)
        look(watched)

    monkeypatch.setattr(WatchedRun, "look", counted)
    monkeypatch.setattr(watched_run, "PAUSE", 1000.0)
    monkeypatch.setattr(watched_run, "LONGEST_PAUSE", 1000.0)
    with showing(run) as url:
        for _ in range(30):
            data(url)
    assert looks == ["look at a run"]


def test_what_pages_are_told_is_made_once_for_each_look(
    run: RentedRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[dict[str, Any]] = []
    told = WatchedRun.told

    def noted(watched: WatchedRun) -> dict[str, Any]:
        made.append(told(watched))
        return made[-1]

    monkeypatch.setattr(WatchedRun, "told", noted)
    monkeypatch.setattr(watched_run, "PAUSE", 1000.0)
    monkeypatch.setattr(watched_run, "LONGEST_PAUSE", 1000.0)
    with showing(run) as url:
        for _ in range(30):
            data(url)
    assert sum("summary" in one for one in made) == 1
    assert len(made) <= 2  # once more if a page asked before the first look


def test_a_bug_in_a_look_is_told_and_the_next_look_may_succeed(
    run: RentedRun, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(watched_run, "PAUSE", 0.01)
    look, failures = WatchedRun.look, iter([ValueError("oops")])

    def fail_once(watched: WatchedRun) -> None:
        for error in failures:
            raise error
        look(watched)

    monkeypatch.setattr(WatchedRun, "look", fail_once)
    with showing(run) as url:
        assert data(url)["runs"][0]["trouble"] is None
    assert "a bug" in capsys.readouterr().out.lower()


@pytest.mark.parametrize("path", ["/", "/data"])
def test_foreign_names_and_pages_are_refused(path: str, run: RentedRun) -> None:
    with showing(run) as url:
        for headers, status in (
            ({"Host": "attacker.example"}, 421),
            ({"Origin": "http://attacker.example"}, 403),
            ({"Host": "localhost:1"}, 200),
        ):
            answer = httpx.get(url + path, headers=headers, timeout=PATIENCE_SECONDS)
            assert answer.status_code == status
            assert answer.headers["Content-Security-Policy"].startswith("default-src 'none'")
            assert answer.headers["Cache-Control"] == "no-store"
            assert "Access-Control-Allow-Origin" not in answer.headers


def test_nothing_else_is_answered(run: RentedRun) -> None:
    with showing(run) as url:
        assert httpx.get(f"{url}/HEAD.json", timeout=PATIENCE_SECONDS).status_code == 404
        assert httpx.delete(f"{url}/data").status_code == 405
        posted = httpx.post(f"{url}/data", json={}, timeout=PATIENCE_SECONDS)
        assert posted.status_code == 405
        assert json.loads(posted.text)["error"]["message"]


def test_a_key_is_needed_for_the_data_and_not_for_the_page(
    run: RentedRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(API_KEY, KEY)
    with showing(run) as url:
        assert KEY not in httpx.get(url, timeout=PATIENCE_SECONDS).text
        assert httpx.get(f"{url}/data", timeout=PATIENCE_SECONDS).status_code == 401
        assert httpx.get(f"{url}/data?key={KEY}", timeout=PATIENCE_SECONDS).status_code == 401
        allowed = {"Authorization": f"Bearer {KEY}"}
        assert (
            httpx.get(f"{url}/data", headers=allowed, timeout=PATIENCE_SECONDS).status_code == 200
        )
