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
from pion.model.decoder import OWN_RULES
from pion.model.forward_pass import group_of_parameter
from pion.model.parameters import parameter_roles
from pion.model.saved_weights import placeholders
from pion.train.optimizer.muon import Muon
from pion.train.optimizer.ownership import even_parts, even_rows
from pion.train.optimizer.sharded_muon import ShardedMuon
from pion.train.optimizer.shared_muon import SharedMuon
from pion.train.optimizer.shared_weights import SharedWeights
from pion.train.optimizer.state_pieces import OwnParts, Piece
from pion.train.schedule import StepPlan, peak_rates
from pion.train.settings import TrainSettings
from pion.train.shard_rules import KEPT_WHOLE


@dataclass(frozen=True)
class _Owned:
    """Elements [start, stop) of the flattened `param`: `weights` is a flat view of them."""

    param: nn.Parameter
    start: int
    stop: int

    @property
    def weights(self) -> Tensor:
        return self.param.detach().view(-1)[self.start : self.stop]

    @property
    def gradient(self) -> Tensor:
        assert self.param.grad is not None
        return self.param.grad.view(-1)[self.start : self.stop]


@dataclass(frozen=True)
class _AdamWGroup:
    """What AdamW updates of a role: parameters, or parts of them; the lists have the same order."""

    weight_decay: float
    owned: list[_Owned] = field(default_factory=list)
    exp_avgs: list[Tensor] = field(default_factory=list)
    exp_avg_sqs: list[Tensor] = field(default_factory=list)
    steps: list[Tensor] = field(default_factory=list)  # the kernel needs its count on the device

    def add(self, owned: _Owned) -> None:
        self.owned.append(owned)
        self.exp_avgs.append(torch.zeros_like(owned.weights))
        self.exp_avg_sqs.append(torch.zeros_like(owned.weights))
        self.steps.append(torch.zeros((), dtype=torch.float32, device=owned.weights.device))


# A role of parameters, and the band that they belong to, if any.
Group = tuple[Role, int | None]


class Optimizer:
    """AdamW, or Muon and AdamW, over the float32 parameters that a model learns.

    `dtype` is the precision of Muon's iterations. All state exists from the start, so that memory
    for a snapshot can be reserved before the first step. Of several ranks, this one has the state
    of what it owns (pion/train/optimizer/ownership.py). All ranks together have the state of one.

    Of a sharded model, each rank updates its `own` parts, and exchanges only Muon's matrices.
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
        self._adamw: dict[Group, _AdamWGroup] = {}
        self._own_rules: dict[Group, list[tuple[nn.Parameter, range, Any]]] = {}
        self._muon: dict[Group, Muon | SharedMuon | ShardedMuon] = {}
        # Who updates what: one of all ranks, or each its own part of a sharded model.
        self._owner, self._owners = (rank, world_size) if own is None else (0, 1)
        self._weights = SharedWeights(self._owner, self._owners)
        self._layout: dict[str, tuple[torch.Size, torch.dtype]] = {}  # of the state of all ranks
        self._pieces: list[Piece] = []
        roles = parameter_roles(model)
        for name, param in learned.items():
            group = roles[name], group_of_parameter(model, name)
            self._groups.setdefault(group, {})[name] = param
        for group, params in self._groups.items():
            role, stacks = group[0], {n: param for n, param in params.items() if param.ndim == 3}
            if role == "matrix" and settings.optimizer == "muon":
                self._add_muon(group, params)
            elif role in OWN_RULES:
                self._add_own_rule(group, stacks)
                self._add_adamw(group, {n: p for n, p in params.items() if n not in stacks})
            else:
                self._add_adamw(group, params)
        self.steps = 0  # updates made
        # AdamW's bias correction counts the updates of each group.
        self._updates = dict.fromkeys(self._groups, 0)

    def _add_adamw(self, group: Group, params: dict[str, nn.Parameter]) -> None:
        if not params:
            return
        adamw = self._adamw[group] = _AdamWGroup(self._decay(group[0]))
        names, every = list(params), list(params.values())
        by_rank = even_parts([param.numel() for param in every], self._owners)
        owned = [[_Owned(every[p.index], p.start, p.stop) for p in parts] for parts in by_rank]
        self._weights.add(group, [[part.weights for part in parts] for parts in owned])
        for part, mine in zip(by_rank[self._owner], owned[self._owner], strict=True):
            adamw.add(mine)
            for key, moments in (("exp_avg", adamw.exp_avgs), ("exp_avg_sq", adamw.exp_avg_sqs)):
                self._keep(names[part.index], key, moments[-1], part.start)
        self._layout |= {
            f"{name}.{key}": (self._shape(name, param), torch.float32)
            for name, param in params.items()
            for key in ("exp_avg", "exp_avg_sq")
        }

    def _add_own_rule(self, group: Group, params: dict[str, nn.Parameter]) -> None:
        for name, param in params.items():
            by_rank = even_rows(len(param), self._owners)
            every = [param.detach()[rows.start : rows.stop] for rows in by_rank]
            self._weights.add(group, [[weights.view(-1)] for weights in every])
            rows = by_rank[self._owner]
            rule = OWN_RULES[group[0]](every[self._owner], self.settings)
            self._own_rules.setdefault(group, []).append((param, rows, rule))
            for key, tensor in rule.state.items():
                self._keep(name, key, tensor, rows.start * (tensor.numel() // max(len(tensor), 1)))
                shape = torch.Size((self._shape(name, param)[0], *tensor.shape[1:]))
                self._layout[f"{name}.{key}"] = shape, tensor.dtype

    def _add_muon(self, group: Group, params: dict[str, nn.Parameter]) -> None:
        alike: dict[str, Any] = {"weight_decay": self._decay(group[0]), "dtype": self._dtype}
        over_ranks = alike | {"rank": self._rank, "world_size": self._world_size}
        muon: Muon | ShardedMuon | SharedMuon
        if self._own is not None:
            muon = ShardedMuon(params, self._own.held, **over_ranks)
        elif self._world_size == 1:
            muon = Muon(params, **alike)
        else:
            muon = SharedMuon(params, **over_ranks)
        self._muon[group] = muon
        if isinstance(muon, SharedMuon):
            self._pieces += muon.pieces
        else:
            for name, momentum in muon.momentum.items():
                self._keep(name, "momentum", momentum)
        self._layout |= {
            f"{name}.momentum": (self._shape(name, param), torch.float32)
            for name, param in params.items()
        }

    def _keep(self, name: str, key: str, values: Tensor, start: int = 0) -> None:
        """Note that this rank has state of the parameter `name`: from the element `start` on, or of
        its part of a sharded one."""
        state = f"{name}.{key}"
        if self._own is None:
            self._pieces.append(Piece(state, start, values.view(-1)))
        else:
            held = self._own.held[name]
            per_row = values.numel() < sum(run.size for run in held.runs)
            self._pieces += (held.per_row() if per_row else held).pieces(state, values)

    def _shape(self, name: str, param: Tensor) -> torch.Size:
        """Return the shape of a whole parameter, of which a sharded model has a part here."""
        return param.shape if self._own is None else self._own.held[name].shape

    def _decay(self, role: Role) -> float:
        if role in OWN_RULES:
            return OWN_RULES[role].decay(self.settings)
        if role in KEPT_WHOLE - {"router"}:  # of what is small, only routers are decayed
            return 0.0
        steps, rates = self.settings.decay_steps, peak_rates(self.settings)
        return self.settings.weight_decay if steps is None else 1 / (steps * rates[role])

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

        Of several ranks, each has the same gradients, and gives the others what it updates.
        """
        trained = [group for group in self._groups if not _frozen(group, plan)]
        for group in trained:
            if group in self._adamw:
                self._step_adamw(self._adamw[group], plan.rates[group[0]])
            for param, rows, rule in self._own_rules.get(group, ()):
                assert param.grad is not None
                rule.step(param.grad[rows.start : rows.stop], plan.rates[group[0]])
        if self._owners > 1:
            self._weights.exchange(trained)
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
            [owned.weights for owned in group.owned],
            [owned.gradient for owned in group.owned],
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
        """Return all state, by the parameter's name and what it is.

        AdamW has `{name}.exp_avg` and `.exp_avg_sq`, for primitives also `.counts`; Muon has
        `{name}.momentum`. Alone, a rank has live references. Of several ranks, each has `pieces`,
        and these tensors are on the device `meta`, without values.
        """
        if self._world_size > 1:
            return placeholders(self._layout)
        return {p.name: p.values.view(self._layout[p.name][0]) for p in self._pieces}

    def pieces(self) -> list[Piece]:
        """Return this rank's pieces of the state tensors, as live references."""
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
