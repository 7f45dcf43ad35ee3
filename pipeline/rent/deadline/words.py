"""What is said about a run with a deadline, made from numbers: times in Unix seconds, the rest in
seconds. Nothing here reads a clock or a store."""

from __future__ import annotations

from datetime import UTC, datetime

DAY = 86_400.0


def outlook(deadline: float, now: float, work: float, slack: float, reserve: float) -> str:
    """Return when the run should be done, the work that is left, and until when spot may be waited
    for.

    `work` is what a machine on demand would still do, `slack` what may still be lost, and `reserve`
    the slack at which waiting for spot ends.
    """
    left = deadline - now
    when = f"in {about(left)}" if left >= 0 else f"{about(-left)} ago"
    words = f"deadline {clock(deadline, now)} ({when}); {about(work)} of work on demand; "
    if slack > reserve:
        return words + (
            f"spot may be waited for until {clock(now + slack - reserve, now)} "
            f"({about(slack)} of slack, {about(reserve)} kept in reserve)"
        )
    if slack >= 0:
        return words + (
            f"spot is not waited for ({about(slack)} of slack, {about(reserve)} kept in reserve)"
        )
    return words + f"late by {about(-slack)}"


def watch_by(moment: float, now: float) -> str:
    """Return what to say at launch: the last moment at which somebody must watch."""
    if moment <= now:
        return "somebody must watch from now on, or the deadline is at risk"
    return (
        f"somebody must watch again by {clock(moment, now)} (in {about(moment - now)}), or the "
        "deadline is at risk"
    )


def renting_on_demand(
    machines: str,
    price: float | None,
    most: float | None,
    *,
    now: float,
    waited_since: float | None,
) -> str:
    """Return why a machine on demand is rented, and what that costs.

    `machines` are those that are requested. `price` is the lowest price, in dollars per hour of all
    nodes, and `most` the dollars for all work that is left, on the machine where they are the most;
    None if unknown. `waited_since` is when the run began to wait for spot; None if a spot machine
    owns it, but is silent or too slow.
    """
    if waited_since is None:
        why = "the spot machine is silent or slower than thought, and the margin is reached"
    else:
        why = f"no spot machine since {clock(waited_since, now)} and the reserve is reached"
    words = f"{why}: renting {machines} on demand"
    if price is None or most is None:
        return f"{words}, at an unknown price"
    return f"{words}, from ${price:.2f}/h; at most ${most:.2f} more"


def none_on_demand(machines: str, waited: float, slack: float) -> str:
    """Return that no machine on demand has come, and for how long the slack still lasts."""
    lasts = f"slack lasts {about(slack)} more" if slack > 0 else "the slack is used up"
    return f"no {machines} on demand in {about(waited)}; SkyPilot keeps asking; {lasts}"


def back_on_spot(machine: str) -> str:
    """Return that a spot machine has relieved the machine on demand."""
    return f"back on spot {machine}; on demand ended"


def to_the_end(slack: float, loss: float) -> str:
    """Return why the run stays on demand: a spot machine that is lost would cost `loss`."""
    return (
        f"on demand to the end: slack {about(slack)}, a spot machine that is lost would cost "
        f"{about(loss)}"
    )


def missed(
    late: float, *, now: float, unwatched: tuple[float, float] | None = None, refused: float = 0.0
) -> str:
    """Return by how much the deadline is missed, and why as far as that is known.

    `unwatched` is from when to when nobody watched; `refused` is for how long no machine on demand
    could be had.
    """
    words = f"the deadline is missed by {about(late)}"
    if unwatched is not None:
        words += f": nobody watched from {clock(unwatched[0], now)} to {clock(unwatched[1], now)}"
    elif refused > 0:
        words += f": no machine on demand could be had for {about(refused)}"
    return f"{words}; on demand to the end"


def about(seconds: float) -> str:
    """Return `9 min`, `2.1 h` or `31 h`."""
    if abs(seconds) < 5400:
        return f"{round(seconds / 60)} min"
    return f"{seconds / 3600:.1f}".removesuffix(".0") + " h"


def clock(at: float, now: float) -> str:
    """Return `18:00 UTC` of today, `18:00 UTC Tue` within six days, else the date too."""
    then, today = datetime.fromtimestamp(at, UTC), datetime.fromtimestamp(now, UTC)
    if then.date() == today.date():
        return f"{then:%H:%M} UTC"
    if abs(at - now) < 6 * DAY:
        return f"{then:%H:%M} UTC {then:%a}"
    return f"{then:%Y-%m-%d %H:%M} UTC"
