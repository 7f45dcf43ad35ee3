"""The receipt of a hop: what changed with the machine, and an alarm if more than that changed."""

import pytest

from pion.untrusted import LARGEST_RECORD
from pipeline.state.rows.metrics import EventLog, MetricsLog
from pipeline.state.run_state import RunState
from pipeline.state.stores import FileStore
from pipeline.training.hop_receipt import hop_receipt, plan_changed, receipt

A40 = {
    "stage": "pretrain",
    "from_step": 0,
    "host": "host-a",
    "device": "NVIDIA A40",
    "workers": 1,
    "micro_batch": 16,
    "grad_accum": 4,
    "dtype": "bfloat16",
    "python": "3.11.9",
    "seq_len": 2048,
    "global_batch": 64,
    "lr": None,
    "next_row": 0,
}
A4000 = A40 | {
    "from_step": 1382,
    "host": "host-b",
    "device": "RTX A4000",
    "workers": 2,
    "micro_batch": 8,
    "lr": 3e-4,
    "next_row": 88_448,
}
REWARDS = A40 | {"stage": "reinforce"}
NEXT = {"from_step": 10, "next_row": 640}
LAST = {"step": 1382, "lr": 3e-4, "rows": [88_384, 88_448]}


def alarms(lines):
    return [line for line in lines if line.startswith("ALARM: ")]


def test_a_hop_shows_both_machines_and_that_the_run_is_the_same():
    assert receipt(A40, A4000, LAST) == [
        "hop: 1 × NVIDIA A40 on host-a → 2 × RTX A4000 on host-b",
        "micro_batch × grad_accum × workers: 16×4×1 → 8×4×2, 131,072 tokens per step as before",
        "not bit-identical: from this step on, the weights equal those of an unbroken run only up "
        "to rounding",
        "learning rate 0.0003 as before",
        "first row 88,448 = last + 1",
    ]
    assert "bit-identical" not in "".join(receipt(A40, A40 | NEXT | {"host": "host-b"}, None))


@pytest.mark.parametrize(
    ("name", "before", "now", "said"),
    [
        ("compile", True, False, "compile yes → no"),
        ("combo_kernels", True, False, "combo kernels yes → no"),
        ("sharded", False, True, "sharded no → yes"),
        ("torch", "2.11", "2.15", "torch 2.11 → 2.15"),
        ("threads", 2, 1, "threads 2 → 1"),  # on a CPU
        ("residual", "float32", "bfloat16", "residual float32 → bfloat16"),
    ],
)
def test_what_rounds_in_another_way_is_shown_and_no_alarm(name, before, now, said):
    lines = receipt(A40 | {name: before}, A40 | NEXT | {name: now}, None)
    assert lines[0] == "same machine: 1 × NVIDIA A40 on host-a"
    assert said in lines
    assert any(line.startswith("not bit-identical") for line in lines)
    samples = receipt(REWARDS | {name: before}, REWARDS | NEXT | {name: now}, None)
    assert any("some answers may differ from those" in line for line in samples)
    assert not alarms(lines)
    assert plan_changed(A40 | {name: before}, A40 | NEXT | {name: now})


@pytest.mark.parametrize("now", [{}, {"threads": 1}, {"compile": True, "torch": "2.15.0+cu132"}])
def test_what_an_attempt_has_not_recorded_is_no_change_of_its_plan(now):
    assert not plan_changed(A40, A40 | NEXT | now)


def test_another_python_or_precision_is_shown_and_rounding_of_the_rate_is_no_alarm():
    now = A4000 | {"python": "3.12.1", "dtype": "float32", "lr": 3e-4 * (1 + 1e-13)}
    lines = receipt(A4000 | {"from_step": 5}, now, LAST)
    assert lines[0] == "same machine: 2 × RTX A4000 on host-b"
    assert "8×4×2 as before" in lines[1]
    assert "dtype bfloat16 → float32" in lines
    assert "python 3.11.9 → 3.12.1" in lines
    assert not alarms(lines)


@pytest.mark.parametrize(
    ("change", "alarm"),
    [
        ({"seq_len": 1024}, "65,536 tokens per step instead of 131,072"),
        ({"global_batch": 32}, "65,536 tokens per step instead of 131,072"),
        ({"grad_accum": 3}, "8×3×2 computes only 48 of the 64 sequences"),
        ({"next_row": 88_449}, "first row 88,449, but the next row should be 88,448: rows"),
        ({"next_row": 88_384}, "would be repeated"),
        ({"next_row": 90_000}, "would be skipped"),
        ({"lr": 3e-4 * (1 + 1e-11)}, "the schedule has changed"),
        ({"from_step": 0}, "first row 88,448, but the next row should be 0"),
    ],
)
def test_what_a_hop_must_not_change_is_an_alarm_and_never_as_before(change, alarm):
    lines = receipt(A40, A4000 | change, LAST)
    (found,) = alarms(lines)
    assert alarm in found
    assert "everything committed is safe" in found
    subject = found.removeprefix("ALARM: ").split()[0]  # "learning", "first" or a number
    assert not any(line.startswith(subject) and "as before" in line for line in lines)


def test_what_can_not_be_compared_is_said_to_be_so():
    lines = receipt(A40, A4000, None)
    assert "as before" not in "".join(lines[2:])
    assert "= last + 1" not in "".join(lines)
    assert sum("can't be compared" in line for line in lines) == 2


def test_a_hop_before_anything_was_kept_starts_at_row_0():
    now = A4000 | {"from_step": 0, "next_row": 0, "lr": None}
    lines = receipt(A40, now, None)
    assert lines[-1] == "first row 0, because this stage has no saved step"
    assert not alarms(lines)


@pytest.mark.parametrize("change", [{"seq_len": 1024}, {"global_batch": 32}])
def test_a_stage_that_starts_over_may_have_another_batch(change):
    """As with `--redo pretrain` and a changed setting."""
    now = A4000 | {"from_step": 0, "next_row": 0, "lr": None, "compile": False} | change
    lines = receipt(A40 | {"compile": True}, now, None)
    assert not alarms(lines)
    assert lines[1].endswith("65,536 tokens per step")
    assert not any(line.startswith("not bit-identical") for line in lines)


def test_a_hop_at_a_stage_boundary_compares_the_machines_only():
    now = A4000 | {"stage": "sft", "seq_len": 512, "global_batch": 8, "from_step": 0, "next_row": 0}
    lines = receipt(A40, now, None)
    assert len(lines) == 2
    assert not alarms(lines)
    assert "as before" not in lines[1]


def test_a_device_cannot_drive_the_terminal():
    assert "\x1b" not in receipt(A40, A4000 | {"device": "\x1b[2J"}, LAST)[0]


# ---------------------------------------------------------------- read from a store


@pytest.fixture
def run(tmp_path):
    return RunState(FileStore(tmp_path), "demo")


def attempt(run, epoch, event, steps, lr=3e-4):
    """Write an attempt that trained `steps`, with two steps per segment."""
    events = EventLog(run.store, run.name, epoch)
    events.append("phase", name="import", seconds=1.0)
    events.append("training", **event)
    events.flush()
    metrics = MetricsLog(run.store, run.name, event["stage"], epoch)
    for step in steps:
        metrics.append({"step": step, "lr": lr, "rows": [64 * (step - 1), 64 * step]})
        metrics.append({"step": step, "held_out_loss": 3.0})
        if step % 2 == 0:
            metrics.flush()
    metrics.flush()


def test_the_last_kept_step_is_found_behind_what_was_rewound(run):
    attempt(run, 2, A40, range(1, 21))  # saved at 16; the steps after it were lost
    now = A4000 | {"from_step": 16, "next_row": 64 * 16}
    assert hop_receipt(run, 4, now)[-2:] == [
        "learning rate 0.0003 as before",
        "first row 1,024 = last + 1",
    ]
    assert len(alarms(hop_receipt(run, 4, now | {"next_row": 64 * 20}))) == 1


def test_the_newest_attempt_is_compared_with_and_the_present_one_is_not(run):
    attempt(run, 2, A40, range(1, 7))
    attempt(run, 4, A4000 | {"from_step": 6}, range(7, 11))
    now = A40 | {"from_step": 10, "next_row": 640, "lr": 3e-4}
    attempt(run, 6, now, range(0))
    assert hop_receipt(run, 6, now)[0] == "hop: 2 × RTX A4000 on host-b → 1 × NVIDIA A40 on host-a"
    assert hop_receipt(run, 6, A4000 | {"from_step": 10}) == []


def test_a_first_attempt_has_no_receipt(run):
    assert hop_receipt(run, 2, A40) == []


def test_an_attempt_that_saved_nothing_is_compared_by_its_schedule(run):
    """The last step before a fork was trained under another schedule than the fork's."""
    attempt(run, 1, A40, range(1, 7), lr=1e-2)
    attempt(run, 2, A40 | {"from_step": 6, "lr": 3e-4, "next_row": 384}, range(7, 9))
    now = A4000 | {"from_step": 6, "next_row": 384}
    assert not alarms(hop_receipt(run, 4, now))
    assert len(alarms(hop_receipt(run, 4, now | {"lr": 1e-3}))) == 1


def test_metrics_of_other_epochs_are_not_all_read(run):
    attempt(run, 2, A40, range(1, 101))
    attempt(run, 4, A40 | {"from_step": 100}, range(101, 121))
    reads = []

    class Counted(FileStore):
        def read(self, key, limit=LARGEST_RECORD):
            reads.append(key)
            return super().read(key, limit)

    store = Counted(run.store.folder)
    now = A4000 | {"from_step": 118, "next_row": 64 * 118}
    assert not alarms(hop_receipt(RunState(store, "demo"), 6, now))
    assert len(reads) <= 4
