"""What a search has found, in words."""

from __future__ import annotations

import math
from collections.abc import Sequence

from pipeline.console.formats import measured
from pipeline.ladder.halving import Choice, Difference
from pipeline.ladder.vary import Setting

UNIT = "nats per token"
# Of more settings than this, only the number is said; the table has them all.
SHOWN = 3


def verdict(choice: Choice, settings: Sequence[Setting]) -> str:
    """Return what is better than what, and what is noise: "pretrain.lr=2e-3 is better than 1e-3:
    −0.011 ± 0.003 nats per token at step 240; 4e-3 is noise: −0.002 ± 0.003 …"."""
    words = _words(settings)
    worse = [d for d in choice.others if d.sure and not d.diverged]
    noise = [d for d in choice.others if not d.sure]
    diverged = [words[d.setting] for d in choice.others if d.diverged]
    parts = [f"is better than {words[d.setting]}: {_difference(d)}" for d in worse[:SHOWN]]
    if len(worse) > SHOWN:
        parts.append(f"is better than {len(worse) - SHOWN} more")
    parts = [f"{choice.setting} {'; it '.join(parts) if parts else 'is lowest'}"]
    if diverged:
        parts.append(f"{_and(diverged)} diverged")
    return "; ".join([*parts, *_noise(noise, words)])


def _noise(noise: Sequence[Difference], words: dict[str, str]) -> list[str]:
    """Return a clause about the settings that nothing tells from the chosen one, if there are."""
    if not noise:
        return []
    if len(noise) > SHOWN:
        most = max(noise, key=lambda d: abs(d.mean))
        return [f"the other {len(noise)} are noise, at most {_difference(most)}"]
    return [f"{words[d.setting]} is noise: {_difference(d)}" for d in noise]


def _difference(difference: Difference) -> str:
    mean, sem = difference.mean, difference.sem
    value = measured(abs(mean), sem) if math.isfinite(sem) else f"{abs(mean):.3f} ± unknown"
    return f"{'−' if mean < 0 else '+'}{value} {UNIT} at step {difference.step:,}"


def _words(settings: Sequence[Setting]) -> dict[str, str]:
    """Return what to call a setting next to another, by its name: its value, if one key varies."""
    one_key = all(len(setting.overrides) == 1 for setting in settings)
    return {s.name: s.values if one_key else s.name for s in settings}


def _and(words: Sequence[str]) -> str:
    return f"{', '.join(words[:-1])} and {words[-1]}" if len(words) > 1 else words[0]
