"""The recipe of `pretrain: {recipe: pion2}`: its settings, by the width of the model and the steps.

The numbers were raced on a CPU, in models of 1M to 6M parameters (docs/recipes.md). Nobody has
trained a larger one with them here. Once they are released, they never change: finished runs
have recorded them. A better recipe gets another name.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pion.config.presets import PRESETS
from pipeline.job.model_section import Model

Recipe = Literal["pion2"]
# AdamW's rates are for this d_model, and in proportion to d_model^-½.
_D_MODEL = 768
# The most steps of the warm-up, and its largest share of a run.
_WARMUP, _SHARE = 40, 1 / 12
# The last rate, as a share of the peak.
_LAST = 0.05


def pion2(d_model: int, steps: int, lr: float | None = None) -> dict[str, str | int | float]:
    """Return the fields of `pretrain`, but for steps and batch, that are not a job's defaults.

    `lr` replaces the recipe's own, and `min_lr` follows it.
    """
    by_width = (d_model / _D_MODEL) ** -0.5
    lr = _rounded(3e-3 * by_width) if lr is None else lr
    return {
        "optimizer": "muon",
        "muon_lr": 0.02,
        "lr": lr,
        "embedding_lr": _rounded(0.1 * by_width),
        "vector_lr": _rounded(0.01 * by_width),
        "min_lr": _rounded(_LAST * lr),
        "warmup_steps": min(_WARMUP, int(_SHARE * steps)),
        "decay_shape": "linear",
        "decay_fraction": 0.65,
        "weight_decay": 0.0,
        "beta1": 0.8,
        "eps": 1e-10,
    }


def with_recipe(pretrain: Mapping[str, Any], model: Model) -> dict[str, Any]:
    """Return the fields of `pretrain` that a job gives, and its recipe for those it leaves open.

    Values of wrong types are left for the section to refuse. Raises ValueError if the model is one
    that others trained.
    """
    if model.base is not None:
        raise ValueError(
            "recipe: a recipe trains from random weights, and model.from names a trained model. "
            "Remove one of the two"
        )
    d_model = model.d_model or PRESETS.get(model.preset or "", {}).get("d_model")
    steps, lr = pretrain.get("steps"), pretrain.get("lr")
    if not isinstance(d_model, int) or not isinstance(steps, int) or steps < 1:
        return dict(pretrain)
    return {**pion2(d_model, steps, _number(lr)), **pretrain}


def _number(value: Any) -> float | None:
    """Return the number that a job's value will be read as; None if it is none."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


def _rounded(rate: float) -> float:
    return float(f"{rate:.3g}")
