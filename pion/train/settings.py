"""What a training stage is (`TrainSettings`) and how one machine executes it (`ComputePlan`).

Settings decide the weights and never depend on hardware. A plan decides only how the work is
computed. Each checkpoint records the plan, because a resumed run is bit-identical only with the
same plan.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

from pion.errors import BadInput
from pion.later_fields import later_field, to_record, values_before
from pion.train.optimizers import OPTIMIZERS, OptimizerName
from pion.train.phases import Phase, check_phases
from pion.train.preference import Preference
from pion.train.reinforce import Reinforcement

# How a stage may learn, apart from each target token. What a trainer does then: ways.py.
Learning = Preference | Reinforcement


@dataclass(frozen=True)
class TrainSettings:
    """One training stage. Steps are optimizer steps, and a batch is a number of sequences.

    Raises BadInput for values that make no sense.
    """

    steps: int
    global_batch: int
    lr: float
    min_lr: float = 0.0
    warmup_steps: int = 0
    schedule: Literal["wsd", "cosine", "constant"] = "wsd"
    decay_shape: Literal["cosine", "linear"] = "cosine"  # of wsd's decay
    decay_fraction: float = 0.2  # of the steps, at the end, in which wsd decays
    optimizer: OptimizerName = "adamw"
    muon_lr: float = 0.02
    muon_momentum: float = 0.95
    weight_decay: float = 0.1  # decoupled: each step shrinks weights by its lr times this
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    clip: float = 1.0  # limit of the gradient's global norm; 0 = none
    # Peak rates of AdamW for some roles of parameters (pion/model/parameters.py); None: `lr`.
    embedding_lr: float | None = later_field(None, before=None)
    head_lr: float | None = later_field(None, before=None)
    vector_lr: float | None = later_field(None, before=None)
    muon_decays: bool = later_field(True, before=True)  # whether muon_lr follows the schedule
    # Muon's momentum at the start, from where it rises to muon_momentum; None: it is constant.
    muon_momentum_start: float | None = later_field(None, before=None)
    # Of models with windows. cubic: windows grow to their full size over the run.
    window_schedule: Literal["constant", "cubic"] = later_field("constant", before="constant")
    primitive_weight_decay: float = later_field(0.0, before=0.0)
    phases: tuple[Phase, ...] = later_field((), before=())
    # How the stage learns, if not each target token.
    learning: Learning | None = later_field(None, before=None)
    max_spike: float | None = None  # limit of a step's loss over the recent median; None = none

    def __post_init__(self) -> None:
        rates = ("embedding_lr", "head_lr", "vector_lr")
        set_rates = [name for name in rates if getattr(self, name) is not None]
        for name in ("steps", "global_batch", "lr", "muon_lr", "eps", *set_rates):
            _require(getattr(self, name) > 0, name, getattr(self, name), "must be above 0")
        for name in ("warmup_steps", "weight_decay", "primitive_weight_decay", "clip"):
            _require(getattr(self, name) >= 0, name, getattr(self, name), "must not be negative")
        for name in ("muon_momentum", "beta1", "beta2"):
            _require(0 <= getattr(self, name) < 1, name, getattr(self, name), "must be in [0, 1)")
        _require(0 <= self.min_lr <= self.lr, "min_lr", self.min_lr, f"must be in [0, {self.lr}]")
        start = self.muon_momentum_start
        rises = start is None or 0 <= start <= self.muon_momentum
        _require(rises, "muon_momentum_start", start, f"must be in [0, {self.muon_momentum}]")
        share, spike = self.decay_fraction, self.max_spike
        _require(0 < share <= 1, "decay_fraction", share, "must be in (0, 1]")
        _require(spike is None or spike > 1, "max_spike", spike, "must be above 1")
        for name, allowed in (
            ("schedule", ("wsd", "cosine", "constant")),
            ("decay_shape", ("cosine", "linear")),
            ("optimizer", OPTIMIZERS),
            ("window_schedule", ("constant", "cubic")),
        ):
            value = getattr(self, name)
            _require(value in allowed, name, value, f"must be one of {', '.join(allowed)}")
        check_phases(self.phases, self.steps)


# The micro-batch of a plan to try that leaves open how many rows a rank computes at once.
AS_MANY_AS_FIT = 2**31


@dataclass(frozen=True)
class ComputePlan:
    """How this machine computes a stage. A plan changes what is learned only by rounding.

    Declare a field that you add with `later_field` (later_fields.py), so that the plan in an older
    checkpoint still works.
    """

    device: str = "cpu"
    dtype: Literal["float32", "bfloat16"] = "float32"  # of the computation; weights are float32
    micro_batch: int = 1  # sequences a rank computes at once
    world_size: int = 1
    recompute: bool = False  # recompute activations in the backward pass
    compile: bool = False
    threads: int | None = None  # CPU threads of a rank; None leaves torch's default
    deterministic: bool = False  # bit-identical on CUDA too; a CPU always is
    # What a compiler that fails gives up before compiling. A CPU has neither.
    combo_kernels: bool = later_field(True, before=True)  # one compiled kernel for several casts
    flex_attention: bool = later_field(True, before=True)  # for masks that SDPA has no kernel for
    # Of the hidden states between the blocks. bfloat16 only where the computation has it too.
    residual: Literal["float32", "bfloat16"] = later_field("float32", before="float32")
    # Of a stage of rewards: how many answers a rank samples together; None: those to one prompt.
    rollout_rows: int | None = later_field(None, before=None)
    # Each rank keeps only a part of the weights, gradients and moments (pion/train/sharding.py).
    sharded: bool = later_field(False, before=False)

    def __post_init__(self) -> None:
        for name in ("micro_batch", "world_size", "threads", "rollout_rows"):
            value = getattr(self, name)
            _require(value is None or 0 < value < 2**63, name, value, "must be from 1 to 2^63")
        for name in ("dtype", "residual"):
            is_allowed = getattr(self, name) in ("float32", "bfloat16")
            _require(is_allowed, name, getattr(self, name), "must be one of float32, bfloat16")
        fits = self.residual in ("float32", self.dtype)
        _require(fits, "residual", self.residual, "must be float32 if dtype is")
        several = not self.sharded or self.world_size > 1
        _require(several, "sharded", self.sharded, "must be False if world_size is 1")

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as a checkpoint records it; see later_fields.py."""
        return to_record(self)

    @classmethod
    def from_dict(cls, record: dict[str, Any]) -> ComputePlan | None:
        """Return the plan that `to_dict` recorded.

        Return None if the plan has a field of a newer version of Pion.
        """
        names = {field.name for field in dataclasses.fields(cls)}
        return cls(**values_before(cls) | record) if record.keys() <= names else None


def _require(condition: bool, name: str, value: object, rule: str) -> None:
    """Raise BadInput unless the condition holds."""
    if not condition:
        raise BadInput(f"{name} = {value!r}: {rule}")
