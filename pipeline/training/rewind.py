"""What to do when a training step goes wrong: which rows to leave out, and when to give up.

Nothing of a wrong step is saved. HEAD records that the step's rows are left out. Then the stage
restarts from its newest checkpoint, under a new epoch.
"""

from __future__ import annotations

from collections.abc import Iterable

from pion.data.order import step_rows
from pion.errors import PionError, Trouble
from pipeline.state.head import Head, SkippedRows

RowRange = tuple[int, int]  # [first, stop)

# A rewind no longer counts once a checkpoint this many steps after its trouble is committed.
SETTLED_STEPS = 100


def plan_rewind(
    head: Head, stage: str, digest: str, trouble: Trouble, max_rewinds: int, now: float
) -> SkippedRows:
    """Return the rows to record as skipped in `head` before `stage` goes back; `now` is Unix time.

    A rewind counts until a checkpoint at least 100 steps after its trouble is committed. Raises
    PionError if `max_rewinds` of them already count. So isolated spikes never stop a run, and a run
    that goes wrong everywhere stops soon.
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
    steps = (e.step for e in head.checkpoints if (e.stage, e.digest) == (stage, digest))
    saved = max(steps, default=0)  # 0: none is committed
    counting = [rows for rows in known if rows.step > saved - SETTLED_STEPS]
    if len(counting) >= max_rewinds:
        raise PionError(_gives_up(stage, [*counting, skip], max_rewinds, saved))
    return skip


def rows_to_skip(
    head: Head, stage: str, digest: str, next_row: int, skipped: Iterable[RowRange] = ()
) -> list[RowRange]:
    """Return the rows that a trainer restored at `next_row` must leave out, as sorted ranges that
    don't touch.

    These are the ranges that it has `skipped` already, and the ranges in `head` from `next_row` on.
    The checkpoint itself records what happened to rows before `next_row`.
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


def _gives_up(stage: str, troubles: list[SkippedRows], max_rewinds: int, saved: int) -> str:
    times = "once" if len(troubles) == 1 else f"{len(troubles)} times"
    what = [
        f"  step {rows.step:,} on rows {rows.first:,} to {rows.stop - 1:,} gave {rows.why}"
        for rows in troubles
    ]
    if saved:
        safe = f"The earlier checkpoint of step {saved:,} is safe"
        change = f"in a new run (`pion fork RUN NEW --at {saved}`) or with `--redo {stage}`"
    else:
        safe = "This stage has no checkpoint yet. Earlier stages are safe"
        change = "in the job, and run the same command again"
    more = 2 * max_rewinds or 1
    return "\n".join(
        [
            f"{stage} went wrong {times} without getting {SETTLED_STEPS} saved steps past the "
            f"problem (checkpoint.max_rewinds is {max_rewinds}), and has stopped:",
            *what,
            f"{safe}. Nothing of these steps was saved. Your options:",
            f"  if batch after batch went wrong, lower {stage}.lr, raise {stage}.warmup_steps or "
            f"lower {stage}.clip, {change};",
            "  if only some batches went wrong, look at their rows in the data;",
            f"  to continue anyway, `pion run JOB checkpoint.max_rewinds={more}` skips more "
            f"rows, and a higher {stage}.max_spike accepts larger spikes.",
        ]
    )
