"""Learning-rate schedules, in optimizer steps.

`step` counts finished steps, so step 0 is the first step trained. A step uses the schedule's value
at the end of the step: the first step of a warm-up has a rate above 0, and the last step of a run
has exactly `min_lr`. AdamW's and Muon's rates scale by the same factor.

wsd (warm-up, stable, decay) is from Hu et al. 2024, "MiniCPM"; cosine from Loshchilov and Hutter
2017, "SGDR".
"""

from __future__ import annotations

import math

from pion.train.settings import TrainSettings


def lr_at(settings: TrainSettings, step: int) -> float:
    """Return the fraction of the peak learning rate, in [0, 1], that optimizer step `step` uses."""
    finished = step + 1
    if finished <= settings.warmup_steps:
        return finished / settings.warmup_steps
    start = decay_start(settings)
    if settings.schedule == "constant" or finished <= start:
        return 1.0
    progress = min(1.0, (finished - start) / max(1, settings.steps - start))
    if settings.schedule == "wsd" and settings.decay_shape == "linear":
        peak_share = 1.0 - progress
    else:
        peak_share = 0.5 * (1.0 + math.cos(math.pi * progress))
    floor = settings.min_lr / settings.lr
    return floor + (1.0 - floor) * peak_share


def decay_start(settings: TrainSettings) -> int:
    """Return the number of steps whose rate does not depend on `steps`.

    Up to this number of finished steps, `steps` can be raised without contradicting the finished
    steps. A decay that is longer than the steps after the warm-up begins at the end of the warm-up.
    """
    if settings.schedule == "constant":
        return settings.steps
    if settings.schedule == "cosine":
        return min(settings.warmup_steps, settings.steps)
    decay_steps = max(1, round(settings.decay_fraction * settings.steps))
    return min(max(settings.warmup_steps, settings.steps - decay_steps), settings.steps)
