"""What the driver says of a group of workers whose size may change."""

from __future__ import annotations

from pipeline.run.drive_training import ABSENCE_SECONDS, Absence
from tests.support.jobs import tiny_job


def test_an_absence_of_all_workers_is_said_once() -> None:
    absence = Absence(tiny_job(hardware__workers=[2, 16]).hardware)
    assert absence.look(0, 50.0) is None
    assert absence.look(0, 50.0 + ABSENCE_SECONDS - 1) is None
    said = absence.look(0, 50.0 + ABSENCE_SECONDS)
    assert said is not None
    assert said.startswith("hardware.workers [2, 16]: no worker has trained for 120 s. Everything ")
    assert "once it has room for 2 workers. `ray status` shows" in said
    assert absence.look(0, 50.0 + 2 * ABSENCE_SECONDS) is None


def test_each_absence_counts_from_the_last_worker() -> None:
    absence = Absence(tiny_job(hardware__workers=[2, 16]).hardware)
    assert absence.look(0, 0.0) is None
    assert absence.look(1, 60.0) is None
    assert absence.look(0, 100.0) is None
    assert absence.look(0, 99.0 + ABSENCE_SECONDS) is None
    assert absence.look(0, 100.0 + ABSENCE_SECONDS)
    assert absence.look(3, 500.0) is None
    assert absence.look(0, 600.0) is None
    assert absence.look(0, 600.0 + ABSENCE_SECONDS), "the second absence is said, too"
