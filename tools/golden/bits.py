"""What the code decides and computes, without a command."""

from __future__ import annotations

import dataclasses
import itertools
import random
import re
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from pipeline.rent.deadline import policy
from pipeline.rent.deadline.policy import Market, Rental, Seen, Terms
from pipeline.rent.managed.look import diagnose as looks
from pipeline.rent.managed.look.diagnose import Attempt, JobView, RunView
from pipeline.rent.managed.provider.jobs import ENDED, Place
from pipeline.rent.managed.provider.pods import Pod
from tests.paths import REPOSITORY
from tests.pipeline.rent.deadline.made_up_market import Spells, World
from tests.support.fake_provider import JOB, NOW
from tools.golden.place import Texts

KEEP = "tests/pipeline/rent/managed"
# Scenarios of a watcher with a simulated SkyPilot. Those that are killed at each call are left out.
DAYS = ("deadline", "restart", "trouble")


def decisions() -> Texts:
    return {
        "decide.txt": _all_decisions(),
        "markets.txt": _markets(),
        "diagnose.txt": _diagnoses(),
        "days.txt": _days(),
    }


# ---------------------------------------------------------------- one decision


def _all_decisions() -> str:
    """Return what follows from each owner, each two rentals, and slack around each threshold."""
    terms = Terms(
        100_000.0, margin=1800.0, boot=120.0, handover=30.0, lag=80.0, notice=60.0, life=7200.0
    )
    work, up, since = 20_000.0, 60_000.0, 70_000.0
    rentals = {
        "-": None,
        "asked": Rental(since),
        "boots": Rental(since, machine=True),
        "up": Rental(up, machine=True),
        "relieved": Rental(up, machine=True, relieved=True),
        "takes over": Rental(up, machine=True, takes_over=True),
    }
    slacks = (-500, 1939, 1941, 1971, 2021, 2051, 2061, 2500, 3000, 5000)
    rows = [f"slack {', '.join(map(str, slacks))}, finished | the same with an older store"]
    for owner, spot, demand in itertools.product((None, *Market), rentals, rentals):
        cells = []
        for stale, slack in itertools.product((False, True), (*slacks, None)):
            now = terms.deadline - terms.boot - work - (slack or 0.0)
            left = 0.0 if slack is None else work
            # A rental's age counts, so the times of rentals move with the clock.
            moved = [_moved(rentals[name], now - since - 60.0) for name in (spot, demand)]
            cells.append(_action(policy.decide(terms, Seen(now, left, owner, *moved, stale))))
        half = len(cells) // 2
        halves = [_runs(cells[:half]), _runs(cells[half:])]
        who = owner.value if owner else "-"
        rows.append(f"owner {who}, spot {spot}, demand {demand}: {' | '.join(halves)}")
    return "\n".join(rows) + "\n"


def _moved(rental: Rental | None, seconds: float) -> Rental | None:
    return rental and dataclasses.replace(rental, since=rental.since + seconds)


def _runs(cells: list[str]) -> str:
    groups = ((cell, len(list(same))) for cell, same in itertools.groupby(cells))
    return ", ".join(f"{count}×{cell}" for cell, count in groups)


def _action(action: policy.Action) -> str:
    """Return the state of an action, what it cancels (-) and what it requests (+)."""
    request = f" +{action.request.value}" if action.request else ""
    return action.state.name + "".join(f" -{m.value}" for m in action.cancel) + request


def _seen(seen: Seen) -> str:
    words = [f"owner {seen.owner.value if seen.owner else '-'}"]
    for market, rental in seen.rentals.items():
        told = ("machine", "relieved", "takes_over")
        marks = [name for name in told if getattr(rental, name)]
        words.append(f"{market.value} {'/'.join(marks) or 'asked'}")
    return ", ".join([*words, *(["stale"] if seen.stale else [])])


def _decision(terms: Terms, seen: Seen, action: policy.Action) -> tuple[str, str]:
    """Return what a decision is, and its numbers."""
    why = action.situation
    numbers = (seen.work_left, why.slack, why.reserve, why.late)
    return f"{_seen(seen)} → {_action(action)}", "/".join(f"{number:.0f}" for number in numbers)


# ---------------------------------------------------------------- many decisions in a row


def _markets() -> str:
    """Return how runs of 4 hours end on 60 made-up spot markets, and what is decided there."""
    rows = ["hours: seen → decided (work left/slack/reserve/late)"]
    draw = random.Random(0)
    for number in range(60):
        life, gap = (10 ** draw.uniform(2.5, 4.5) for _ in range(2))
        terms = Terms(8 * 3600.0, draw.choice((120.0, 1800.0)), 120.0, 30.0, 80.0, 60.0, life)
        hurt = [
            {},
            {"refused": (9000.0, 12600.0)},
            {"silent_at": 5000.0},
            {"jump": (3600.0, 900.0)},
        ]
        world = World(terms, 4 * 3600.0, Spells(life, gap, number), 60.0, 20.0, **hurt[number % 4])
        rows.append(f"# {number}: life {life:.0f}, gap {gap:.0f}, {hurt[number % 4]}")
        told = [""]
        while world.finished is None:
            seen = world.seen()
            what, numbers = _decision(terms, seen, policy.decide(terms, seen))
            if what != told[-1]:
                told.append(what)
                rows.append(f"{seen.now / 3600:.2f}: {what} ({numbers})")
            world._act()
            world._until(world.now + 30.0)
        rows.append(
            f"finished after {(world.finished or 0.0) / 3600:.2f} h, {len(world.requests)} requests"
        )
    return "\n".join(rows) + "\n"


# ---------------------------------------------------------------- diagnoses

AGES = (120.0, 400.0, 1300.0, 3000.0, 9000.0)


def _diagnoses() -> str:
    """Return what is found with each status, each list of pods and each view of a run."""
    statuses = ("PENDING", "STARTING", "RUNNING", "RECOVERING", "CANCELLING", *sorted(ENDED))
    alive, gone = Pod("a", "", "RUNNING"), Pod("x", "", "EXITED")
    pods = {
        "not asked": None,
        "none": (),
        "up": (alive,),
        "stopped": (gone,),
        "both": (alive, gone),
    }
    rows, reasons = [], {}
    for status, (pods_are, listed) in itertools.product(statuses, pods.items()):
        for failure in (
            (None, "Failed to clean up it") if status == "FAILED_CONTROLLER" else (None,)
        ):
            job = dataclasses.replace(JOB, status=status, failure=failure)
            cells = []
            for (name, run), age in itertools.product(_runs_seen(), AGES):
                since = NOW - age if name.startswith("lost") else None
                view = JobView(job, run(NOW - age), listed, since, since, _attempts(age))
                found = looks.diagnose(view, NOW)
                cells.append(f"{name} " + " & ".join(map(_finding, found)))
                reasons |= {f"{one.what}/{one.action}: {one.why}": None for one in found}
            rows.append(
                f"{status}{' ' + failure if failure else ''}, pods {pods_are}: {_runs(cells)}"
            )
    return "\n".join([*rows, "", *sorted(reasons)]) + "\n"


def _runs_seen() -> Iterator[tuple[str, Any]]:
    """Yield views of a run by the time of its last sign."""
    yield "new", lambda at: RunView()
    yield "at work", lambda at: RunView(claimed_at=NOW - 7000, beat_at=NOW - 5, last_sign=NOW - 60)
    yield "lost", lambda at: RunView(claimed_at=NOW - 7000, beat_at=at, last_sign=at)
    yield "silent", lambda at: RunView(claimed_at=NOW - 7000, beat_at=at, last_sign=at)
    yield "hangs", lambda at: RunView(claimed_at=NOW - 7000, beat_at=NOW, stalled_since=at)
    yield "commits", lambda at: RunView(claimed_at=at, last_sign=at, heartbeats=False)
    yield "done", lambda at: RunView(finished=True, claimed_at=NOW - 7000, beat_at=at)
    yield "stops", lambda at: RunView(stop="pion stop", claimed_at=NOW - 7000, beat_at=at)


def _attempts(age: float) -> tuple[Attempt, ...]:
    """Return the machines that were rented in one place, the more the longer it has lasted."""
    place = Place("RunPod", "CA", "A40", spot=True)
    return tuple(Attempt(place, NOW - age + 60 * n) for n in range(AGES.index(age) * 2))


def _finding(finding: looks.Finding) -> str:
    avoid = f" not {finding.avoid}" if finding.avoid else ""
    return f"{finding.what}/{finding.action}{' '.join(('', *finding.pods))}{avoid}"


# ---------------------------------------------------------------- days of a watcher


class _Recorder:
    """A plugin of pytest that writes what is decided, found and said in each test."""

    def __init__(self) -> None:
        self.rows: list[str] = []
        self._last: dict[str, str] = {}

    def wrap(self, patch: pytest.MonkeyPatch) -> None:
        """Look at each call of `decide` and `diagnose`, whoever has imported them."""
        decide, diagnose = policy.decide, looks.diagnose

        def decided(terms: Terms, seen: Seen) -> policy.Action:
            action = decide(terms, seen)
            self._note("decide", seen.now, *_decision(terms, seen, action))
            return action

        def diagnosed(view: JobView, now: float) -> list[looks.Finding]:
            found = diagnose(view, now)
            self._note(f"job {view.job.id}", now, ", ".join(map(_finding, found)) or "well", "")
            return found

        for module in list(sys.modules.values()):
            for name, old, new in (("decide", decide, decided), ("diagnose", diagnose, diagnosed)):
                if vars(module).get(name) is old:
                    patch.setattr(module, name, new)

    def _note(self, who: str, at: float, what: str, numbers: str) -> None:
        if self._last.get(who) != what:
            self._last[who] = what
            self.rows.append(f"{at - NOW:.0f} {who}: {what} {numbers}".rstrip())

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Run the days in their order: the suite begins with the files that take longest."""
        items.sort(key=lambda item: DAYS.index(item.path.stem.removeprefix("test_keeper_")))

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: pytest.Function) -> Any:
        self._last.clear()
        self.rows.append(f"# {item.nodeid.removeprefix(KEEP)}")
        with pytest.MonkeyPatch.context() as patch:
            self.wrap(patch)
            result = yield
        self.rows += [f"said: {line}" for line in item.funcargs.get("said", ())]
        return result


def _days() -> str:
    recorder = _Recorder()
    files = [f"{REPOSITORY}/{KEEP}/keep/test_keeper_{day}.py" for day in DAYS]
    code = pytest.main([*files, "-n", "0", "-qq", "-p", "no:cacheprovider"], [recorder])
    text = "\n".join([*recorder.rows, f"pytest ends with {code:d}"])
    return re.sub(r"\b[0-9a-f]{8,}\b|\bpid \d+|file:///\S+/", "<id>", text) + "\n"
