"""The optimizer of a decoder: how each parameter is updated, and the state by parameter name.

The role of a parameter (pion/model/parameters.py) decides: matrices, the embedding and the head are
decayed, vectors are not. Each role has its own learning rate. With `optimizer: muon`, Muon updates
the matrices. AdamW (Loshchilov and Hutter 2019, "Decoupled weight decay regularization") updates
everything else, and the primitives of a bank each for itself.

A phase may freeze roles and bands. Frozen parameters, their moments and counts stand still.
Parameters that need no gradient, as the base of LoRA, have no moments at all.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

from pion.config.parts import Role
from pion.errors import BadInput
from pion.model.forward_pass import group_of_parameter
from pion.model.parameters import parameter_roles
from pion.train.muon import Muon
from pion.train.schedule import StepPlan
from pion.train.settings import TrainSettings

# After so many updates, the corrections are 1 in fp32, for every β up to 0.99998.
MOST_COUNTED = 1_000_000


@dataclass(frozen=True)
class _AdamWGroup:
    """The parameters of a role that AdamW updates; the lists have the same order."""

    weight_decay: float
    params: list[nn.Parameter] = field(default_factory=list)
    exp_avgs: list[Tensor] = field(default_factory=list)
    exp_avg_sqs: list[Tensor] = field(default_factory=list)
    steps: list[Tensor] = field(default_factory=list)  # the kernel needs its count on the device

    def add(self, param: nn.Parameter) -> None:
        self.params.append(param)
        self.exp_avgs.append(torch.zeros_like(param))
        self.exp_avg_sqs.append(torch.zeros_like(param))
        self.steps.append(torch.zeros((), dtype=torch.float32, device=param.device))


# A role of parameters, and the band that they belong to, if any.
Group = tuple[Role, int | None]


class Optimizer:
    """AdamW, or Muon and AdamW, over the float32 parameters that a model learns.

    `dtype` is the precision of Muon's iterations. All state exists from the start, so that memory
    for a snapshot can be reserved before the first step. None of it depends on the world size.
    """

    def __init__(
        self, model: nn.Module, settings: TrainSettings, dtype: torch.dtype = torch.float32
    ) -> None:
        self.settings = settings
        learned = {n: param for n, param in model.named_parameters() if param.requires_grad}
        self.params = list(learned.values())
        self._groups: dict[Group, list[nn.Parameter]] = {}
        self._adamw: dict[Group, _AdamWGroup] = {}
        self._own_rules: dict[Group, list[tuple[nn.Parameter, PrimitiveWise]]] = {}
        self._muon: dict[Group, Muon] = {}
        self._moments: dict[str, Tensor] = {}
        matrices: dict[Group, dict[str, nn.Parameter]] = {}
        roles = parameter_roles(model)
        for name, param in learned.items():
            group = roles[name], group_of_parameter(model, name)
            self._groups.setdefault(group, []).append(param)
            if settings.optimizer == "muon" and roles[name] == "matrix":
                matrices.setdefault(group, {})[name] = param
            elif roles[name] in OWN_RULES and param.ndim == 3:
                rule = OWN_RULES[roles[name]](param, settings)
                self._own_rules.setdefault(group, []).append((param, rule))
                self._moments |= {f"{name}.{key}": t for key, t in rule.state.items()}
            else:
                adamw = self._adamw.setdefault(group, _AdamWGroup(self._decay(roles[name])))
                adamw.add(param)
                self._moments[f"{name}.exp_avg"] = adamw.exp_avgs[-1]
                self._moments[f"{name}.exp_avg_sq"] = adamw.exp_avg_sqs[-1]
        for group, params in matrices.items():
            muon = Muon(params, weight_decay=settings.weight_decay, dtype=dtype)
            self._muon[group] = muon
            self._moments |= {f"{name}.momentum": m for name, m in muon.momentum.items()}
        self.steps = 0  # updates made
        # AdamW's bias correction counts the updates of each group.
        self._updates = dict.fromkeys(self._groups, 0)

    def _decay(self, role: Role) -> float:
        if role == "primitive":
            return self.settings.primitive_weight_decay
        return 0.0 if role in ("vector", "recipe", "gate") else self.settings.weight_decay

    def trained(self, plan: StepPlan) -> list[nn.Parameter]:
        """Return the parameters that `plan` does not freeze."""
        frozen = {
            id(param)
            for group, params in self._groups.items()
            if _frozen(group, plan)
            for param in params
        }
        return [param for param in self.params if id(param) not in frozen]

    @torch.no_grad()
    def step(self, plan: StepPlan) -> None:
        """Update all parameters from their gradients, at the rates of `plan`."""
        trained = [group for group in self._groups if not _frozen(group, plan)]
        for group in trained:
            if group in self._adamw:
                self._step_adamw(self._adamw[group], plan.rates[group[0]])
            for param, rule in self._own_rules.get(group, ()):
                assert param.grad is not None
                rule.step(param.grad, plan.rates[group[0]])
        for group in trained:
            if group in self._muon:
                self._muon[group].step(plan.rates["matrix"], plan.momentum)
            self._updates[group] += 1
        self.steps += 1

    def _step_adamw(self, group: _AdamWGroup, lr: float) -> None:
        settings = self.settings
        # The functional form is used because constructing an optimizer object imports torch's
        # compiler, which would delay every start by seconds.
        adamw(
            group.params,  # type: ignore[arg-type]
            [param.grad for param in group.params],  # type: ignore[misc]
            group.exp_avgs,
            group.exp_avg_sqs,
            [],
            group.steps,
            fused=True,
            amsgrad=False,
            beta1=settings.beta1,
            beta2=settings.beta2,
            lr=lr,
            weight_decay=group.weight_decay,
            eps=settings.eps,
            maximize=False,
        )

    def zero_grad(self) -> None:
        """Drop all gradients."""
        for param in self.params:
            param.grad = None

    def state_tensors(self) -> dict[str, Tensor]:
        """Return live references to all state, by the parameter's name and what it is.

        AdamW has `{name}.exp_avg` and `.exp_avg_sq`, for primitives also `.counts`; Muon has
        `{name}.momentum`.
        """
        return dict(self._moments)

    def counts(self) -> dict[str, Any]:
        """Return the updates that led to the state tensors, as a checkpoint records them.

        With phases, the updates of each group count.
        """
        if not self.settings.phases:
            return {"steps": self.steps}
        return {
            "steps": self.steps,
            "groups": {_name(group): updates for group, updates in self._updates.items()},
        }

    def set_counts(self, counts: dict[str, Any]) -> None:
        """Set the updates that led to the state tensors."""
        self.steps = counts["steps"]
        groups = counts.get("groups", {})
        for group in self._groups:
            self._updates[group] = groups.get(_name(group), self.steps)
            if group in self._adamw:
                for count in self._adamw[group].steps:
                    count.fill_(float(self._updates[group]))


def _frozen(group: Group, plan: StepPlan) -> bool:
    role, band = group
    left_out = plan.bands is not None and band is not None and band not in plan.bands
    return left_out or role in plan.frozen


def _name(group: Group) -> str:
    role, band = group
    return role if band is None else f"{role}.{band}"


def check_tensors(source: dict[str, Tensor], target: dict[str, Tensor], what: str) -> None:
    """Raise BadInput unless both have tensors of the same names and shapes."""
    for kind, names in (
        ("has no tensor", target.keys() - source.keys()),
        ("has the unexpected tensor", source.keys() - target.keys()),
    ):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise BadInput(f"the {what} {kind} {min(names)}{more}: it belongs to a different model")
    for name, tensor in source.items():
        if tensor.shape != target[name].shape:
            raise BadInput(
                f"the {what}'s {name} has shape {tuple(tensor.shape)} instead of "
                f"{tuple(target[name].shape)}: it belongs to a different model"
            )


@torch.no_grad()
def copy_tensors(source: dict[str, Tensor], target: dict[str, Tensor]) -> None:
    """Copy tensors by name into existing ones."""
    for name, tensor in source.items():
        target[name].copy_(tensor)


class PrimitiveWise:
    """AdamW for one parameter `factors` (n, rank, width), with a count of updates per primitive.

    `state` has exp_avg and exp_avg_sq like the parameter, and counts (n,) int64.
    """

    def __init__(self, factors: Tensor, settings: TrainSettings) -> None:
        self._factors, self._settings = factors, settings
        device = factors.device
        self.state = {
            "exp_avg": torch.zeros_like(factors),
            "exp_avg_sq": torch.zeros_like(factors),
            "counts": torch.zeros(len(factors), dtype=torch.int64, device=device),
        }
        # By count: 1 / (1 − β1^count) and 1 / √(1 − β2^count). A count never exceeds the steps.
        self._last = min(settings.steps, MOST_COUNTED)
        count = torch.arange(self._last + 1, dtype=torch.float64).clamp(min=1)
        first, second = (1 - beta**count for beta in (settings.beta1, settings.beta2))
        self._corrections = torch.stack((1 / first, second.rsqrt())).float().to(device)
        self._shares = torch.tensor([[1 - settings.beta1], [1 - settings.beta2]]).to(device)
        self._eps = torch.tensor(settings.eps, device=device)

    def step(self, gradient: Tensor, lr: float) -> None:
        """Update the primitives that have a gradient. The gradient is overwritten."""
        chosen = gradient.flatten(1).any(dim=1)  # (n,)
        exp_avg, exp_avg_sq, counts = self.state.values()
        counts.add_(chosen)
        first, second = (self._shares * chosen)[..., None, None]
        exp_avg.lerp_(gradient, first)
        exp_avg_sq.lerp_(gradient.square_(), second)
        if self._last < self._settings.steps:
            counts = counts.clamp(max=self._last)
        scale, root = (self._corrections[:, counts] * chosen)[..., None, None]
        decay = self._settings.primitive_weight_decay
        if decay:
            self._factors.mul_(1 - lr * decay * chosen[:, None, None])
        # For an unchosen primitive, 0 is divided by eps.
        size = torch.addcmul(self._eps, exp_avg_sq.sqrt(), root)
        self._factors.addcdiv_(exp_avg * scale, size, value=-lr)


# The roles whose stacks of matrices have another rule than AdamW and Muon, and the rule.
OWN_RULES = {"primitive": PrimitiveWise}
