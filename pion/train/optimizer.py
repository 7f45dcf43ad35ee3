"""The optimizer of a decoder: how each parameter is updated, and the state by parameter name.

The role of a parameter (pion/model/roles.py) decides: matrices, the embedding and the head are
decayed, vectors are not. Each role has its own learning rate. With `optimizer: muon`, Muon updates
the matrices. AdamW (Loshchilov and Hutter 2019, "Decoupled weight decay regularization") updates
everything else.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

from pion.errors import BadInput
from pion.model.roles import Role, parameter_roles
from pion.train.muon import Muon
from pion.train.schedule import StepPlan
from pion.train.settings import TrainSettings


@dataclass(frozen=True)
class _AdamWGroup:
    """The parameters of a role that AdamW updates; the lists have the same order."""

    weight_decay: float
    params: list[Tensor] = field(default_factory=list)
    exp_avgs: list[Tensor] = field(default_factory=list)
    exp_avg_sqs: list[Tensor] = field(default_factory=list)
    steps: list[Tensor] = field(default_factory=list)  # the kernel needs its count on the device

    def add(self, param: Tensor) -> None:
        self.params.append(param)
        self.exp_avgs.append(torch.zeros_like(param))
        self.exp_avg_sqs.append(torch.zeros_like(param))
        self.steps.append(torch.zeros((), dtype=torch.float32, device=param.device))


class Optimizer:
    """AdamW, or Muon and AdamW, over a model's float32 parameters.

    `dtype` is the precision of Muon's iterations. All state exists from the start, so that memory
    for a snapshot can be reserved before the first step. None of it depends on the world size.
    """

    def __init__(
        self, model: nn.Module, settings: TrainSettings, dtype: torch.dtype = torch.float32
    ) -> None:
        self.settings = settings
        self.steps = 0  # updates made; AdamW's bias correction counts them
        self.params = list(model.parameters())
        self._adamw: dict[Role, _AdamWGroup] = {}
        self._moments: dict[str, Tensor] = {}
        matrices: dict[str, nn.Parameter] = {}
        roles = parameter_roles(model)
        for name, param in model.named_parameters():
            if settings.optimizer == "muon" and roles[name] == "matrix":
                matrices[name] = param
                continue
            decay = 0.0 if roles[name] == "vector" else settings.weight_decay
            group = self._adamw.setdefault(roles[name], _AdamWGroup(decay))
            group.add(param)
            self._moments[f"{name}.exp_avg"] = group.exp_avgs[-1]
            self._moments[f"{name}.exp_avg_sq"] = group.exp_avg_sqs[-1]
        self._muon = Muon(matrices, weight_decay=settings.weight_decay, dtype=dtype)
        self._moments |= {f"{name}.momentum": m for name, m in self._muon.momentum.items()}

    @torch.no_grad()
    def step(self, plan: StepPlan) -> None:
        """Update all parameters from their gradients, at the rates of `plan`."""
        settings = self.settings
        for role, group in self._adamw.items():
            # The functional form is used because constructing an optimizer object imports torch's
            # compiler, which would delay every start by seconds.
            adamw(
                group.params,
                [param.grad for param in group.params],  # type: ignore[misc]
                group.exp_avgs,
                group.exp_avg_sqs,
                [],
                group.steps,
                fused=True,
                amsgrad=False,
                beta1=settings.beta1,
                beta2=settings.beta2,
                lr=plan.rates[role],
                weight_decay=group.weight_decay,
                eps=settings.eps,
                maximize=False,
            )
        self._muon.step(plan.rates["matrix"], plan.momentum)
        self.steps += 1

    def zero_grad(self) -> None:
        """Drop all gradients."""
        for param in self.params:
            param.grad = None

    def state_tensors(self) -> dict[str, Tensor]:
        """Return live references to all state: `{name}.exp_avg`, `.exp_avg_sq` and `.momentum`."""
        return dict(self._moments)

    def set_steps(self, steps: int) -> None:
        """Set the number of updates that led to the state tensors."""
        self.steps = steps
        for group in self._adamw.values():
            for count in group.steps:
                count.fill_(float(steps))


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
