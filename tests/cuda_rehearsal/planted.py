"""Plant mistakes in the library, one at a time, and rehearse each on a pretended card.

environment.py starts this program: `python -m tests.cuda_rehearsal.planted`. Each mistake is a
replacement of one function. test_planted_mistakes.py says how each must be found.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from importlib import import_module
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from pion.data.stream import Batch, map_batch
from pion.evaluation import held_out
from pion.generation.fixed_step import FixedStep
from pion.model import forward_pass
from pion.model.attention import attention, masks
from pion.model.attention.cache import LayerCache
from pion.model.decoder import Decoder
from pion.model.feedforward import expert_products, experts
from pion.model.feedforward.dense import SwiGLU
from pion.model.loss import IGNORED
from pion.model.norm_and_projection import RMSNorm
from pion.train import gradients
from pion.train.optimizer import optimizer
from pion.train.optimizer.muon import Muon
from pion.train.side_copy import SideCopy
from tests.cuda_rehearsal.pretended_card import pretended_card
from tests.cuda_rehearsal.report import print_reports
from tests.cuda_rehearsal.scenarios import MODELS, SCENARIOS, rehearse
from tests.cuda_rehearsal.watch import Watch

CPU = torch.device("cpu")

# Makes a mistake from the function that it replaces.
Mistake = Callable[[Callable[..., Any]], Callable[..., Any]]


@dataclass(frozen=True)
class Planted:
    """A mistake in the function `name` of `owner`, and the scenario and model that meet it."""

    owner: Any
    name: str
    mistake: Mistake
    scenario: str = "train adamw bfloat16"
    model: str = "dense"

    def plant(self) -> AbstractContextManager[Any]:
        """Make the mistake inside a `with` block."""
        return mock.patch.object(
            self.owner, self.name, self.mistake(getattr(self.owner, self.name))
        )


def read_a_value(right: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def norm_that_reads(self: RMSNorm, x: Tensor) -> Tensor:
        return right(self, x if x.abs().max().item() > 0 else x + 1)

    return norm_that_reads


def rotate_by_host_table(right: Callable[..., Any]) -> Callable[..., Any]:
    def rotation_on_host(
        config: Any, past: int, length: int, positions: Tensor | None, device: torch.device
    ) -> Any:
        return right(config, past, length, positions, CPU)

    return rotation_on_host


def mask_on_host(right: Callable[..., Any]) -> Callable[..., Any]:
    def build_mask(config: Any, tokens: Tensor, keys: int, documents: Any, **rest: Any) -> Any:
        return masks.Mask(allowed=torch.ones(tokens.shape[1], keys, dtype=torch.bool).tril())

    return build_mask


def rotate_in_fp64(right: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def rotate_precisely(x: Tensor, rotation: Any) -> Tensor:
        return right(x.double(), rotation).float()

    return rotate_precisely


def keep_fp64_constant(right: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def norm_with_fp64_scale(self: RMSNorm, x: Tensor) -> Tensor:
        scale = torch.ones((), dtype=torch.float64, device=x.device)
        return right(self, x) * scale

    return norm_with_fp64_scale


def put_on_host(name: str) -> Mistake:
    """Return the mistake of a group of AdamW that keeps the last tensor of list `name` on host."""

    def make(right: Callable[..., None]) -> Callable[..., None]:
        def add(self: Any, param: Tensor) -> None:
            right(self, param)
            state = getattr(self, name)
            state[-1] = torch.zeros(state[-1].shape)

        return add

    return make


def read_update_norm(right: Callable[..., None]) -> Callable[..., None]:
    def step_that_reads(self: Muon, lr: float, beta: float) -> None:
        norms = [buffer.norm() for buffer in self.momentum.values()]
        right(self, lr if float(torch.stack(norms).max()) < 1e6 else 0.0, beta)

    return step_that_reads


def wait_after(right: Callable[..., Any]) -> Callable[..., Any]:
    def step_that_waits(self: Any, *arguments: Any) -> Any:
        result = right(self, *arguments)
        torch.cuda.synchronize()
        return result

    return step_that_waits


def copy_and_wait(right: Callable[..., Batch]) -> Callable[..., Batch]:
    def blocking_copy(batch: Batch, device: torch.device) -> Batch:
        return map_batch(lambda tensor: tensor.to(device), batch)

    return blocking_copy


def do_not_pin(right: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def leave_as_it_is(self: Tensor) -> Tensor:
        return self

    return leave_as_it_is


def do_not_register(right: Callable[..., int]) -> Callable[..., int]:
    def refuse(self: Watch, address: int, size: int, flags: int) -> int:
        return 1  # as where a process may lock little memory

    return refuse


def multiply_in_fp32(right: Callable[..., Any]) -> Callable[..., Any]:
    def product_without_autocast(self: Any, x: Tensor, inputs: Any) -> Any:
        with torch.autocast("cuda", enabled=False):
            return right(self, x.float(), inputs)

    return product_without_autocast


def keep_plain_tensor(right: Callable[..., None]) -> Callable[..., None]:
    def init_with_plain_tensor(self: Any, d_model: int, d_ff: int) -> None:
        right(self, d_model, d_ff)
        self.scale = torch.ones(d_ff)  # neither parameter nor buffer, so `to` misses it

    return init_with_plain_tensor


def scores_by_mask(right: Callable[..., Any]) -> Callable[..., Any]:
    def token_nll_by_mask(model: Decoder, batch: Batch, *rest: Any) -> Any:
        nll, *others = right(model, batch, *rest)
        learned = batch.targets.to(nll.device, non_blocking=True) != IGNORED
        nll[learned] = nll[learned] + 0.0
        return nll, *others

    return token_nll_by_mask


def scores_by_list(right: Callable[..., Any]) -> Callable[..., Any]:
    def token_nll_by_list(model: Decoder, batch: Batch, *rest: Any) -> Any:
        nll, *others = right(model, batch, *rest)
        rows = torch.zeros_like(nll)
        rows[list(range(len(nll)))] = nll
        return rows, *others

    return token_nll_by_list


def tokens_by_tensor(right: Callable[..., Any]) -> Callable[..., Any]:
    def cache_by_tensor(model: Decoder, rows: list[list[int]], *others: Any) -> Any:
        torch.tensor(rows, device=model.embed.weight.device)
        return right(model, rows, *others)

    return cache_by_tensor


def cache_on_host(right: Callable[..., Any]) -> Callable[..., Any]:
    def extend_on_host(self: LayerCache, keys: Tensor, values: Tensor, place: Any) -> Any:
        if self.keys is None:
            batch, heads, _, width = keys.shape
            self.keys = torch.empty(batch, heads, place.end + 64, width)
            self.values = torch.empty_like(self.keys)
        return right(self, keys, values, place)

    return extend_on_host


def copy_in_each_step(right: Callable[..., Any]) -> Callable[..., Any]:
    def step_that_copies(self: FixedStep) -> Any:
        torch.zeros(1).to("cuda", non_blocking=True)
        return right(self)

    return step_that_copies


def group_on_any_card(right: Callable[..., str]) -> Callable[..., str]:
    def grouped_path(device_type: str, capability: Any, dtype: torch.dtype) -> str:
        return "grouped"

    return grouped_path


def read_inside_the_operation(right: Callable[..., int]) -> Callable[..., int]:
    def row_multiple_if_small(x: Tensor) -> int:
        return right(x) if x.abs().max().item() < 1e6 else 1

    return row_multiple_if_small


def count_tokens(right: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def with_tokens_counted(
        x: Tensor, matrices: list[Tensor], weights: Tensor, order: Tensor, ends: Tensor
    ) -> Any:
        used = (ends.diff() > 0).nonzero()
        return right(x, matrices, weights, order, ends + 0 * len(used))

    return with_tokens_counted


def read_documents(right: Callable[..., Any]) -> Callable[..., Any]:
    def visited_after_reading(documents: Tensor, count: int, block: int) -> Any:
        return right(documents, count if documents.max().item() > 0 else 1, block)

    return visited_after_reading


PLANTED: dict[str, Planted] = {
    "a norm reads a value": Planted(RMSNorm, "forward", read_a_value),
    "the rotary table is on the host": Planted(forward_pass, "rotations", rotate_by_host_table),
    "positions look up a table on the host": Planted(
        forward_pass, "rotations", rotate_by_host_table, "train documents bfloat16"
    ),
    "the mask is on the host": Planted(masks, "build_mask", mask_on_host),
    "rope computes in fp64": Planted(attention, "rotate", rotate_in_fp64),
    "a norm has an fp64 constant": Planted(RMSNorm, "forward", keep_fp64_constant),
    "AdamW counts its steps on the host": Planted(
        optimizer._AdamWGroup, "add", put_on_host("steps")
    ),
    "AdamW has a moment on the host": Planted(
        optimizer._AdamWGroup, "add", put_on_host("exp_avg_sqs")
    ),
    "Muon reads a norm": Planted(Muon, "step", read_update_norm, "train muon bfloat16"),
    "the optimizer waits for the card": Planted(optimizer.Optimizer, "step", wait_after),
    "a save waits for its copies": Planted(SideCopy, "begin", wait_after, "train saving bfloat16"),
    "a save is not page-locked": Planted(
        Watch, "register", do_not_register, "train saving bfloat16"
    ),
    "the copy of a batch blocks": Planted(gradients, "to_device", copy_and_wait),
    "batches are not page-locked": Planted(Tensor, "pin_memory", do_not_pin),
    "a layer multiplies in fp32": Planted(SwiGLU, "forward", multiply_in_fp32),
    "a layer keeps a tensor on the host": Planted(SwiGLU, "__init__", keep_plain_tensor),
    "experts group products where torch has no kernel": Planted(
        expert_products, "product_path", group_on_any_card, model="experts"
    ),
    "the operation of experts reads a value": Planted(
        expert_products, "_row_multiple", read_inside_the_operation, model="experts"
    ),
    "a window reads the documents": Planted(
        masks, "visited_blocks", read_documents, model="windows"
    ),
    "the router looks up which experts are used": Planted(
        experts, "mix_experts", count_tokens, model="experts"
    ),
    "evaluation indexes by a mask": Planted(
        held_out, "token_nll", scores_by_mask, "evaluate in training bfloat16"
    ),
    "evaluation indexes by a list": Planted(
        held_out, "token_nll", scores_by_list, "evaluate in training bfloat16"
    ),
    "generation copies a token with torch.tensor": Planted(
        import_module("pion.generation.decoding"),
        "cache_tokens",
        tokens_by_tensor,
        "generate float32",
    ),
    "a captured step reads a value": Planted(RMSNorm, "forward", read_a_value, "replay float32"),
    "a captured step copies from the host": Planted(
        FixedStep, "compute", copy_in_each_step, "replay float32"
    ),
    "the cache is on the host": Planted(LayerCache, "extend", cache_on_host, "generate float32"),
}


def main() -> None:
    reports = {}
    with pretended_card() as watch:
        for name, planted in PLANTED.items():
            with planted.plant():
                config = MODELS[planted.model]
                if config.wiring is None:  # else it names layers
                    config = dataclasses.replace(config, n_layers=1)
                reports[name] = rehearse(watch, config, SCENARIOS[planted.scenario])
    print_reports(reports)


if __name__ == "__main__":
    main()
