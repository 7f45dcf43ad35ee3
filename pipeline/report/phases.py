"""What pretraining reads in its phases, in words."""

from __future__ import annotations

from pion.data.phased_order import Mix
from pipeline.job import Job


def phases_in_words(job: Job | None) -> list[tuple[int, str]]:
    """Return the first step of each phase, and what it reads in another way than the one before;
    nothing if that is not known."""
    if job is None or job.pretrain is None or not job.pretrain.steps_are_known:
        return []
    steps, section = [], job.pretrain
    for phase, changes in zip(job.mix_phases, section.phases):
        parts = [
            "" if changes.mix is None else _mix_in_words(changes.mix),
            "" if changes.seq_len is None else f"rows of {changes.seq_len:,} tokens",
            "" if changes.rope_theta is None else f"θ {changes.rope_theta:,.0f}",
        ]
        step = phase.start // section.global_batch + 1
        steps.append((step, ", ".join(filter(None, parts)) or "as before"))
    return steps


def _mix_in_words(mix: Mix) -> str:
    """Return `qa 4 times, the rest 67 % web, 33 % code`, or a part of it."""
    passes = [f"{name} {share[:-1]} times" for name, share in mix.items() if isinstance(share, str)]
    shares = {name: share for name, share in mix.items() if not isinstance(share, str)}
    parts = [f"{100 * n / sum(shares.values()):.3g} % {name}" for name, n in shares.items()]
    rest = ", ".join(parts if len(parts) > 1 else shares)
    return ", ".join([*passes, f"the rest {rest}" if passes else rest])
