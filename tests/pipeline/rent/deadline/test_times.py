"""What a run has measured decides the times behind its deadline."""

from pipeline.machine.rented import PAID_TO_FIRST_STEP
from pipeline.rent.deadline.times import Measured, measured_in


def event(kind, **fields):
    return {"event": kind, "epoch": 1, "at": 1e9, **fields}


def test_boots_stalls_and_writes_are_medians_of_what_was_reported():
    boots = [event("phase", name=PAID_TO_FIRST_STEP, seconds=s) for s in (100.0, 900.0, 200.0)]
    others = [event("phase", name="install", seconds=40.0), event("training", stage="sft")]
    saves = [
        event("saved", stall=stall, write=write)
        for stall, write in ((0.1, 9.0), (0.3, 30.0), (0.2, None), (None, 20.0))
    ]
    assert measured_in([*boots, *others, *saves]) == Measured(boot=200.0, stall=0.2, write=20.0)
    assert measured_in(others) == Measured()
