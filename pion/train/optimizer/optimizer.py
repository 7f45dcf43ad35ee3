"""The optimizer of a decoder: how each parameter is updated, and the state by parameter name.

The role of a parameter (pion/model/parameters.py) decides: matrices, the embedding and the head are
decayed, vectors are not. Each role has its own learning rate. With `optimizer: muon`, Muon updates
the matrices. AdamW (Loshchilov and Hutter 2019, "Decoupled weight decay regularization") updates
everything else, and the primitives of a bank each for itself.

A phase may freeze roles and bands. Frozen parameters, their moments and counts stand still.
Parameters that need no gradient, as the base of LoRA, have no moments at all.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from pion.config.parts import Role
from pion.model.decoder import OWN_RULES
from pion.model.forward_pass import group_of_parameter
from pion.model.parameters import parameter_roles
from pion.model.saved_weights import placeholders
from pion.train.optimizer.divided_muon import DividedMuon, RowsMuon, WholeMuon
from pion.train.optimizer.muon import Muon
from pion.train.optimizer.rule import Owned, Rule, rule_of
from pion.train.optimizer.state_pieces import OwnParts, Piece
from pion.train.schedule import StepPlan
from pion.train.settings import TrainSettings
from pion.train.shard_rules import KEPT_WHOLE

# A role of parameters, and the band that they belong to, if any.
Group = tuple[Role, int | None]


class Optimizer:
    """AdamW, or Muon and AdamW, over the float32 parameters that a model learns.

    `dtype` is the precision of Muon's iterations. All state exists from the start, so that memory
    for a snapshot can be reserved before the first step.

    Of several ranks, each updates all parameters and has all state, or, of a sharded model, does so
    for its `own` parts. Only the arithmetic of Muon's matrices is divided (divided_muon.py).
    """

    def __init__(
        self,
        model: nn.Module,
        settings: TrainSettings,
        dtype: torch.dtype = torch.float32,
        *,
        rank: int = 0,
        world_size: int = 1,
        own: OwnParts | None = None,
    ) -> None:
        self.settings, self._dtype = settings, dtype
        self._rank, self._world_size, self._own = rank, world_size, own
        learned = {n: param for n, param in model.named_parameters() if param.requires_grad}
        if own is not None:
            learned = own.params
        self.params = list(learned.values())
        self._groups: dict[Group, dict[str, nn.Parameter]] = {}
        self._rules: dict[Group, Rule] = {}
        self._own_rules: dict[Group, list[tuple[nn.Parameter, Any]]] = {}
        # What this rank has of the state, and what all ranks have together, by the state's name.
        self._state: dict[str, Tensor] = {}
        self._layout: dict[str, tuple[torch.Size, torch.dtype]] = {}
        self._pieces: list[Piece] = []
        roles = parameter_roles(model)
        for name, param in learned.items():
            group = roles[name], group_of_parameter(model, name)
            self._groups.setdefault(group, {})[name] = param
        for group, params in self._groups.items():
            rule, stacks = rule_of(settings.optimizer, group[0]), _stacks(group, params)
            if rule is Muon:
                self._add_muon(group, params)
            else:
                self._add_own_rule(group, stacks)
                self._add(group, rule, {n: p for n, p in params.items() if n not in stacks})
        self.steps = 0  # updates made
        # AdamW's bias correction counts the updates of each group.
        self._updates = dict.fromkeys(self._groups, 0)

    def _add(self, group: Group, kind: type[Rule], params: dict[str, nn.Parameter]) -> None:
        if not params:
            return
        fits = self._own is None or kind.by_rows
        assert fits, f"{kind.__name__} can't exchange rows of matrices: see divided_muon.py"
        owned = []
        for name, param in params.items():
            shape, state = self._shape(name, param), {}
            for key, (whole, dtype) in kind.state(shape).items():
                count = param.numel() * whole.numel() // shape.numel()
                state[key] = torch.zeros(count, dtype=dtype, device=param.device)
                self._keep(name, key, state[key], whole)
            steps = torch.zeros((), dtype=torch.float32, device=param.device)
            if param.numel():  # otherwise, other ranks have all rows
                owned.append(Owned(param, state, steps))
        self._rules[group] = kind(self.settings, self._decay(group[0]), owned)

    def _add_own_rule(self, group: Group, params: dict[str, nn.Parameter]) -> None:
        for name, param in params.items():
            rule = OWN_RULES[group[0]](param.detach(), self.settings)
            self._own_rules.setdefault(group, []).append((param, rule))
            rows = self._shape(name, param)[0]
            for key, tensor in rule.state.items():
                self._keep(name, key, tensor, torch.Size((rows, *tensor.shape[1:])))

    def _add_muon(self, group: Group, params: dict[str, nn.Parameter]) -> None:
        alike: dict[str, Any] = {"weight_decay": self.settings.weight_decay, "dtype": self._dtype}
        shapes = {name: self._shape(name, param) for name, param in params.items()}
        if self._world_size == 1:
            muon = Muon(params, **alike)
        else:
            kind: type[DividedMuon] = WholeMuon if self._own is None else RowsMuon
            muon = kind(params, shapes, rank=self._rank, world_size=self._world_size, **alike)
        self._rules[group] = muon
        for name, momentum in muon.momentum.items():
            self._keep(name, "momentum", momentum, shapes[name])

    def _keep(self, name: str, key: str, values: Tensor, shape: torch.Size) -> None:
        """Note what this rank has of the parameter's state tensor `key`, which has this `shape`."""
        state = f"{name}.{key}"
        self._layout[state] = shape, values.dtype
        if self._own is None:
            self._state[state] = values.view(shape)
        else:
            held = self._own.held[name]
            per = sum(run.size for run in held.runs) // max(values.numel(), 1)
            self._pieces += held.per(max(per, 1)).pieces(state, values)

    def _shape(self, name: str, param: Tensor) -> torch.Size:
        """Return the shape of a whole parameter, of which a sharded model has a part here."""
        return param.shape if self._own is None else self._own.held[name].shape

    def _decay(self, role: Role) -> float:
        if role in OWN_RULES:
            return OWN_RULES[role].decay(self.settings)
        # Of what is small, only routers are decayed.
        return 0.0 if role in KEPT_WHOLE - {"router"} else self.settings.weight_decay

    def trained(self, plan: StepPlan) -> list[nn.Parameter]:
        """Return the parameters that `plan` does not freeze."""
        frozen = {
            id(param)
            for group, params in self._groups.items()
            if _frozen(group, plan)
            for param in params.values()
        }
        return [param for param in self.params if id(param) not in frozen]

    @torch.no_grad()
    def step(self, plan: StepPlan) -> None:
        """Update all parameters from their gradients, at the rates of `plan`.

        Of several ranks, each has the same gradients, or its parts of the same.
        """
        for group in self._groups:
            if _frozen(group, plan):
                continue
            if group in self._rules:
                self._rules[group].step(plan.rates[group[0]], plan.momentum)
            for param, rule in self._own_rules.get(group, ()):
                assert param.grad is not None
                rule.step(param.grad, plan.rates[group[0]])
            self._updates[group] += 1
        self.steps += 1

    def zero_grad(self) -> None:
        """Drop all gradients."""
        for param in self.params:
            param.grad = None

    def state_tensors(self) -> dict[str, Tensor]:
        """Return all state, by the parameter's name and what it is.

        AdamW has `{name}.exp_avg` and `.exp_avg_sq`, for primitives also `.counts`; Muon has
        `{name}.momentum`. They are live references. Of a sharded model, each rank has `pieces`,
        and these tensors are on the device `meta`, without values.
        """
        return dict(self._state) if self._own is None else placeholders(self._layout)

    def pieces(self) -> list[Piece]:
        """Return this rank's pieces of a sharded model's state tensors, as live references."""
        return list(self._pieces)

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
            if group in self._rules:
                for owned in self._rules[group].owned:
                    owned.steps.fill_(float(self._updates[group]))


def _stacks(group: Group, params: dict[str, nn.Parameter]) -> dict[str, nn.Parameter]:
    """Return the parameters of a group that have a rule of their own."""
    return {n: p for n, p in params.items() if group[0] in OWN_RULES and p.ndim == 3}


def _frozen(group: Group, plan: StepPlan) -> bool:
    role, band = group
    left_out = plan.bands is not None and band is not None and band not in plan.bands
    return left_out or role in plan.frozen


def _name(group: Group) -> str:
    role, band = group
    return role if band is None else f"{role}.{band}"
