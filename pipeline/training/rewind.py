"""What to do when a training step goes wrong: which rows to leave out, and when to give up.

Nothing of a wrong step is saved. The stage restarts from its newest checkpoint, under a new epoch.
Before that, HEAD records the change: the rows of that step are left out.
"""

from __future__ import annotations

from collections.abc import Iterable

from pion.data.order import step_rows
from pion.errors import PionError, Trouble
from pipeline.state.records import Head, SkippedRows

RowRange = tuple[int, int]  # [first, stop)

# A rewind is forgiven once a checkpoint this many steps after its trouble is committed.
SETTLED_STEPS = 100


def plan_rewind(
    head: Head, stage: str, digest: str, trouble: Trouble, max_rewinds: int, now: float
) -> SkippedRows:
    """Return the rows to record as skipped in `head` before `stage` goes back; `now` is Unix time.

    A rewind counts until a checkpoint at least 100 steps beyond its trouble is committed. If
    `max_rewinds` of them count already, raise PionError. So isolated spikes never stop a run, and a
    run that goes wrong everywhere stops soon.
    """
    known = _skipped(head, stage, digest)
    (first,), _ = step_rows(trouble.rows[0], 1, [(rows.first, rows.stop) for rows in known])
    skip = SkippedRows(
        first=first,
        stop=trouble.rows[1],
        step=trouble.step,
        epoch=head.epoch,
        digest=digest,
        why=trouble.what,
        at=now,
    )
    saved = _newest_step(head, stage, digest)
    counting = [rows for rows in known if rows.step > saved - SETTLED_STEPS]
    if len(counting) >= max_rewinds:
        raise PionError(_gives_up(stage, [*counting, skip], max_rewinds, saved))
    return skip


def rows_to_skip(
    head: Head, stage: str, digest: str, next_row: int, skipped: Iterable[RowRange] = ()
) -> list[RowRange]:
    """Return what a trainer restored at `next_row` must leave out, as sorted ranges that don't
    touch.

    These are the ranges it has `skipped` already, and those that `head` records from `next_row` on.
    A record of rows before `next_row` adds nothing: the checkpoint itself says what became of them.
    """
    ahead = [
        (max(rows.first, next_row), rows.stop)
        for rows in _skipped(head, stage, digest)
        if rows.stop > next_row
    ]
    merged: list[RowRange] = []
    for first, stop in sorted([*skipped, *ahead]):
        if merged and first <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(stop, merged[-1][1]))
        else:
            merged.append((first, stop))
    return merged


def _skipped(head: Head, stage: str, digest: str) -> list[SkippedRows]:
    return [rows for rows in head.skipped.get(stage, ()) if rows.digest == digest]


def _newest_step(head: Head, stage: str, digest: str) -> int:
    """Return the step of the stage's newest checkpoint; 0 if none is committed."""
    steps = [e.step for e in head.checkpoints if (e.stage, e.digest) == (stage, digest)]
    return max(steps, default=0)


def _gives_up(stage: str, troubles: list[SkippedRows], max_rewinds: int, saved: int) -> str:
    times = "once" if len(troubles) == 1 else f"{len(troubles)} times"
    what = [
        f"  step {rows.step:,} on rows {rows.first:,} to {rows.stop - 1:,} gave {rows.why}"
        for rows in troubles
    ]
    if saved:
        safe = f"The checkpoint of step {saved:,}, from before, is safe"
        change = f"in a new run (`pion fork RUN NEW --at {saved}`) or with `--redo {stage}`"
    else:
        safe = "There is no checkpoint of this stage yet; stages before it are safe"
        change = "in the job, and run the same command again"
    more = 2 * max_rewinds or 1
    return "\n".join(
        [
            f"{stage} went wrong {times} without getting {SETTLED_STEPS} saved steps past it "
            f"(checkpoint.max_rewinds is {max_rewinds}), and has stopped:",
            *what,
            f"{safe}; nothing of these steps was saved. What you can do:",
            f"  wrong at one batch after another: lower {stage}.lr, lengthen {stage}.warmup_steps "
            f"or tighten {stage}.clip, {change};",
            "  wrong at some batches only: look at those rows of the data;",
            f"  to continue regardless: `pion run JOB checkpoint.max_rewinds={more}` leaves out "
            f"more rows, and a higher {stage}.max_spike lets greater spikes pass.",
        ]
    )
