"""Everything that changes during a run, as a pure function of the step.

So a resumed run needs nothing but its step. `step` counts finished steps: step 0 is the first step
trained. A step uses the learning rate at the end of the step: the first step of a warm-up has a
rate above 0, and the last step of a run has exactly `min_lr`. All rates scale by the same factor,
except Muon's if it does not decay, and by the factors of the step's phase. A step uses the momentum
and the window at its start.

wsd (warm-up, stable, decay) is from Hu et al. 2024, "MiniCPM"; cosine from Loshchilov and Hutter
2017, "SGDR".
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, get_args

from pion.config.model_config import ModelConfig
from pion.config.parts import Role, Windows
from pion.train.phases import Phase, phase_at
from pion.train.settings import TrainSettings


@dataclass(frozen=True)
class StepPlan:
    """What one optimizer step uses: rates by role, Muon's momentum, and the model's sizes.

    `lr` is the rate that metrics show: of AdamW, for roles without a separate rate. `parts` has the
    parts whose sizes in this step differ from the model's, by their field in ModelConfig.
    Parameters of `frozen` roles are not trained, nor those of bands that are not in `bands` (None:
    all are).
    """

    lr: float
    rates: Mapping[Role, float]
    momentum: float
    parts: Mapping[str, Any] = field(default_factory=dict)
    frozen: frozenset[Role] = frozenset()
    bands: tuple[int, ...] | None = None


def plan_at(settings: TrainSettings, step: int, config: ModelConfig | None = None) -> StepPlan:
    """Return what optimizer step `step` uses; `config` is the model's."""
    scale = lr_at(settings, step)
    rates = {role: peak * scale for role, peak in peak_rates(settings).items()}
    if settings.optimizer == "muon" and not settings.muon_decays:
        rates["matrix"] = settings.muon_lr
    phase = phase_at(settings.phases, step, settings.steps) if settings.phases else Phase()
    return StepPlan(
        lr=settings.lr * scale,
        rates={role: rate * phase.factor(role) for role, rate in rates.items()},
        momentum=momentum_at(settings, step),
        parts={} if config is None else _parts_at(settings, step, phase, config),
        frozen=phase.frozen_roles(),
        bands=phase.only_bands,
    )


def peak_rates(settings: TrainSettings) -> dict[Role, float]:
    """Return the highest rate of each role over the run, without the factors of phases."""
    return dict.fromkeys(get_args(Role), settings.lr) | {
        "matrix": settings.muon_lr if settings.optimizer == "muon" else settings.lr,
        "embedding": settings.embedding_lr or settings.lr,
        "head": settings.head_lr or settings.lr,
        "vector": settings.vector_lr or settings.lr,
    }


def _parts_at(
    settings: TrainSettings, step: int, phase: Phase, config: ModelConfig
) -> dict[str, Any]:
    parts = phase.parts(config)
    window = window_at(settings, step, config.windows)
    if config.windows is not None and window is not None:
        parts["windows"] = replace(config.windows, tokens=window)
    return parts


def momentum_at(settings: TrainSettings, step: int) -> float:
    """Return Muon's momentum, which rises in proportion to the share of the run that is done."""
    start, end = settings.muon_momentum_start, settings.muon_momentum
    return end if start is None else start + (end - start) * min(1.0, step / settings.steps)


def window_at(settings: TrainSettings, step: int, windows: Windows | None) -> int | None:
    """Return the long window in tokens; None: the model's.

    With the share s of the run that is done, a cubic window is 4s³ − 6s² + 3s of the model's, in
    whole blocks, rounded up (Daisy-Wee).
    """
    if windows is None or settings.window_schedule == "constant":
        return None
    done = min(1.0, step / settings.steps)
    share = 4 * done**3 - 6 * done**2 + 3 * done
    return max(1, math.ceil(windows.tokens * share / windows.block)) * windows.block


def lr_at(settings: TrainSettings, step: int) -> float:
    """Return the fraction of the peak learning rate, in [0, 1], that optimizer step `step` uses."""
    finished = step + 1
    if finished <= settings.warmup_steps:
        return finished / settings.warmup_steps
    start = decay_start(settings)
    if settings.schedule == "constant" or finished <= start:
        return 1.0
    progress = min(1.0, (finished - start) / max(1, settings.steps - start))
    linear = settings.schedule == "wsd" and settings.decay_shape == "linear"
    peak_share = 1.0 - progress if linear else 0.5 * (1.0 + math.cos(math.pi * progress))
    floor = settings.min_lr / settings.lr
    return floor + (1.0 - floor) * peak_share


def fixed_until(settings: TrainSettings) -> int:
    """Return the number of steps whose plan does not depend on `steps`.

    Up to this number of finished steps, `steps` can be raised without contradicting the finished
    steps. A momentum or a window that grows over the run, and a phase that ends at a share of the
    run, depend on `steps` from the start. A decay that is longer than the steps after the warm-up
    begins at the end of the warm-up.
    """
    return 0 if grows_over_the_run(settings) else decay_start(settings)


def grows_over_the_run(settings: TrainSettings) -> bool:
    """Return whether windows, momentum or phases are in proportion to `steps`."""
    shares = any(isinstance(phase.until, float) or phase.passes for phase in settings.phases)
    grows = settings.window_schedule != "constant" or settings.muon_momentum_start is not None
    return shares or grows


def decay_start(settings: Any) -> int:
    """Return the step at which the learning rate of TrainSettings, or of a job's section, begins to
    decay."""
    if settings.schedule == "constant":
        return settings.steps
    if settings.schedule == "cosine":
        return min(settings.warmup_steps, settings.steps)
    decay_steps = max(1, round(settings.decay_fraction * settings.steps))
    return min(max(settings.warmup_steps, settings.steps - decay_steps), settings.steps)
