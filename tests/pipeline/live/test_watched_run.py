"""What pages are told of a run comes from its store alone, and nothing is written there."""

from pathlib import Path

import pytest

from pion.errors import BadInput
from pipeline.live.watched_run import HUB_PAUSE, LONGEST_PAUSE, PAUSE, View, WatchedRun, view_of
from pipeline.state.notes.deadline import DEADLINE, Asked, new_deadline, write_first_deadline
from pipeline.state.notes.watcher_beat import Saw, write_beat
from pipeline.state.run_state import RunState
from pipeline.state.status import run_status
from pipeline.state.stores import FileStore, open_store
from tests.support.hub_server import hub_server
from tests.support.light_run import light_run
from tests.support.rented_run import RentedRun


@pytest.fixture
def run(tmp_path):
    """A run that has lost its first machine at step 70 of 100, and resumed from step 50."""
    run = RentedRun(FileStore(tmp_path / "runs"), steps=100)
    run.rent()
    run.train(50)
    run.save()
    run.train(20)
    run.rent("RTX 4090")
    run.train(10)
    return run


def looked(run):
    watched = WatchedRun(run.state)
    watched.look()
    return watched


def points(watched, name):
    """Return the points of a curve, as a page that draws it gets them."""
    return watched.curves(View("pretrain", (name,)), None)["pretrain"][name]


def test_a_page_is_told_everything_that_the_store_knows(run):
    watched = looked(run)
    parts = watched.told()
    assert parts["trouble"] is None
    summary = parts["summary"]
    assert (summary["state"], summary["stage"]) == ("running", "pretrain")
    assert (summary["step"], summary["steps"]) == (60, 100)
    assert summary["seconds_left"] == 40
    assert [step for step, _, _ in points(watched, "loss")] == list(range(1, 61))
    assert points(watched, "held_out_loss")[-1][0] == 60
    names = {"loss", "held_out_loss", "lr", "grad_norm", "tokens_per_second", "mfu", "memory"}
    assert names <= {*parts["metrics"]["pretrain"]}
    assert all(points(watched, name) for name in parts["metrics"]["pretrain"])
    assert parts["attempts"] == {"pretrain": [1, 51]}
    a40, rtx = parts["machines"]
    assert a40["what"] == "A40 on RunPod/CA, spot"
    assert a40["end"] <= rtx["begin"]
    assert a40["dollars"] == pytest.approx(0.4 * a40["hours"])
    (repeated,) = (one for one in parts["cost"]["causes"] if one["cause"] == "recompute")
    assert repeated["seconds"] == pytest.approx(20, abs=2)
    assert [(entry["step"], entry["epoch"]) for entry in parts["checkpoints"]] == [(50, 1)]
    assert parts["checkpoints"][0]["held_out_loss"] is not None
    assert [sample["step"] for sample in parts["samples"]] == [50, 25]
    assert [event["event"] for event in parts["events"]][:2] == ["training", "machine"]


def test_the_newest_step_is_that_of_the_heartbeat_or_of_the_last_row(run):
    watched = looked(run)
    run.beat(step=63)
    watched.look()
    assert watched.told()["summary"]["step"] == 63
    run.train(5)
    run.beat(step=63)
    watched.look()
    assert watched.told()["summary"]["step"] == 65


def test_the_end_of_a_run_is_told(run):
    run.train(40)
    run.finish()
    summary = looked(run).told()["summary"]
    assert (summary["state"], summary["seconds_left"]) == ("done", None)


def test_the_deadline_is_told_and_whether_nobody_watches_and_whether_it_was_met(run):
    assert looked(run).told()["summary"]["deadline"] is None
    asked = Asked(hours=1.0, at=None, margin=60)
    at = write_first_deadline(
        run.state, new_deadline(asked, "pion launch", run.state.clock.now())
    ).at
    write_beat(run.state, at)
    summary = looked(run).told()["summary"]
    assert summary["deadline"] == {"at": at, "ended": None, "saw": None}
    numbers = {"slack": 60.0, "reserve": 2700.0, "work_left": 3000.0}
    write_beat(run.state, at, Saw(state="on demand", **numbers))
    watched = looked(run)
    summary = watched.told()["summary"]
    saw = {"at": run.time.time, "words": "on a machine on demand", **numbers}
    assert summary["deadline"] == {"at": at, "ended": None, "saw": saw}
    assert summary["notes"] == []
    run.time.time += 601
    (note,) = looked(run).told()["summary"]["notes"]
    assert note.startswith("nobody watches: the deadline is at risk from ")
    run.train(40)
    run.finish()
    watched.look()
    summary = watched.told()["summary"]
    assert (summary["deadline"]["at"], summary["deadline"]["saw"]) == (at, None)
    assert summary["deadline"]["ended"].startswith("met, ")
    assert summary["notes"] == []


def test_a_deadline_that_can_not_be_read_and_a_silent_owner_are_told(run):
    run.state.store.write(run.state.key(DEADLINE), b"{")
    summary = looked(run).told()["summary"]
    assert summary["deadline"] is None
    assert "the deadline can't be read" in summary["notes"][0]
    run.time.time += 600
    assert looked(run).told()["summary"]["state"] == "silent"


def test_later_looks_read_only_what_is_new(run, monkeypatch):
    watched = looked(run)
    before, loss = watched.told(), points(watched, "loss")
    run.train(3)
    read = []
    read_file = FileStore.read

    def counted(store, key, *limit):
        read.append(key)
        return read_file(store, key, *limit)

    monkeypatch.setattr(FileStore, "read", counted)
    watched.look()
    assert [key for key in read if "metrics" in key] == ["demo/metrics/pretrain/2/000001.jsonl"]
    now = watched.told()
    assert points(watched, "loss")[:60] == loss
    assert [step for step, _, _ in points(watched, "loss")[60:]] == [61, 62, 63]
    assert now["checkpoints"] == before["checkpoints"]
    assert now["events"] == before["events"]


def test_a_later_look_makes_few_requests_however_long_the_run_is(tmp_path, monkeypatch):
    asked = []
    for ask in ("read", "list"):
        method = getattr(FileStore, ask)

        def counted(store, key="", *rest, method=method):
            asked.append(key)
            return method(store, key, *rest)

        monkeypatch.setattr(FileStore, ask, counted)
    counts = []
    for steps in (20, 120):
        run = RentedRun(FileStore(tmp_path / str(steps)), steps=1000, flush_steps=1)
        run.rent()
        run.train(steps)
        watched = looked(run)
        run.train(1)
        asked.clear()
        watched.look()
        assert points(watched, "loss")[-1][0] == steps + 1
        counts.append(len(asked))
    assert counts[0] == counts[1] <= 12


def test_the_points_after_a_rewind_are_dropped_and_the_attempt_is_marked(run):
    watched = looked(run)
    before = points(watched, "loss")
    run.rent()
    watched.look()
    assert points(watched, "loss") == before[:50]
    run.train(2)
    watched.look()
    assert [step for step, _, _ in points(watched, "loss")[50:]] == [51, 52]
    assert watched.told()["attempts"] == {"pretrain": [1, 51]}


def test_after_a_resume_no_number_is_that_of_the_last_owner(run):
    watched = looked(run)
    run.rent()
    watched.look()
    summary = watched.told()["summary"]
    assert (summary["epoch"], summary["step"]) == (3, 50)
    assert summary["seconds_left"] is summary["tokens_per_second"] is None
    run.train(4)
    run.save()
    run.rent()
    run.train(2)
    watched.look()
    news = watched.told()
    assert (news["summary"]["epoch"], news["summary"]["step"]) == (4, 56)
    assert points(watched, "loss")[-1][0] == 56


def test_a_dead_run_has_no_time_left_and_takes_no_more_time(run, monkeypatch):
    watched = looked(run)
    monkeypatch.setattr(run_status, "is_running", lambda owner, me: False)
    times = []
    for _ in range(3):
        run.time.time += 25
        watched.look()
        parts = watched.told()
        assert (parts["summary"]["state"], parts["summary"]["seconds_left"]) == ("dead", None)
        times.append(sum(one["seconds"] for one in parts["cost"]["causes"]))
    assert times == [times[0]] * 3


def test_rows_that_arrive_late_are_found(run):
    """The last owner's rows may land after the new owner's."""
    folder = Path(run.state.store.local_path("demo/metrics/pretrain/1"))
    late = max(folder.iterdir())
    text = late.read_bytes()
    first = min(folder.iterdir())
    kept = first.read_bytes()
    late.unlink()
    first.unlink()
    watched = looked(run)
    assert points(watched, "loss")[0][0] == 11
    first.write_bytes(kept)
    late.write_bytes(text)
    watched.look()
    assert [step for step, _, _ in points(watched, "loss")] == list(range(1, 61))


def test_a_store_that_goes_away_is_told_and_nothing_is_forgotten(run):
    watched = looked(run)
    known = watched.told()
    folder = Path(run.state.store.local_path("demo"))
    away = folder.rename(folder.with_name("away"))
    watched.look()
    told = watched.told()
    assert "is not there" in told.pop("trouble")
    assert told == {name: value for name, value in known.items() if name != "trouble"}
    away.rename(folder)
    run.train(1)
    watched.look()
    assert watched.told()["trouble"] is None
    assert [step for step, _, _ in points(watched, "loss")[60:]] == [61]


def test_a_store_that_fails_is_asked_less_often_until_it_answers(s3_store, proxy):
    run = RentedRun(open_store(s3_store), steps=100)
    run.rent()
    watched = looked(run)
    assert watched.pause == PAUSE
    proxy.deny("InvalidAccessKeyId")
    pauses = []
    for _ in range(5):
        watched.look()
        pauses.append(watched.pause)
    assert pauses == [10, 20, 40, LONGEST_PAUSE, LONGEST_PAUSE]
    assert watched.told()["trouble"].startswith("Cannot list s3://")
    proxy.clear()
    watched.look()
    assert (watched.told()["trouble"], watched.pause) == (None, PAUSE)


def test_another_run_of_the_same_name_replaces_the_first(run):
    watched = looked(run)
    folder = Path(run.state.store.local_path("demo"))
    folder.rename(folder.with_name("old"))
    other = RentedRun(run.state.store, steps=100)
    other.rent()
    other.train(5)
    watched.look()
    assert (watched.age, set(watched.told())) == (None, {"name", "url", "trouble"})
    watched.look()
    assert [step for step, _, _ in points(watched, "loss")] == [1, 2, 3, 4, 5]


@pytest.fixture(params=["file", "s3", "hf"])
def store(request, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    if request.param == "file":
        yield FileStore(tmp_path / "store")
    elif request.param == "s3":
        yield open_store(request.getfixturevalue("s3_store"))
    else:
        with hub_server() as hub:
            hub.add_repo("tester/runs")
            hub.use(monkeypatch, tmp_path / "hf")
            yield open_store("hf://tester/runs")


def test_nothing_is_written_to_any_store(store):
    light_run(store)

    def content():
        return {entry.key: store.read(entry.key) for entry in store.list()}

    before = content()
    reader = open_store(store.url)
    watched = WatchedRun(RunState(reader, "demo"))
    for _ in range(2):
        watched.look()
    news = watched.told()
    assert news["trouble"] is None
    assert news["summary"]["state"] == "released"
    assert [step for step, _, _ in points(watched, "loss")] == list(range(1, 21))
    assert watched.pause == (HUB_PAUSE if store.commits else PAUSE)
    assert reader.staged() == []
    assert content() == before


# ---------------------------------------------------------------- which curves a page asks for


def test_a_page_asks_for_names_and_for_each_run_for_steps():
    asked = {"stage": "sft", "names": "loss,expert_load.lowest", "steps": "100-2000,"}
    names = ("loss", "expert_load.lowest")
    assert view_of(asked, 2) == View("sft", names, (range(100, 2001), None))
    assert view_of({}, 3) == View("", (), (None, None, None))


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ({"names": "../HEAD"}, "names of curves"),
        ({"names": "x" * 41}, "names of curves"),
        ({"names": ",".join(f"a{n}" for n in range(41))}, "at most 40 names"),
        ({"steps": "1-2,3-4"}, "2 ranges, and the page has 1 runs"),
        ({"steps": "-5-2"}, "two numbers"),
        ({"steps": "1-"}, "two numbers"),
        ({"steps": f"1-{10**19 - 1}"}, "two numbers"),
        ({"steps": "١-٢"}, "two numbers"),
    ],
)
def test_other_views_are_refused(query, words):
    with pytest.raises(BadInput, match=words):
        view_of(query, 1)
