"""The memory of a training step: the real model runs on fake tensors, with blocks that stand in.

A forward and a backward pass of the model run at the rows that are asked for. In this pass, each
different block is measured by itself (block.py), and every block only takes and frees the
bytes that were measured. So a pass costs little, however many layers there are, and all that is
around the blocks is there as autograd keeps it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import TreeSpec, tree_flatten, tree_leaves, tree_unflatten

from pion.config.model_config import OTHER_ROLES
from pion.data.sequences import Sequences, columns_for
from pion.data.stream import Batch
from pion.garbage_collection import without_collection
from pion.model import decoder
from pion.model.block import Block
from pion.model.decoder import Decoder
from pion.model.forward_pass import BlockInputs, StepOptions
from pion.model.lora_projections import add_lora
from pion.model.norm_and_projection import RMSNorm
from pion.model.parameters import freeze
from pion.train.memory_trace.backward import root_of, run_backward
from pion.train.memory_trace.block import Kind, Pass, measure_block, stand_in
from pion.train.memory_trace.live_bytes import LiveBytes, Peaks
from pion.train.memory_trace.shards import (
    NO_GROUPS,
    Groups,
    Shards,
    groups_of,
    kept_whole,
    tables_of,
)
from pion.train.memory_trace.stand_ins import OPENED, replaced, stand_ins
from pion.train.objective import CrossEntropy, Objective
from pion.train.preference import Preference
from pion.train.preference_losses import METRICS, PreferenceLoss

if TYPE_CHECKING:
    from pion.train.workload import Workload


class StepTrace:
    """Traces the steps of one model. Raises what the model raises for its configuration."""

    def __init__(self, work: Workload) -> None:
        self._work = work
        _let_the_engine_count_devices()
        self._mode = FakeTensorMode(allow_non_fake_inputs=True)
        self._live = LiveBytes(work.device, OPENED)
        # To free garbage in the middle of a pass would look as if the pass freed it.
        with self._on_paper(), without_collection():
            self._model = model_of(work)

    def peaks(self, rows: int, *, recompute: bool, ranks: int = 1) -> Peaks:
        """Return what a micro-batch of so many rows needs.

        `ranks` is how many keep parts of the weights, if they are sharded.
        """
        groups = groups_of(self._model, ranks) if self._work.sharded else NO_GROUPS
        now, rest = Pass(recompute, shards=groups.blocks), groups.rest
        with self._on_paper(), without_collection(), self._gathering_tables(now, groups):
            if self._work.sharded:
                drop_gradients(self._model, self._model)
            start, self._live.history = self._live.live, []
            now.received = torch.empty(rest.gathered, dtype=torch.uint8, device=self._work.device)
            total = self._loss(partial(self._stand_in, now, {}), rows, now)
            forward = max(self._live.history)
            retained = self._live.live - start
            self._live.history = []
            roots = [root_of(total, torch.ones_like(total))]
            del total
            # While the backward pass of the head runs, the last block is received ahead.
            ahead = groups.blocks[-1].gathered if groups.blocks else 0
            now.received = torch.empty(ahead, dtype=torch.uint8, device=self._work.device)
            run_backward(roots)
            backward = max(self._live.history)
        # The loss of gates calls the model's `logits` inside of `losses`. Then FSDP2 frees the rest
        # after the forward pass, and gathers it again.
        again = retained + rest.copied_out if self._work.config.gates else 0
        return Peaks(
            now.activations + rest.gathered - start,
            max(forward - start + rest.gathered, rest.copied_out),
            max(backward - start + rest.gathered, again, groups.at_the_end),
        )

    @contextlib.contextmanager
    def _gathering_tables(self, now: Pass, groups: Groups) -> Iterator[None]:
        """Let value tables, which are no blocks, be gathered when they are read."""
        device = self._work.device

        def before(group: Shards, *_: Any) -> None:
            torch.empty(group.arriving, dtype=torch.uint8, device=device)
            now.received = None
            torch.empty(group.copied_out, dtype=torch.uint8, device=device)

        def after(group: Shards, *_: Any) -> None:
            now.received = torch.empty(group.gathered, dtype=torch.uint8, device=device)

        with contextlib.ExitStack() as hooks:
            for table, group in zip(tables_of(self._model), groups.tables, strict=False):
                for hook in (
                    table.register_forward_pre_hook(partial(before, group)),
                    table.register_forward_hook(partial(after, group)),
                ):
                    hooks.callback(hook.remove)
            yield

    @contextlib.contextmanager
    def _on_paper(self) -> Iterator[None]:
        device, bf16 = self._work.device, self._work.dtype == "bfloat16"
        before = torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)
        with self._mode, self._live, stand_ins(device, self._work.capability):
            # torch.autocast would turn itself off on a card that is not there.
            torch.set_autocast_enabled(device, bf16)
            torch.set_autocast_dtype(device, torch.bfloat16)
            torch.autocast_increment_nesting()
            try:
                with torch.enable_grad():
                    yield
            finally:
                torch.clear_autocast_cache()
                torch.autocast_decrement_nesting()
                torch.set_autocast_enabled(device, before[0])
                torch.set_autocast_dtype(device, before[1])

    def _loss(self, run: Callable[..., Any], rows: int, now: Pass) -> Tensor:
        """Return the loss of so many rows, in a pass whose blocks are run by `run`."""
        work = self._work
        head = "linear_log_probs" if work.sequences else "linear_cross_entropy"
        of_head = getattr(decoder, head)

        def loss(*arguments: Any, **options: Any) -> Tensor:
            now.activations = now.activations or self._live.live
            result: Tensor = of_head(*arguments, **options)
            return result

        with torch.device(work.device):
            batch, objective = batch_of(work, rows), objective_of(work)
        residual = torch.bfloat16 if work.residual == "bfloat16" else torch.float32
        with (
            replaced(decoder, "_run_block", run),
            replaced(decoder, "compiled", lambda function: _FusedNorm.apply),
            replaced(decoder, head, loss),
        ):
            options = StepOptions(compiled=work.compile, residual=residual)
            measured = objective.measured(self._model, batch, options)
        total: Tensor = measured.loss + measured.aux * 0.1
        now.copies.clear()
        now.received = None
        torch.clear_autocast_cache()
        return total

    def _stand_in(
        self,
        now: Pass,
        kinds: dict[Any, Kind],
        block: Block,
        x: Tensor,
        inputs: BlockInputs,
        *_: Any,
    ) -> Any:
        """Return what stands for a block's results. The first block of a structure is measured."""
        leaves, spec = tree_flatten((x, inputs))
        structure = _structure_of(block, leaves, spec)
        if structure not in kinds:
            kinds[structure] = self._measured(block, leaves, spec)
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        shared = _shared_weights(inputs)
        return stand_in(kinds[structure], now, tensors, shared, inputs.attention.mask)

    def _measured(self, block: Block, leaves: list[Any], spec: TreeSpec) -> Kind:
        stand_ins = [
            leaf.detach().requires_grad_(leaf.requires_grad) if isinstance(leaf, Tensor) else leaf
            for leaf in leaves
        ]
        made: list[Any] = []

        def run() -> list[Tensor]:
            results, form = tree_flatten(block(*tree_unflatten(stand_ins, spec)))
            # What would be made of a result would keep it.
            likes = [
                torch.empty(r.shape, dtype=r.dtype, device="meta", requires_grad=r.requires_grad)
                for r in results
            ]
            made[:] = likes, form
            return results

        with replaced(torch.compiler, "is_compiling", lambda: self._work.compile):
            memory = measure_block(self._live, run, compiled=self._work.compile)
        if self._work.sharded:
            drop_gradients(block, self._model)
        return Kind(memory, *made)


class _FusedNorm(torch.autograd.Function):
    """A compiled norm reads and writes hidden states in their dtype, and keeps its input."""

    @staticmethod
    def forward(ctx: Any, norm: RMSNorm, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return torch.empty_like(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor]:
        return None, torch.empty_like(gradient)


def _let_the_engine_count_devices() -> None:
    """Let torch's engine start the threads that it needs on this machine.

    It counts the devices before its first backward pass. Fake tensors make eight cards of none: the
    engine would start a thread for each, and then no process that is forked could train.
    """
    with torch.inference_mode(False), torch.enable_grad():
        torch.zeros((), requires_grad=True).clone().backward()


def _structure_of(block: Block, leaves: list[Any], spec: TreeSpec) -> Any:
    """Return what equal blocks of a pass have in common."""
    weights = tuple((n, p.shape, p.dtype, p.requires_grad) for n, p in block.named_parameters())
    tensors = tuple((t.shape, t.dtype, t.requires_grad) for t in leaves if isinstance(t, Tensor))
    modules = [leaf for leaf in leaves if isinstance(leaf, nn.Module)]
    shared = tuple((p.shape, p.dtype, p.requires_grad) for m in modules for p in m.parameters())
    return repr(block), weights, tensors, shared, str(spec)


def _shared_weights(inputs: BlockInputs) -> list[Tensor]:
    """Return the learned weights that a block gets: their gradients wait for those of other blocks.

    A value table or a gate comes as a tensor, and is an input like others. The weights that a
    module names in `outside` get their gradient outside of blocks.
    """
    parts = [leaf for leaf in tree_leaves(inputs) if isinstance(leaf, nn.Module)]
    modules = (module for part in parts for module in part.modules())
    outside = {id(getattr(module, n)) for module in modules for n in getattr(module, "outside", ())}
    weights = (weight for part in parts for weight in part.parameters())
    return [weight for weight in weights if weight.requires_grad and id(weight) not in outside]


# ---------------------------------------------------------------- the model and its batch


def model_of(work: Workload) -> Decoder:
    """Return the model, with the gradients that an earlier micro-batch of the step has left.

    If ranks keep parts of the weights, blocks have their weights as they are gathered, without
    gradients: each rank has its part of these elsewhere.
    """
    with torch.device(work.device), replaced(decoder, "draw_weights", lambda *a, **k: None):
        model = Decoder(work.config)
        if work.lora is not None:
            if work.lora.base_dtype == "bfloat16" and work.dtype == "bfloat16":
                model = Decoder.from_state(work.config, model.state_dict(), torch.bfloat16)
            add_lora(model, work.lora, seed=0)
        if work.only_apart:
            freeze(model, OTHER_ROLES)
        if work.sharded and work.dtype == "bfloat16":
            whole_weights = {id(weight) for weight in kept_whole(model)}
            for weight in model.blocks.parameters():
                if id(weight) not in whole_weights:
                    weight.data = weight.data.to(torch.bfloat16)
        for parameter in model.parameters():
            parameter.grad = torch.empty_like(parameter) if parameter.requires_grad else None
        if work.sharded:
            drop_gradients(model.blocks, model)
    return model


def drop_gradients(module: nn.Module, model: Decoder) -> None:
    """Drop the gradients of a module of the model, but those of weights that each rank has whole:
    their gradients are there in all micro-batches."""
    whole_weights = {id(weight) for weight in kept_whole(model)}
    for weight in module.parameters():
        if id(weight) not in whole_weights:
            weight.grad = None


def batch_of(work: Workload, rows: int) -> Batch:
    """Return rows of zeros."""
    tokens = torch.zeros(rows, work.seq_len, dtype=torch.int64)
    zeros = [torch.zeros_like(tokens) if work.documents else None for _ in range(2)]
    sequences = None
    if work.sequences:
        numbers = torch.zeros(rows, columns_for(work.sequences, paired=True), dtype=torch.float64)
        sequences = Sequences(numbers, numbers.long(), numbers.to(torch.int8))
    return Batch(tokens, torch.zeros_like(tokens), zeros[0], zeros[1], sequences)


def objective_of(work: Workload) -> Objective:
    """Return what the step minimizes. All losses of preferences need about the same."""
    if not work.sequences:
        return CrossEntropy(torch.ones(()))
    counts: dict[str, Tensor] = {
        name: torch.ones((), dtype=torch.float64) for name in set(METRICS.values())
    }
    return PreferenceLoss(Preference(), counts)
