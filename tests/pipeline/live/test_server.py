"""The page's server: what it answers, to whom, what it refuses, and how it ends."""

import json
import signal
import socket
import subprocess
import sys
import threading
from types import SimpleNamespace

import httpx
import pytest

from pipeline.live import watched_run
from pipeline.live.server import MOST_RUNS, MOST_VIEWS, _Told, page_of
from pipeline.live.watched_run import View, WatchedRun
from pipeline.state.run_state import RunState
from pipeline.state.stores import FileStore
from pipeline.web.address import API_KEY, Address
from tests.support.finished_run import make_run
from tests.support.live_page import showing
from tests.support.rented_run import RentedRun
from tests.support.waiting import PATIENCE_SECONDS, read_until, rest_of, wait_until

KEY = "0123456789abcdef"
LOSS = "?stage=pretrain&names=loss"


@pytest.fixture
def run(tmp_path):
    return a_run(tmp_path, "demo")


def a_run(folder, name, lr=3e-4):
    run = RentedRun(FileStore(folder / "runs"), name, steps=100, lr=lr)
    run.rent()
    run.train(20)
    return run


# Made once: each client reads the certificates of all authorities.
HTTP = httpx.Client(timeout=PATIENCE_SECONDS)


def ask(url, view="", **headers):
    return HTTP.get(f"{url}/data{view}", headers=headers)


def data(url):
    """Return the answer once every run has been read."""
    wait_until(lambda: all(ask(url).headers["Look-Ages"].split(",")), "every run is read")
    return ask(url).json()


def test_a_page_that_knows_everything_gets_only_the_age_of_it(run):
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


def test_a_page_gets_the_curves_that_it_draws_and_no_others(run):
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


def test_what_is_kept_for_pages_does_not_grow_with_their_views(run):
    told = _Told([WatchedRun(run.state)])
    for step in range(100):
        told.of(View("pretrain", ("loss",), (range(step),)))
    assert told._made.cache_info().currsize == MOST_VIEWS


def test_the_page_follows_a_run(run, monkeypatch):
    monkeypatch.setattr(watched_run, "PAUSE", 0.01)
    with showing(run) as url:
        page = HTTP.get(url)
        assert "<title>Pion</title>" in page.text
        assert "sha256-" in page.headers["Content-Security-Policy"]
        data(url)
        tag = ask(url).headers["ETag"]
        run.train(2)
        wait_until(lambda: ask(url, **{"If-None-Match": tag}).status_code == 200, "the new rows")
        wait_until(lambda: data(url)["runs"][0]["summary"]["step"] == 22, "all new rows")
        found = ask(url, LOSS).json()["runs"][0]["curves"]["pretrain"]
        assert [step for step, _, _ in found["loss"]] == list(range(1, 23))


def test_a_page_that_asks_after_a_pause_is_told_the_present_state(run, monkeypatch):
    monkeypatch.setattr(watched_run, "PAUSE", 0.01)
    now = [1000.0]
    monkeypatch.setattr(watched_run, "time", SimpleNamespace(monotonic=lambda: now[0]))
    with showing(run) as url:
        for step in (20, 22):
            (told,) = ask(url).json()["runs"]
            assert told["summary"]["step"] == step
            run.train(2)
            now[0] += 3600.0


def test_several_runs_come_with_the_settings_in_which_they_differ(tmp_path):
    runs = [a_run(tmp_path, "slow", 1e-4), a_run(tmp_path, "fast", 2e-4)]
    with showing(*runs) as url:
        found = data(url)
        assert [run["name"] for run in found["runs"]] == ["slow", "fast"]
        assert found["settings"]["pretrain.lr"] == [1e-4, 2e-4]
        assert len(ask(url).headers["Look-Ages"].split(",")) == 2


def test_one_thread_looks_once_and_what_it_saw_is_made_once_however_many_pages_ask(
    run, monkeypatch
):
    looks = []
    made = []
    look, told = WatchedRun.look, WatchedRun.told

    def counted(watched):
        looks.append(threading.current_thread().name)
        look(watched)

    def noted(watched):
        made.append(told(watched))
        return made[-1]

    monkeypatch.setattr(WatchedRun, "look", counted)
    monkeypatch.setattr(WatchedRun, "told", noted)
    monkeypatch.setattr(watched_run, "PAUSE", 1000.0)
    monkeypatch.setattr(watched_run, "LONGEST_PAUSE", 1000.0)
    with showing(run) as url:
        for _ in range(10):
            data(url)
    assert looks == ["look at a run"]
    assert sum("summary" in one for one in made) == 1
    assert len(made) <= 2  # once more if a page asked before the first look


def test_a_bug_in_a_look_is_told_and_the_next_look_may_succeed(run, monkeypatch, capsys):
    monkeypatch.setattr(watched_run, "PAUSE", 0.01)
    look, failures = WatchedRun.look, iter([ValueError("oops")])

    def fail_once(watched):
        for error in failures:
            raise error
        look(watched)

    monkeypatch.setattr(WatchedRun, "look", fail_once)
    with showing(run) as url:
        assert data(url)["runs"][0]["trouble"] is None
    assert "a bug" in capsys.readouterr().out.lower()


def test_foreign_names_and_pages_are_refused_and_nothing_else_is_answered(run):
    with showing(run) as url:
        for path in ("/", "/data"):
            for headers, status in (
                ({"Host": "attacker.example"}, 421),
                ({"Origin": "http://attacker.example"}, 403),
                ({"Host": "localhost:1"}, 200),
            ):
                answer = HTTP.get(url + path, headers=headers)
                assert answer.status_code == status
                assert answer.headers["Content-Security-Policy"].startswith("default-src 'none'")
                assert answer.headers["Cache-Control"] == "no-store"
                assert "Access-Control-Allow-Origin" not in answer.headers
        assert HTTP.get(f"{url}/HEAD.json").status_code == 404
        assert HTTP.delete(f"{url}/data").status_code == 405
        posted = HTTP.post(f"{url}/data", json={})
        assert posted.status_code == 405
        assert json.loads(posted.text)["error"]["message"]


def test_a_key_is_needed_for_the_data_and_not_for_the_page(run, monkeypatch):
    monkeypatch.setenv(API_KEY, KEY)
    with showing(run) as url:
        assert KEY not in HTTP.get(url).text
        assert HTTP.get(f"{url}/data").status_code == 401
        assert HTTP.get(f"{url}/data?key={KEY}").status_code == 401
        allowed = {"Authorization": f"Bearer {KEY}"}
        assert HTTP.get(f"{url}/data", headers=allowed).status_code == 200


# ---------------------------------------------------------------- the command


def test_the_page_is_there_until_sigterm_and_needs_no_skypilot(here):
    make_run(here / "runs", saves=[])
    code = (
        "import sys; sys.modules['sky'] = None; from pipeline.cli import main; sys.exit(main("
        "['status', 'demo', '--web', '--port', '0']))"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    try:
        assert "<title>Pion</title>" in HTTP.get(read_until(process, "the page").split()[0]).text
        process.send_signal(signal.SIGTERM)
        assert "Traceback" not in rest_of(process)
        assert process.wait(PATIENCE_SECONDS) == 0
    finally:
        process.kill()
        process.wait(PATIENCE_SECONDS)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("nothing", "--web"), "no run 'nothing' in the store"),
        (("--web",), "--web needs the names of 1 to 8 runs"),
        (("demo",) * (MOST_RUNS + 1) + ("--web",), "--web needs the names of 1 to 8 runs"),
        (("demo", "demo", "--web"), "a run is named twice"),
        (("demo", "--web", "--json"), "Leave out --json"),
        (("demo", "--port", "8009"), "Add --web"),
        (("demo", "--web", "--host", "0.0.0.0"), API_KEY),
    ],
)
def test_what_can_t_be_shown_is_refused(arguments, words, here, pion):
    make_run(here / "runs", saves=[])
    code, _, error = pion("status", *arguments)
    assert code == 2
    assert words in error


def test_a_port_in_use_is_refused_before_a_run_is_looked_for(pion, here):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, _, error = pion("status", "nowhere", "--web", "--port", str(port))
    assert code == 2
    assert f"port {port} is in use" in error


def test_the_page_next_to_a_command_shows_a_run_that_has_not_begun(tmp_path):
    with page_of(RunState(FileStore(tmp_path / "runs"), "demo"), Address(port=0)) as url:

        def trouble():
            return str(ask(url).json()["runs"][0]["trouble"])

        wait_until(lambda: "has not begun" in trouble(), trouble)
    with pytest.raises(httpx.ConnectError):
        HTTP.get(url)
