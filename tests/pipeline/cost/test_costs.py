"""Every paid second of a run is counted once, under the right cause.

The histories below are small enough to add up by hand. A step is 4 rows of 10 tokens, and takes 8 s
if its row says 5 tokens/s.
"""

import dataclasses
import json
import re
import time
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.commands.status import show_statuses
from pipeline.cost.costs import CAUSES, costs, costs_of, keep_lost, read_log
from pipeline.job import Job
from pipeline.report.page_data import page_data
from pipeline.report.reading import HistoryReader
from pipeline.report.report_file import rewrite_report, write_run_report
from pipeline.state.claim import claim_run
from pipeline.state.find_run import read_run
from pipeline.state.head import CheckpointEntry, ClaimRecord, Head, Spent, StageRecord
from pipeline.state.owner import RELEASED, Owner
from pipeline.state.rows.metrics import EventLog
from pipeline.state.run_state import RunState
from pipeline.state.stores import FileStore
from tests.pipeline.report.test_page_data import history as page_history
from tests.support.light_run import JOB, light_run
from tests.support.rented_run import RentedRun
from tests.support.side_by_side import SideBySide
from tests.support.states import someone
from tests.support.whole_runs import kill, start, wait_for, write_job

T = 1_000_000.0  # when the first machine is rented; other times are seconds from then
STEP = 8.0


def rental(epoch, at, rented_at=0.0, **fields):
    """Return the event that a process on a rented A40 appends when it has claimed the run."""
    about = {"id": "pod1", "cloud": "RunPod", "region": "CA", "gpu": "A40", "count": 1}
    about |= {"spot": True, "host": "pod1-host", "price": 0.36, "phases": {}}
    about |= {"rented_at": T + rented_at, "session": f"s{epoch}"}
    return {"event": "machine", "epoch": epoch, "at": T + at, **about, **fields}


def at_home(epoch, at, started_at, **fields):
    about = {"host": "desk", "price": None, "session": f"s{epoch}", "started_at": T + started_at}
    return {"event": "process", "epoch": epoch, "at": T + at, **about, **fields}


def forked(epoch, at):
    return {"event": "forked", "epoch": epoch, "at": T + at}


def phase(epoch, name, at, seconds):
    return {"event": "phase", "epoch": epoch, "name": name, "at": T + at, "seconds": seconds}


def training(epoch, at, stage="pretrain"):
    return {"event": "training", "epoch": epoch, "stage": stage, "at": T + at, "seq_len": 10}


def lost(pod, begin, end, price=0.36):
    """Return a pod that a watcher saw boot and end."""
    about = {"id": pod, "cloud": "RunPod", "gpu": "A40", "count": 1, "managed_job": "7"}
    return about | {"price": price, "begin": T + begin, "end": T + end}


def taken_for_lost(pod, begin, end):
    return {"event": "lost", "epoch": 0, "at": T, **lost(pod, begin, end)}


def measured(step, epoch, at, **measures):
    return [{"step": step, "epoch": epoch, "at": T + at, **measures}]


def step(step, epoch, at, speed=5.0):
    rows = [4 * (step - 1), 4 * step]
    row = {"step": step, "epoch": epoch, "at": T + at, "loss": 3.0, "rows": rows}
    return row if speed is None else {**row, "tokens_per_second": speed}


def steps(first, last, epoch, at, speed=5.0):
    """Return the rows of consecutive steps; the first is done at `at`."""
    return [step(n, epoch, at + STEP * (n - first), speed) for n in range(first, last + 1)]


def owned(epoch, owner=True, **fields):
    return Head(epoch=epoch, owner=Owner.me() if owner else None, **fields)


def prepared(epoch, **fields):
    """Return HEAD of an owned run whose data was there before its first machine."""
    return owned(epoch, stages={"prepare": StageRecord("d", T)}, **fields)


def seconds(found):
    """Return the seconds of each cause that has any, to a thousandth.

    Whatever they are, the time of the processes adds up to them, and to the dollars.
    """
    paid = [(time.end - time.begin, time.price) for time in found.paid]
    assert sum(each for each, _ in paid) == pytest.approx(3600 * found.hours, abs=1e-3)
    priced = sum(each * price / 3600 for each, price in paid if price is not None)
    assert priced == pytest.approx(found.dollars or 0.0, abs=1e-6)
    return {cause: round(s, 3) for cause, s in found.seconds.items() if round(s, 3)}


# ---------------------------------------------------------------- many histories


def called(calls):
    """Yield what the functions above return for calls that a file lists."""
    for name, *arguments in calls:
        fields = arguments.pop() if isinstance(arguments[-1], dict) else {}
        yield globals()[name](*arguments, **fields)


def head_of(epoch, *, owner=True, prepared=None, resumed=(), claims=(), saved=None, until=0.0):
    """Return HEAD. `prepared`: when the data was. `resumed`: the step after which each epoch has
    trained on. `saved`: the step, the epoch and the time of a checkpoint."""
    me = dataclasses.replace(Owner.me(), session="s1")
    entry = saved and CheckpointEntry("pretrain", *saved[:2], "d", "k", T + saved[2], 9, "x")
    return owned(
        epoch,
        owner,
        stages={} if prepared is None else {"prepare": StageRecord("d", T + prepared)},
        restores={number: {"pretrain": resumed[number]} for number in resumed},
        claims=tuple(ClaimRecord(number, T + claims[number], me) for number in claims),
        checkpoints=(entry,) if entry else (),
        spent=Spent(until=T + until) if until else Spent(),
    )


HISTORIES = yaml.safe_load(Path(__file__).with_name("histories.yaml").read_text())


@pytest.mark.parametrize("case", HISTORIES, ids=lambda case: case["history"])
def test_each_second_of_a_history_counts_once_under_its_cause(case):
    events = list(called(case["events"]))
    rows = [row for rows in called(case.get("rows", [])) for row in rows]
    beats = {epoch: T + at for epoch, at in case.get("heartbeats", {}).items()}
    head = head_of(**case["head"])
    total = costs(events, {"pretrain": rows}, head, T + case["now"], heartbeats=beats)
    assert seconds(total) == case["seconds"]
    assert total.dollars == pytest.approx(case.get("dollars", total.dollars))
    assert case.get("says", "") in total.describe()
    machines = [machine.describe() for machine in total.machines]
    assert machines == case.get("machines", machines)
    unpriced = sum(machine["unpriced_hours"] for machine in total.to_dict()["machines"])
    assert 3600 * unpriced == pytest.approx(case.get("unpriced", 3600 * total.unpriced_hours))


# ---------------------------------------------------------------- one machine


def test_a_run_on_one_rental_is_paid_for_from_the_pods_start_until_its_release():
    events = [
        rental(1, 62, 0, phases={"machine up": 40.0, "install": 20.0}),
        phase(1, "prepare", at=92, seconds=30),
        training(2, 100),
        phase(1, "evaluate", at=200, seconds=25),
    ]
    # Four steps, the last at 140; saved by 145; evaluated from 175 to 200; released at 210.
    head = owned(
        3,
        owner=False,
        stages={"pretrain": StageRecord("d", T + 145), "evaluate": StageRecord("d", T + 200)},
        spent=Spent(until=T + 210),
    )
    found = costs(events, {"pretrain": steps(1, 4, epoch=2, at=116)}, head, T + 9999)
    assert seconds(found) == {
        "steps": 32,  # 108 to 140
        "stages": 30 + 65,  # prepare; and everything after the last save
        "boot": 62 + 16,  # until prepare; and from it until the first step began
        "stall": 5,
    }
    assert found.hours == pytest.approx(210 / 3600)
    assert found.dollars == pytest.approx(0.36 * 210 / 3600)
    assert found.dollars_by_cause["boot"] == pytest.approx(0.0078)
    assert found.goodput == pytest.approx(127 / 210)
    (machine,) = found.machines
    assert (machine.begin, machine.end, machine.to_first_step) == (T, T + 210, 116)
    assert machine.describe() == "A40 on RunPod/CA, spot"


def test_the_reference_of_preferences_is_work_and_a_cause_of_its_own():
    events = [
        rental(1, 0, 0),
        training(2, 10, "sft"),
        phase(1, "reference pass", at=70, seconds=30),
        training(2, 80, "prefer"),
    ]
    rows = {"sft": steps(1, 2, 2, at=18), "prefer": steps(1, 2, 2, at=88)}
    head = owned(2, stages={"prepare": StageRecord("d", T), "sft": StageRecord("d", T + 30)})
    found = costs(events, rows, head, T + 96)
    assert seconds(found) == {
        "steps": 32,
        "reference": 30,
        "boot": 10,
        "restore": 10 + 10,  # from the last save of sft until the pass, and from it on
        "stall": 4,
    }
    assert found.goodput == pytest.approx(62 / 96)
    without = costs([e for e in events if e["event"] != "phase"], rows, head, T + 96)
    assert seconds(without) == {"steps": 32, "boot": 10, "restore": 50, "stall": 4}


def test_rows_that_were_handed_out_together_are_spread_over_the_time_they_took():
    together = [step(n, 1, 58 + n / 1e6) for n in range(1, 6)]
    events = [rental(1, 0, 0), training(1, 10)]
    head = prepared(1)
    found = costs(events, {"pretrain": together}, head, T + 58.001)
    assert found.seconds["steps"] == pytest.approx(40, abs=0.01)
    assert found.seconds["boot"] == pytest.approx(18, abs=0.01)


# ---------------------------------------------------------------- preemptions


def test_a_machine_lost_without_a_word_costs_until_its_last_sign_and_loses_steps():
    events = [
        rental(1, 10, 0),
        training(1, 20),
        rental(2, 300, 200, id="pod2", price=0.72, phases={"machine up": 30.0}),
        phase(2, "pretrain restored", at=320, seconds=15),
        training(2, 321),
    ]
    rows = [*steps(1, 6, epoch=1, at=28), *steps(5, 6, epoch=2, at=329)]
    # Step 6 was done at 68, a heartbeat came at 80, and the second machine resumes from step 4.
    head = prepared(2, restores={1: {"pretrain": 0}, 2: {"pretrain": 4}})
    found = costs(events, {"pretrain": rows}, head, T + 337, heartbeats={1: T + 80})
    first, second = found.machines
    assert first.seconds == {
        c: {"boot": 20, "steps": 32, "recompute": 16, "lost": 12}.get(c, 0) for c in CAUSES
    }
    assert first.hours == pytest.approx(80 / 3600)
    assert second.seconds["restore"] == 15
    assert second.seconds["boot"] == 106  # 200 to 305, and a second before the first step
    assert second.seconds["steps"] == 16
    assert second.to_first_step == 129
    assert found.dollars == pytest.approx((0.36 * 80 + 0.72 * 137) / 3600)
    assert found.dollars_by_cause["recompute"] == pytest.approx(0.36 * 16 / 3600)


def test_a_process_that_hung_before_it_wrote_a_step_was_no_use():
    """Its rows were in memory. That it trained is known from the events of its start."""
    events = [
        at_home(1, 2, 0),
        phase(1, "prepare", at=8, seconds=5),
        training(2, 10),
        phase(1, "first step", at=12, seconds=12) | {"total": True},
        at_home(3, 600, 590),
        training(4, 600),
    ]
    events[4]["reason"] = "its owner, pid 7 on desk, is dead"
    head = owned(4, stages={"prepare": StageRecord("d", T + 8)})
    rows = steps(1, 2, epoch=4, at=608)
    found = costs(events, {"pretrain": rows}, head, T + 616, heartbeats={2: T + 510})
    assert seconds(found) == {"steps": 16, "stages": 5, "boot": 3 + 2 + 10, "lost": 500}
    (machine,) = found.machines
    assert machine.to_first_step == 12
    assert machine.phases == {"prepare": 5, "everything else": 7}
    # While it was alive, it was not known to hang.
    alone = costs(events[:4], {}, owned(2), T + 510, heartbeats={2: T + 510})
    assert seconds(alone) == {"stages": 5, "boot": 505}


# ---------------------------------------------------------------- machines that came to nothing


def test_a_machine_that_never_owned_the_run_is_paid_for_as_boot(tmp_path):
    run = light_run(FileStore(tmp_path))
    head = run.read()
    without = costs_of(run, head, T)
    keep_lost(run, lost("pod0", 0, 100))
    found = costs_of(run, head, T)
    assert found.hours - without.hours == pytest.approx(100 / 3600)
    assert found.seconds["boot"] - without.seconds["boot"] == pytest.approx(100)
    assert found.dollars == pytest.approx(0.01)
    assert found.dollars_by_cause["boot"] == pytest.approx(0.01)
    (machine,) = [m for m in found.machines if m.id == "pod0"]
    assert machine.describe() == "A40 on RunPod, never trained"
    assert (machine.begin, machine.end, machine.to_first_step) == (T, T + 100, None)


@pytest.mark.parametrize(
    ("seen", "dollars", "unpriced"),
    [
        ([lost("pod0", 0, 100)], 0.01, 0),
        ([lost("pod0", 0, 100), lost("pod0", 50, 110)], 0.01, 0),
        ([lost("pod0", 0, 100, price=None)], None, 100),
    ],
    ids=["once", "by two watchers: as the first one saw it", "without a price"],
)
def test_machines_lost_before_any_owned_the_run_have_a_cost(tmp_path, seen, dollars, unpriced):
    run = RunState(FileStore(tmp_path), "demo")
    for machine in seen:
        keep_lost(run, machine)
    found = costs_of(run, Head(), T + 9999)
    assert (seconds(found), found.goodput) == ({"boot": 100}, 0.0)
    assert found.dollars == (dollars and pytest.approx(dollars))
    assert found.unpriced_hours == pytest.approx(unpriced / 3600)


# ---------------------------------------------------------------- prices and home


def test_a_process_that_died_before_it_could_say_what_it_is_is_known_from_its_claim():
    owner = dataclasses.replace(Owner.me(), session="dead", host="lost", started_at=T)
    head = Head(epoch=1, owner=owner, claims=(ClaimRecord(1, T + 7, owner),))
    found = costs([], {}, head, T + 9999)
    assert seconds(found) == {"boot": 7}
    assert found.machines[0].host == "lost"


def test_a_rental_whose_event_says_neither_cloud_nor_host_is_known_by_its_id():
    events = [rental(1, 5, 0, cloud=None, region=None, host=None)]
    (machine,) = costs(events, {}, owned(1), T + 10).machines
    assert (machine.host, machine.describe()) == ("pod1", "A40 on pod1, spot")


def test_a_run_nobody_owned_yet_has_cost_nothing():
    found = costs([], {}, Head(), T)
    assert (found.machines, found.hours, found.dollars, found.goodput) == ((), 0, None, None)
    assert json.loads(json.dumps(found.to_dict()))["seconds"]["steps"] == 0


def test_the_report_says_what_the_machines_of_a_hop_cost(tmp_path):
    store = FileStore(tmp_path)
    run = light_run(store)  # its second claim, of epoch 2, resumed from step 10 of the first
    for epoch, gpu, price in ((1, "A40", 0.4), (2, "RTXA4000", 0.2), (3, "L40S", 0.8)):
        events = EventLog(store, run.name, epoch)
        about = rental(epoch, 0, time.time() - T, id=gpu, gpu=gpu, price=price)
        events.append("machine", **{k: v for k, v in about.items() if k not in ("event", "at")})
        if epoch > 1:
            events.append("hop", stage="pretrain", receipt=["first row 40 = last + 1"])
        events.flush()
    head = run.read()
    assert [m.epochs for m in costs_of(run, head, time.time()).machines] == [(1,), (2,), (3,)]
    report = write_run_report(Job.model_validate(JOB), run).read_text()
    assert "first row 40 = last + 1" in report
    for before, after in (("A40", 0.4), ("RTXA4000", 0.2)), (("RTXA4000", 0.2), ("L40S", 0.8)):
        old, new = (f"{gpu} on RunPod/CA, spot at ${price:.2f}/h" for gpu, price in (before, after))
        assert f"price: {old} → {new}" in report


# ---------------------------------------------------------------- any history


@dataclasses.dataclass
class History:
    """What processes have written one after another.

    `done` is the last step that the store knows, and `hung` for how long workers hung until others
    took their place, or their process was killed.
    """

    now: float = 0.0
    epoch: int = 0
    done: int = 0
    hung: float = 0.0
    events: list[dict] = dataclasses.field(default_factory=list)
    rows: list[dict] = dataclasses.field(default_factory=list)
    claims: list[ClaimRecord] = dataclasses.field(default_factory=list)
    restores: dict[int, dict[str, int]] = dataclasses.field(default_factory=dict)
    beats: dict[int, float] = dataclasses.field(default_factory=dict)
    repeated: bool = False

    def claim(self, owner):
        self.epoch += 1
        self.claims.insert(0, ClaimRecord(self.epoch, T + self.now, owner))
        self.beats[self.epoch] = T + self.now

    def costs(self, now, *, released):
        head = owned(
            self.epoch,
            owner=not released,
            claims=tuple(self.claims),
            restores=self.restores,
            stages={"prepare": StageRecord("d", T)},
            spent=Spent(until=T + self.now if released else 0.0),
        )
        rows = {"pretrain": self.rows}
        return costs(self.events, rows, head, T + now, heartbeats=self.beats)


SECONDS = st.floats(0, 60)


@st.composite
def histories(draw):
    """Generate processes that start, train, stall, hang, get other workers, stop or are killed; and
    whether the last one stopped."""
    found = History()
    reason = None
    hung = 0.0
    for number in range(draw(st.integers(1, 4))):
        started = found.now + draw(st.floats(-20, 20))
        found.now = max(found.now, started) + draw(SECONDS)
        me = dataclasses.replace(Owner.me(), session=f"s{number}", started_at=T + started)
        found.claim(me)
        driver = found.epoch
        pod = draw(st.sampled_from(["pod1", "pod2", None]))
        if pod is None:
            event = at_home(driver, found.now, started, price=draw(st.sampled_from([None, 0.5])))
        else:
            event = rental(driver, found.now, started, id=pod)
        event |= {"session": me.session, "reason": reason}
        if draw(st.booleans()):  # else it died before it wrote how the process before had ended
            found.events.append(event)
            found.hung += hung
        hung = 0.0
        for _ in range(draw(st.integers(0, 3))):
            found.hung += hung
            hung = _train(draw, found, driver, me)
        stops = draw(st.booleans())
        hung = 0.0 if stops else hung
        reason = RELEASED if stops else "no sign of life for 60 s"
        if not stops:
            found.now += draw(SECONDS)
    return found, stops


def _train(draw, found, driver, me):
    """Let workers of a process train until they are done, fail or hang; return for how long."""
    found.now += draw(SECONDS)
    found.claim(me)
    back = draw(st.integers(0, found.done))
    found.repeated |= back < found.done
    found.done = found.restores.setdefault(found.epoch, {})["pretrain"] = back
    found.now += draw(SECONDS)
    found.events.append(training(found.epoch, found.now))
    for number in range(draw(st.integers(0, 4))):
        found.now += draw(SECONDS)
        if number == 0 and draw(st.booleans()):
            total = phase(driver, "first step", found.now, T + found.now - me.started_at)
            found.events.append(total | {"total": True})
        found.done += 1
        speed = draw(st.sampled_from([None, 1.0, 5.0, 1e6]))
        found.rows.append(step(found.done, found.epoch, found.now, speed=speed))
    hung = draw(st.sampled_from([0.0, 500.0]))
    found.now += hung
    found.beats[found.epoch] = T + found.now
    return hung


@settings(deadline=None, max_examples=150)
@given(histories(), SECONDS)
def test_in_any_history_the_parts_of_a_runs_time_are_its_whole_time(history, later):
    run, released = history
    found = run.costs(run.now + later, released=released)
    for machine in found.machines:
        assert all(value >= 0 for value in machine.seconds.values())
        whole = sum(machine.seconds.values())
        if machine.rented:
            assert whole == pytest.approx(machine.end - machine.begin, abs=1e-3)
        assert machine.end <= max(T + (run.now + later), machine.begin)
        waited = machine.to_first_step
        if waited is not None:
            assert 0 <= waited <= machine.end - machine.begin + 1e-3
            assert sum(machine.phases.values()) == pytest.approx(waited)
    seconds(found)  # the time of processes is the same
    assert sum(found.dollars_by_cause.values()) == pytest.approx(found.dollars or 0.0)
    assert run.repeated or found.seconds["recompute"] == 0
    assert found.seconds["lost"] >= run.hung - 1e-3
    shown = page_data(page_history(costs=found))["cost"]["causes"]
    assert sum(one["seconds"] for one in shown) == pytest.approx(3600 * found.hours, abs=1)


# ---------------------------------------------------------------- a real run


def be_rented(monkeypatch, **variables):
    """Make this process look like a rental whose run script began a minute ago."""
    begun = time.time() - 60
    rented = {
        "SKYPILOT_TASK_ID": "sky-1",
        "RUNPOD_POD_ID": "pod1",
        "RUNPOD_API_BASE_URL": "http://127.0.0.1:1",  # no test asks the real one
        "RUNPOD_GPU_NAME": "NVIDIA+A40",
        "PION_BOOT_STARTED": str(begun),
        "PION_BOOT_CHECKED": str(begun + 2),
        "PION_BOOT_SYNCED": str(begun + 50),
    }
    for name, value in {**rented, **variables}.items():
        monkeypatch.setenv(name, value)


def test_a_real_run_killed_on_a_rental_says_what_it_cost_live_and_afterwards(
    tmp_path, monkeypatch, capsys
):
    job = write_job(tmp_path, sft=None, log__every=1, checkpoint__every_steps=5)
    before = someone(commit="c" * 40, started_at=time.time())  # not the time when these tests began
    claim_run(RunState(FileStore(tmp_path / "runs"), "tiny"), before).release()
    be_rented(monkeypatch, PION_PRICES='{"A40": 36.0, "L4": 9}', PION_SPOT="1")
    process = start(job, "pretrain.steps=2000")
    # Wait for a save, which writes the first steps' metrics to the store, and for a step after it.
    text = wait_for(process, ": saved") + wait_for(process, " at $36.00/h")
    kill(process)
    # From this container's start if it was within the hour, else from a minute before.
    assert re.search(r"boot: [\d,.]+ (s|min) ", text)
    assert "checks 2.0 s, install 48.0 s, pion started " in text
    assert "paid to first step: " in text
    assert " at $36.00/h  " in text.splitlines()[-1]
    assert "changed since the last start of this run: commit cccccccccc → " in text

    run, head = read_run(f"{tmp_path}/runs/tiny")
    found = costs_of(run, head, time.time() + 600)  # much later
    machine, _ = found.machines
    assert (machine.id, machine.gpu, machine.price, machine.spot) == ("pod1", "A40", 36.0, True)
    assert machine.end - machine.begin == pytest.approx(sum(machine.seconds.values()))
    assert machine.end < time.time()
    assert min(machine.seconds["boot"], machine.to_first_step) > 60
    assert machine.seconds["steps"] > 0
    assert machine.seconds["idle"] == 0
    assert found.dollars == pytest.approx(36 * machine.hours)
    # HEAD's own count, which limits budgets, only reaches the last commit before a death.
    assert 0.6 < head.spent.dollars <= found.dollars + 0.01

    show_statuses([f"{tmp_path}/runs/tiny"], as_json=False)
    status = capsys.readouterr().out
    assert re.search(r"\ncost: \d+ min ", status)
    assert re.search(r"A40 on RunPod, spot: \d+ min ", status)
    assert re.search(r" at \$36\.00/h, first step \d+ min ", status)
    show_statuses([f"{tmp_path}/runs/tiny"], as_json=True)
    as_json = json.loads(capsys.readouterr().out)["cost"]
    assert as_json["machines"][0]["phases"]["install"] == 48.0
    rewrite_report(f"{tmp_path}/runs/tiny", as_json=False)
    report = Path(capsys.readouterr().out.strip()).read_text()
    assert '["Cost", "$' in report
    assert "A40 on RunPod, spot" in report
    assert '["commit cccccccccc → ' in report  # kept as an event


# ---------------------------------------------------------------- reading it from a store


def test_the_last_heartbeats_of_all_machines_are_read_side_by_side(tmp_path):
    run = RentedRun(FileStore(tmp_path))
    for _ in range(4):
        run.rent()
        run.train(10)
    seen = RunState(SideBySide(tmp_path, r"demo/owner/[123]\.json", 3), "demo", run.state.clock)
    log = read_log(seen)
    found = costs_of(seen, run.claim.head, run.time.time, log)
    assert found == costs_of(run.state, run.claim.head, run.time.time, log)
    assert len(found.machines) == 4
    history = HistoryReader(seen).read()
    assert history.costs == found
