"""A model of which each rank keeps a part: of each weight, of its gradient and of its moments.

FSDP2 (`fully_shard`) gathers the weights of a block before the block computes, and frees them
afterwards. In the backward pass it also sums the gradients over ranks, and each rank gets its part
(Zhao et al. 2023, "PyTorch FSDP"). A rank has whole rows of each matrix: the first ranks have as
many as each other, the last ones may have fewer or none. What is small, or is read outside its
block, each rank keeps whole: gains, scalars, routers, recipes and gates.

All ranks call the methods of a sharded model together: each of them gathers weights.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import (
    FSDPModule,
    MixedPrecisionPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from torch.distributed.tensor import DTensor, Shard

from pion.model.decoder import Decoder
from pion.model.parameters import parameter_roles
from pion.model.saved_weights import Saved, placeholders
from pion.model.skips_and_value_tables import ValueTables
from pion.train.hardware import torch_dtype
from pion.train.optimizer.state_pieces import (
    Held,
    OwnParts,
    Piece,
    Run,
    check_tensors,
    copy_from_rank_0,
)
from pion.train.settings import ComputePlan
from pion.train.shard_rules import KEPT_WHOLE, own_rows, sharded_dim

# Gates return a view, which nothing changes in place.
warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")

# The methods of a decoder that compute with its weights, besides `forward`.
FORWARD_METHODS = ("losses", "log_probs", "hidden", "hidden_at", "logits", "logits_in_fp32")


class Shards:
    """A model that `ranks` keep in parts, on one device each.

    `model` becomes sharded in place. All ranks begin with the weights of rank 0; those on the
    device `meta`, which `without_values` names, have no values before `fill`. The process group of
    all ranks exists. `held` says what this rank has of each tensor of the state dict.
    """

    def __init__(
        self, model: Decoder, device: torch.device, dtype: torch.dtype, rank: int, ranks: int
    ) -> None:
        self._model, self._device = model, device
        # Else, if no other tensor is there yet, DeviceMesh would choose a card by LOCAL_RANK.
        torch.empty(0, device=device)
        copy_from_rank_0(model.state_dict().values(), device)
        self.without_values = {n for n, tensor in model.state_dict().items() if tensor.is_meta}
        _shard(model, device, dtype, ranks)
        # Parameters and buffers on the device `meta` get memory without values.
        if any(tensor.is_meta for tensor in model.state_dict().values()):
            model._apply(
                lambda each: (
                    torch.empty_like(each, device=device) if each.is_meta else each.to(device)
                )
            )
        # FSDP exchanges the parameters of the modules for gathered ones. These are the sharded.
        self._params = dict(model.named_parameters())
        self._own = {name: own_part(p.detach()) for name, p in self._params.items()}
        self._own |= dict(model.named_buffers())
        self.held = {
            name: _held(self._params.get(name, part), part, rank, ranks)
            for name, part in self._own.items()
        }
        self.learned = OwnParts(
            {
                n: nn.Parameter(self._own[n]) if isinstance(p, DTensor) else p
                for n, p in self._params.items()
                if p.requires_grad
            },
            self.held,
        )

    def kept_whole(self) -> list[nn.Parameter]:
        """Return the parameters that are learned and that each rank has whole."""
        learned = self.learned.params.items()
        return [param for name, param in learned if not isinstance(self._params[name], DTensor)]

    def clear(self) -> None:
        """Begin a step, which has no gradients yet. Its passes gather the weights again."""
        self.release()
        for param in self._params.values():
            param.grad = None

    def hand_over_gradients(self) -> None:
        """Give the rank's parts of the gradients to `learned`."""
        for name, part in self.learned.params.items():
            param = self._params[name]
            if isinstance(param, DTensor) and param.grad is not None:
                part.grad, param.grad = own_part(param.grad), None

    def norm(self, params: Iterable[nn.Parameter]) -> Tensor:
        """Return the norm of the gradients of all ranks, the same on each of them.

        `params` are some of `learned`. Every rank calls this.
        """
        undivided = {id(param) for param in self.kept_whole()}
        kinds: dict[bool, list[Tensor]] = {True: [], False: []}
        for param in params:
            if param.grad is not None and param.grad.numel():
                kinds[id(param) in undivided].append(param.grad)
        alone, over_ranks = (self._square_norm(kinds[kind]) for kind in (True, False))
        dist.all_reduce(over_ranks)
        return (alone + over_ranks).sqrt()

    def _square_norm(self, gradients: list[Tensor]) -> Tensor:
        if not gradients:  # torch would give a zero of the host
            return torch.zeros((), device=self._device)
        return nn.utils.get_total_norm(gradients, foreach=True).square()

    def placeholders(self, names: Iterable[str]) -> dict[str, Tensor]:
        """Return tensors like the whole ones, without values."""
        return placeholders({n: (self.held[n].shape, self._own[n].dtype) for n in names})

    def tensors(self, names: Iterable[str]) -> dict[str, Tensor]:
        """Return buffers, as live references, and parameters without values."""
        names = list(names)
        buffers = {name: self._own[name] for name in names if name not in self._params}
        return self.placeholders(names) | buffers

    def pieces(self, names: Iterable[str]) -> list[Piece]:
        """Return what this rank has of these tensors, as live references."""
        return [piece for name in names for piece in self.held[name].pieces(name, self._own[name])]

    @torch.no_grad()
    def fill(self, saved: Saved, names: Iterable[str]) -> None:
        """Overwrite what this rank has of these tensors by what is saved."""
        self.release()  # or the next pass would compute with the old values
        for piece in self.pieces(names):
            stop = piece.start + piece.values.numel()
            piece.values.copy_(saved.part(piece.name, piece.start, stop))

    def release(self) -> None:
        """Free what forward passes without a backward pass have left gathered."""
        cast(FSDPModule, self._model).reshard()

    @contextmanager
    def measuring(self) -> Iterator[None]:
        """Let ranks compute without gradients in the block; free what is gathered afterwards."""
        try:
            yield
        finally:
            self.release()


def sharded(model: Decoder, weights: Saved | None, plan: ComputePlan, rank: int) -> Shards:
    """Shard a model, and give this rank's parts the values of `weights`, if there are any.

    Raises BadInput for weights that are not the model's, or not all that it lacks.
    """
    device, dtype = torch.device(plan.device), torch_dtype(plan.dtype)
    shards = Shards(model, device, dtype, rank, plan.world_size)
    if weights is not None:
        layout = weights.layout()
        names = (layout.keys() & shards.held.keys()) | shards.without_values
        check_tensors(placeholders(layout), shards.placeholders(names), "weights")
        shards.fill(weights, layout)
    # FSDP makes what it gathers into. In inference mode, it would be of no use later.
    with torch.no_grad(), shards.measuring():
        model.hidden(torch.zeros(1, 1, dtype=torch.int64, device=device))
    return shards


def own_part(tensor: Tensor) -> Tensor:
    """Return what this rank has of a tensor: of one that is not sharded, all."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _shard(
    model: Decoder,
    device: torch.device,
    dtype: torch.dtype,
    ranks: int,
) -> None:
    roles = {model.get_parameter(name): role for name, role in parameter_roles(model).items()}
    undivided = {param for param, role in roles.items() if role in KEPT_WHOLE}
    for param in undivided:
        if not param.is_meta:
            param.data = param.data.to(device)
    fp32 = MixedPrecisionPolicy(cast_forward_inputs=False)
    gathered = torch.bfloat16 if dtype == torch.bfloat16 else None
    blocks = MixedPrecisionPolicy(gathered, torch.float32, cast_forward_inputs=False)
    settings: dict[str, Any] = {
        "mesh": init_device_mesh(device.type, (ranks,)),
        "ignored_params": undivided,
        "shard_placement_fn": lambda param: Shard(sharded_dim(param.shape, ranks, roles[param])),
    }
    for block in model.layers:
        fully_shard(block, mp_policy=blocks, **settings)
    for part in model.shared_parts():
        for table in part.tables if isinstance(part, ValueTables) else ():
            fully_shard(table, mp_policy=fp32, **settings)
            # FSDP would gather it for a backward pass that does not read it, until the end.
            cast(FSDPModule, table).set_unshard_in_backward(False)
    fully_shard(model, mp_policy=fp32, **settings)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            # The losses of ranks add up. FSDP would divide their sum.
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)
    for name in FORWARD_METHODS:
        register_fsdp_forward_method(model, name)
    model.sharded = True


def _held(param: Tensor, own: Tensor, rank: int, ranks: int) -> Held:
    """Return what this rank has of a parameter or a buffer; `own` is the tensor with it."""
    if not isinstance(param, DTensor):
        return Held(own.shape, (Run(0, 0, own.numel()),), saved=rank == 0)
    (placement,) = param.placements
    assert isinstance(placement, Shard)
    rows = own_rows(param.shape[placement.dim], rank, ranks)
    assert own.numel() == 0 or own.shape[placement.dim] == len(rows)
    below = param.shape[placement.dim + 1 :].numel()
    count = len(rows) * below
    runs = tuple(
        Run((each * param.shape[placement.dim] + rows.start) * below, each * count, count)
        for each in range(param.shape[: placement.dim].numel())
    )
    return Held(param.shape, runs)
