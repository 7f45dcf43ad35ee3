"""The job file: what all training stages have, pretraining, and the settings that follow.
job_fields.py names the other sections.

A changed default or a new field moves digests, so finished stages would train again. section.py
says how to avoid that; tests/pipeline/job/test_digest_frozen.py tells.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import PrivateAttr, model_validator

from pion.config.part_fields import FACTOR
from pion.config.parts import Role
from pion.config.presets import PRESETS
from pion.data.order import rows_per_rank
from pion.errors import BadInput
from pion.train.optimizers import OPTIMIZERS, OptimizerName
from pion.train.phases import Phase as TrainPhase
from pion.train.phases import check_phases
from pipeline.job.model_section import Model
from pipeline.job.phase_sections import Phase, PretrainPhase
from pipeline.job.section import (
    BATCH,
    STEPS,
    Section,
    identity,
    made,
    mistakes_of,
    refuse,
    runtime,
    scheduled,
)

if TYPE_CHECKING:
    from pion.train.settings import Learning, TrainSettings

# With fewer steps, a model changes little, whatever the rate.
FEWEST_STEPS = 30

# The recipe of `pretrain: {recipe: pion2}`: its settings, by the width of the model and the steps.
# The numbers were raced on a CPU, in models of 1M to 6M parameters (docs/recipes.md). Nobody has
# trained a larger one with them here. Once they are released, they never change: finished runs
# have recorded them. A better recipe gets another name.
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
    lr = three_digits(3e-3 * by_width) if lr is None else lr
    return {
        "optimizer": "muon",
        "muon_lr": 0.02,
        "lr": lr,
        "embedding_lr": three_digits(0.1 * by_width),
        "vector_lr": three_digits(0.01 * by_width),
        "min_lr": three_digits(_LAST * lr),
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


def three_digits(rate: float) -> float:
    """Return a rate as jobs write it, with three digits."""
    return float(f"{rate:.3g}")


WARMUP = (
    "steps of linear warm-up; unset: the default, or a tenth of the steps if the stage has no more "
    "steps than the default"
)


class Train(Section):
    """The fields that all training stages have."""

    steps: int | None = scheduled(..., "optimizer steps", gt=0, most=STEPS)
    global_batch: int = identity(
        64, "sequences in one optimizer step, for any number of GPUs", gt=0, most=BATCH
    )
    lr: float = scheduled(3e-4, "peak learning rate", gt=0, most=FACTOR)
    min_lr: float = scheduled(3e-5, "learning rate at the end of the schedule", ge=0, most=FACTOR)
    warmup_steps: int | None = scheduled(1000, WARMUP, ge=0, most=STEPS)
    schedule: Literal["wsd", "cosine", "constant"] = scheduled(
        "wsd", "after the warm-up: wsd (stable, then decay), cosine, or constant"
    )
    decay_shape: Literal["cosine", "linear"] = scheduled("cosine", "shape of the decay (wsd only)")
    decay_fraction: float = scheduled(
        0.2,
        "share of the steps that the decay at the end takes (wsd only)",
        gt=0,
        le=1,
    )
    optimizer: OptimizerName = scheduled(
        "adamw", "; ".join(f"{name}: {row.description}" for name, row in OPTIMIZERS.items())
    )
    muon_lr: float = scheduled(0.02, "peak learning rate of Muon", gt=0, most=FACTOR)
    muon_momentum: float = scheduled(0.95, "momentum of Muon", ge=0, lt=1)
    muon_momentum_start: float | None = scheduled(
        None,
        "momentum of Muon at the start, which rises to muon_momentum at the end; unset: constant",
        before=None,
        ge=0,
        lt=1,
    )
    muon_decays: bool = scheduled(
        True, "let muon_lr follow the schedule; false: it is constant", before=True
    )
    embedding_lr: float | None = scheduled(
        None,
        "peak learning rate of embeddings and value tables; unset: lr",
        before=None,
        gt=0,
        most=FACTOR,
    )
    head_lr: float | None = scheduled(
        None, "peak learning rate of an untied head; unset: lr", before=None, gt=0, most=FACTOR
    )
    vector_lr: float | None = scheduled(
        None, "peak learning rate of gains and scalars; unset: lr", before=None, gt=0, most=FACTOR
    )
    window_schedule: Literal["constant", "cubic"] = scheduled(
        "constant",
        "cubic: a model's windows grow from one block to their full size over the run",
        before="constant",
    )
    weight_decay: float = scheduled(
        0.1, "decoupled weight decay of matrices and embeddings", ge=0, most=FACTOR
    )
    primitive_weight_decay: float = scheduled(
        0.0,
        "decoupled weight decay of primitives, while a recipe uses them",
        before=0.0,
        ge=0,
        most=FACTOR,
    )
    phases: list[Phase] | list[PretrainPhase] = scheduled(
        [], "phases with their own rates, recipe sizes and trained bands, in order", before=[]
    )
    beta1: float = scheduled(0.9, "decay rate of AdamW's first moment", ge=0, lt=1)
    beta2: float = scheduled(0.95, "decay rate of AdamW's second moment", ge=0, lt=1)
    eps: float = scheduled(1e-8, "AdamW's epsilon", gt=0, most=FACTOR)
    clip: float = scheduled(1.0, "limit of the gradient's norm; 0: no limit", ge=0, most=10**9)
    max_spike: float | None = runtime(
        None,
        "roll back a step whose loss exceeds this multiple of the recent median; unset: no limit",
        gt=1,
        most=10**9,
    )
    pause_at: int | None = runtime(
        None,
        "save after this step and stop with exit code 4. A later start with a larger value, or "
        "without this field, continues. This field does not change the schedule, which is made for "
        "all steps; unset: do all steps",
        gt=0,
        most=STEPS,
    )

    # Weights that the stage's way of learning can't train.
    without_loss: ClassVar[frozenset[Role]] = frozenset()

    _warmup_given: bool = PrivateAttr(default=True)
    _rows: int | None = PrivateAttr(default=None)

    @model_validator(mode="after")
    def _schedule_fits(self) -> Train:
        self._warmup_given = "warmup_steps" in self.model_fields_set
        mistakes = [] if self.steps is None else self._fit_steps(self.steps)
        start, momentum = self.muon_momentum_start, self.muon_momentum
        too_high = {
            f"min_lr: {self.min_lr} is above lr {self.lr}": self.min_lr > self.lr,
            f"muon_momentum_start: {start} is above muon_momentum {momentum}": (
                start is not None and start > momentum
            ),
        }
        return refuse(self, mistakes + made(too_high))

    def _fit_steps(self, steps: int) -> list[str]:
        """Shorten the default warm-up if need be; return what does not fit into `steps`."""
        warmup = self.warmup_steps
        if warmup is None or (not self._warmup_given and warmup >= steps):
            self.warmup_steps = warmup = steps // 10
        too_long = {f"warmup_steps: {warmup} must be below steps {steps}": warmup >= steps}
        never = "; the rate never falls: give a share or a number of steps"
        mistakes = {
            f"phases.{number}.until: decay{never}": phase.until == "decay"
            for number, phase in enumerate(self.phases)
            if self.schedule == "constant"
        }
        if wrong := made(mistakes | too_long):
            return wrong
        return mistakes_of(check_phases, phases_of(self), steps)

    def know_rows(self, rows: int) -> None:
        """Learn how many rows the stage's data has, from which its steps may follow.

        Raises BadInput if the schedule does not fit into the steps.
        """
        self._rows = rows
        steps, warmup = self.total_steps, self.total_warmup_steps
        if warmup >= steps:
            key = f"{type(self).__name__.lower()}.warmup_steps"
            raise BadInput(
                f"{key}: {warmup} must be below the {steps} steps that the data gives "
                f"({rows:,} rows). Nothing was lost. Lower {key}, or give more data or epochs"
            )

    @property
    def rows(self) -> int | None:
        """The rows that `know_rows` gave; None before."""
        return self._rows

    @property
    def total_steps(self) -> int:
        """The optimizer steps: as given, or for the passes over the rows that `know_rows` gave."""
        if self.steps is not None:
            return self.steps
        assert self._rows is not None, "the rows of the data are not known yet"
        return max(1, math.ceil(self.passes * self._rows / self.global_batch))

    @property
    def steps_are_known(self) -> bool:
        """Whether `total_steps` can be asked for."""
        return self.steps is not None or self._rows is not None

    @property
    def passes(self) -> float:
        """The passes over the data, where the job gives them in place of steps."""
        raise AssertionError("a stage without steps has epochs")

    def batch_for(self, rows: int) -> int:
        """Return the largest power of 2, or 1, with which the passes over so many rows make
        FEWEST_STEPS steps; a stage that gives steps is taken to ask for one pass."""
        most = int((self.passes if self.steps is None else 1.0) * rows / FEWEST_STEPS)
        return 1 << (most.bit_length() - 1) if most else 1

    def rows_of_step(self, seq_len: int) -> int:
        """Return the rows of so many tokens that are trained on in a step."""
        return self.global_batch

    @property
    def total_warmup_steps(self) -> int:
        """The steps of the warm-up, at most a tenth of all steps unless the job names them."""
        warmup, steps = self.warmup_steps, self.total_steps
        if warmup is None or (not self._warmup_given and warmup >= steps):
            return steps // 10
        return warmup

    @property
    def warmup_given(self) -> bool:
        """Whether the job names the steps of its warm-up."""
        return self._warmup_given

    # ------------------------------------------------------------ by the way of learning

    def row_length(self, text: int, conversations: int) -> int:
        """Return the tokens in a row, by the length of rows of text and of conversations."""
        return text

    def most_sequences(self, seq_len: int) -> int:
        """Return the most answers in a row of so many tokens; 0: answers are not compared."""
        return 0

    def know_data(self, kind: str, most_sequences: Callable[[], int], where: str) -> None:
        """Learn of which kind the stage's data are, and how many answers their fullest row has;
        `where` names them in errors. Raises BadInput if the stage can't learn from them."""

    def misfits(self, seq_len: int, context: int) -> list[str]:
        """Return what does not fit rows of so many tokens, and the model's context."""
        return []

    def defaults_from_base(self, seq_len: int) -> dict[str, Any]:
        """Return fields that the job leaves open, where the run starts from a trained model."""
        return {}

    @property
    def needs_reference(self) -> bool:
        """Whether the model is compared with the one that the stage starts from."""
        return False

    @property
    def sampled(self) -> int:
        """How many answers are sampled to each row."""
        return 0

    def answers_of_rank(self, ranks: int) -> int:
        """Return how many answers a rank samples in a step; 0 for a stage that samples none."""
        return self.sampled * rows_per_rank(self.global_batch, ranks)

    @property
    def files(self) -> dict[str, str]:
        """The files that the stage reads next to its data, by the keys that name them."""
        return {}

    @property
    def learning(self) -> Learning | None:
        """How the stage learns, if not each target token."""
        return None


class Pretrain(Train):
    recipe: Recipe | None = runtime(
        None,
        "pion2: sets the optimizer, rates and schedule of Pion 2 for this width and these steps. "
        "Fields that you set win (`pion help recipes`); unset: each field's default",
    )
    steps: int = scheduled(..., "optimizer steps", gt=0, most=STEPS)
    warmup_steps: int = scheduled(1000, WARMUP, ge=0, most=STEPS)
    phases: list[PretrainPhase] = scheduled(
        [],
        "phases with their own mix of the sources, length of rows, or rates, in order",
        before=[],
    )


def settings_of(section: Train) -> TrainSettings:
    """Return the trainer's settings in a section of the job, whose steps are known."""
    from pion.train.settings import TrainSettings

    given = section.model_dump(include={f.name for f in dataclasses.fields(TrainSettings)})
    return TrainSettings(
        **given
        | {
            "steps": section.total_steps,
            "warmup_steps": section.total_warmup_steps,
            "phases": phases_of(section),
            "learning": section.learning,
        }
    )


def phases_of(section: Train) -> tuple[TrainPhase, ...]:
    """Return the trainer's phases of a section whose steps are given."""
    seq_len = rope_theta = None
    mixed = any(isinstance(phase, PretrainPhase) and phase.mix for phase in section.phases)
    phases = []
    for phase in section.phases:
        until: Any = phase.until
        if until == "decay":
            from pion.train.schedule import decay_start

            until = decay_start(section)
        reads = phase if isinstance(phase, PretrainPhase) else PretrainPhase()
        seq_len, rope_theta = reads.seq_len or seq_len, reads.rope_theta or rope_theta
        passes = any(isinstance(share, str) for share in (reads.mix or {}).values())
        phases.append(
            TrainPhase(
                until=until,
                rates=phase.rates,
                top_k=phase.top_k,
                rank=phase.rank,
                only_bands=None if phase.unfreeze is None else tuple(phase.unfreeze),
                seq_len=seq_len,
                rope_theta=rope_theta,
                passes=passes or (mixed and until != phase.until),
            )
        )
    return tuple(phases)
