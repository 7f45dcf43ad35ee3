"""Predict a run's bits per byte by a ladder, before the run pretrains (`evaluate.ladder`)."""

from __future__ import annotations

from dataclasses import dataclass

from pion.errors import BadInput
from pipeline.job import Job
from pipeline.run.stage_plan import WorkLeft, stages_until
from pipeline.state.stores import Store

KEY = "evaluate.ladder"


@dataclass(frozen=True)
class RunPrediction:
    """What a ladder predicts of the held-out text after pretraining.

    Attributes:
        ladder: the ladder's name.
        digest: that of the stage `pretrain` that it is for.
        times: the FLOPs of training, as a multiple of those of the ladder's largest run.
        trusted_times: up to which multiple the ladder is trusted.
        bits_per_byte, low, high: the prediction, and between which numbers 90 % of such runs end.
            None: the ladder is not trusted so far.
        other: settings of the data and the tokenizer in which the ladder's runs differ.
    """

    ladder: str
    digest: str
    macs_per_token: int
    tokens: int
    times: float
    trusted_times: float
    bits_per_byte: float | None
    low: float | None
    high: float | None
    other: tuple[str, ...]


def predict(
    job: Job, store: Store, left: WorkLeft, until: str | None = None
) -> RunPrediction | None:
    """Return what the job's ladder predicts of the pretraining that is about to begin.

    Return None if the job names no ladder, and if no pretraining begins: it is done, or has a
    checkpoint. Then the ladder is not read: a prediction made that late would be none. Raises
    BadInput for a ladder that the store does not have or that has no fit, and for a job that
    trains no model from random weights; and StoreError.
    """
    name = job.evaluate.ladder
    if name is None:
        return None
    pretrain = job.pretrain
    if pretrain is None or pretrain.init_from is not None or job.base is not None:
        raise BadInput(
            f"{KEY}: a ladder predicts pretraining from random weights, and this job has none. "
            f"Nothing was started. Remove {KEY}."
        )
    if not _begins(job, left, until):
        return None
    # These import numpy and torch, which most starts do not need so early.
    from pion.model.params_and_flops import cost_of
    from pipeline.ladder.law import training_flops
    from pipeline.ladder.record import read_stored_fit

    without = f"Nothing was started. Without {KEY}, the run trains the same and predicts nothing."
    stored = read_stored_fit(store, name, KEY, without)
    macs_per_token = cost_of(job.model_config_resolved()).macs_per_token
    tokens = pretrain.total_steps * pretrain.global_batch * job.seq_len("pretrain")
    flops, fit = training_flops(macs_per_token, tokens), stored.fit
    said = fit.predict(macs_per_token, tokens) if fit.trusts(flops) else None
    return RunPrediction(
        ladder=name,
        digest=left.digests.stages["pretrain"],
        macs_per_token=macs_per_token,
        tokens=tokens,
        times=flops / fit.largest_flops,
        trusted_times=fit.trusted_flops / fit.largest_flops,
        bits_per_byte=None if said is None else said.bits_per_byte,
        low=None if said is None else said.low,
        high=None if said is None else said.high,
        other=tuple(one.path for one in stored.other_text(left.digests)),
    )


def _begins(job: Job, left: WorkLeft, until: str | None) -> bool:
    """Return whether this start begins to pretrain, under these settings."""
    if "pretrain" not in stages_until(job.stages, until):
        return False
    state = next(plan.state for plan in left.plans if plan.stage == "pretrain")
    return left.redo in ("prepare", "pretrain") or state not in ("done", "resume")
