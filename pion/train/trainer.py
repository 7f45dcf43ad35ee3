"""Train a decoder, one optimizer step at a time, in any stage.

The trainer owns weights, optimizer and data position. Its caller decides when to log, evaluate,
save and stop. Each rank is a process. With several ranks, initialize torch.distributed first.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from pion.config.model_config import OTHER_ROLES, ModelConfig
from pion.data.order import rows_per_rank
from pion.errors import BadInput, PlanFailed, Trouble
from pion.evaluation.held_out import Evaluation
from pion.model.attention.masks import masked_by_flex
from pion.model.decoder import Decoder
from pion.model.forward_pass import StepOptions
from pion.model.lora_projections import additions
from pion.model.parameters import freeze
from pion.model.params_and_flops import token_flops
from pion.model.saved_weights import Saved
from pion.train import hardware
from pion.train.feed import RowRange, StepBatch
from pion.train.gradients import Gradients, Ranks
from pion.train.metrics import StepMetrics, StepRecord
from pion.train.objective import Measures, Objective
from pion.train.optimizer.optimizer import Optimizer
from pion.train.optimizer.state_pieces import (
    Piece,
    check_tensors,
    copy_from_rank_0,
    copy_tensors,
    hand_out,
)
from pion.train.phases import only_apart, phase_at
from pion.train.schedule import StepPlan, plan_at
from pion.train.settings import ComputePlan, TrainSettings
from pion.train.side_copy import SideCopy
from pion.train.smaller_plan import StepDown, free_memory, step_down
from pion.train.train_state import TrainState, rng_states, set_rng_states
from pion.train.ways import WAYS, Feed

if TYPE_CHECKING:
    from pion.train.sharding import Shards

__all__ = ["ComputePlan", "Evaluation", "TrainSettings", "TrainState", "Trainer"]


class Trainer:
    """Trains `model` on `stream`. `settings` say what is learned, `plan` how it is computed.

    What the stream is, and what a step does with it, is said by the way of learning (ways.py).

    `step` counts finished optimizer steps. `next_row` is the first row not yet trained on, and
    `skipped` has the [first, stop) row ranges to leave out. `clock` (seconds) times throughput.
    `on_step_down` is called when a step could not be computed as planned, and the plan has changed.
    `may_divide` says whether the ranks may divide the model where it does not fit otherwise.
    Every rank constructs a trainer and calls the same methods in the same order.

    With `plan.sharded`, each rank keeps a part of the model (sharding.py). Then the model may have
    parameters on the device `meta`. They have the values of `weights`, or none until `load`. With
    `shards`, the model is sharded already.

    Raises BadInput for a model whose banks are packed.
    """

    def __init__(
        self,
        model: Decoder,
        stream: Any,
        settings: TrainSettings,
        plan: ComputePlan,
        *,
        rank: int = 0,
        clock: Callable[[], float] = time.perf_counter,
        weights: Saved | None = None,
        shards: Shards | None = None,
    ) -> None:
        if model.config.packed:
            raise BadInput("a published model with packed banks can't be trained")
        hardware.configure(plan)
        self.settings, self.plan, self.rank = settings, plan, rank
        self.device = torch.device(plan.device)
        self.dtype = hardware.torch_dtype(plan.dtype)
        self.model = model if plan.sharded else model.to(self.device)
        # LoRA's base is not in a checkpoint. All else is, although it may not be trained.
        self._config = model.config
        self._stream = stream
        self._brought = {n for n, param in model.named_parameters() if not param.requires_grad}
        if self._brought:
            self._brought |= {name for name, _ in model.named_buffers()}
        self._ranks = Ranks(plan.world_size)
        way, freezes = WAYS[type(settings.learning)], only_apart(settings.phases, model.config)
        freeze(model, OTHER_ROLES if freezes else way.without_loss)
        self._shards = shards or self._sharded(weights)
        self.optimizer = self._optimizer()
        self.step = self.next_row = 0
        self.skipped: list[RowRange] = []
        self.may_divide = False
        self.on_step_down: Callable[[StepDown], None] = lambda change: None
        self.side_copy = SideCopy(torch.cuda if self.device.type == "cuda" else None)
        self._updating = self._uses_flex = False
        self._feed: Feed = way(self.model, stream, settings, plan, rank=rank, ranks=self._ranks)
        config = model.config.alone if way.without_loss else model.config
        added = sum(tensor.numel() for tensor in additions(model).values()) or None
        flops = partial(token_flops, config, additions=added, only_apart=freezes)
        self._metrics = StepMetrics(flops, plan, clock, settings.max_spike)
        if self._shards is None and plan.world_size > 1:
            # Whatever the other ranks drew, all begin with the weights of rank 0.
            copy_from_rank_0(self.model.state_dict().values(), self.device)
        self._gradients = Gradients(self.model, self.dtype, plan.world_size, self._shards)

    def _optimizer(self) -> Optimizer:
        return Optimizer(
            self.model,
            self.settings,
            self.dtype,
            rank=self.rank,
            world_size=self.plan.world_size,
            own=None if self._shards is None else self._shards.learned,
        )

    def _sharded(self, weights: Saved | None) -> Shards | None:
        if not self.plan.sharded:
            return None
        # Here, because this imports DTensor, which takes a second.
        from pion.train.sharding import sharded

        return sharded(self.model, weights, self.plan, self.rank)

    @property
    def grad_accum(self) -> int:
        """The number of micro-batches in an optimizer step, on the rank that has the most."""
        rows = rows_per_rank(self.settings.global_batch, self.plan.world_size)
        return math.ceil(rows / self.plan.micro_batch)

    # ------------------------------------------------------------ one step

    def train_step(self, should_stop: Callable[[], bool] = lambda: False) -> bool:
        """Train on the next `global_batch` rows; return False if the step was abandoned.

        `should_stop` is called before each micro-batch. As soon as it returns True on one rank, all
        ranks abandon the step, and nothing is changed. This call does not wait for the device: loss
        and gradient norm stay there until `drain_metrics`.

        If the memory runs out or the compilation fails, the step begins again from its first row,
        and this and all later steps use a smaller plan (smaller_plan.py): first of all, no graphs
        (micro_batch_graphs.py).

        Raises BadInput if the global batch is smaller than the world size, if not even one row fits
        into memory, or if the way can't learn from the rows; PlanFailed if the plan has to
        change but not in place: other ranks wait for this one, or the weights are partly updated.
        """
        while True:
            try:
                return self._train_step(should_stop)
            except Exception as error:
                change = None
                if self._updating or not self._gradients.graphs.give_up(error):
                    change = step_down(
                        self.plan, error, uses_flex=self._uses_flex, may_divide=self.may_divide
                    )
                    if change is None:
                        raise
                    if self.plan.world_size > 1 or self._updating:
                        raise PlanFailed(change.plan.to_dict(), change.why) from None
            # Here the error is gone, and with its traceback the tensors of the step.
            self.optimizer.zero_grad()
            free_memory(self.device)
            if change is None:
                continue
            self.plan = change.plan
            hardware.configure(self.plan)
            self._feed.follow(self.plan)
            self.on_step_down(change)

    def _train_step(self, should_stop: Callable[[], bool]) -> bool:
        self._metrics.begin_step()
        batch = self._feed.take(self.next_row, self.skipped)
        self.model.config = self.config_at(batch.rows[1])
        documents = batch.micro_batches[0].documents is not None
        self._uses_flex = masked_by_flex(self.model.config, self.device, documents=documents)
        if self.step + 1 < self.settings.steps:
            self._feed.prepare(batch.rows[1], self.skipped)

        targets = self._ranks.sum(torch.full((), float(batch.targets), device=self.device))
        plan = plan_at(self.settings, self.step, self.model.config)
        objective = self._feed.objective(batch, targets)
        if (measured := self._add_gradients(batch, objective, plan, should_stop)) is None:
            self.optimizer.zero_grad()
            return False
        loss, stats, sums = measured
        loss, measures = objective.reported(loss, sums)
        grad_norm = self._clip_gradients(plan)
        if batch.learns:
            self._updating = True
            self.side_copy.before_update()
            self.optimizer.step(plan)
            self._updating = False
        self.optimizer.zero_grad()
        self.step += 1
        self.next_row = batch.rows[1]
        self._metrics.add(
            StepRecord(
                step=self.step,
                rows=batch.rows,
                lr=plan.lr,
                loss=loss,
                stats=stats,
                measures=measures,
                grad_norm=grad_norm,
                targets=targets,
                tokens=batch.tokens,
                seq_len=batch.micro_batches[0].tokens.shape[1],
            )
        )
        return True

    def config_at(self, next_row: int) -> ModelConfig:
        """Return the config of the model that has read the rows before `next_row`.

        What a model reads follows the rows, and rates follow the steps: the two part by the steps
        that were left out after a spike.
        """
        settings = self.settings
        if not settings.phases:
            return self._config
        read = max(0, next_row - 1) // settings.global_batch
        fields = phase_at(settings.phases, read, settings.steps).config_fields()
        if any(phase.seq_len for phase in settings.phases):  # before, rows are shorter
            fields.setdefault("seq_len", self._stream.seq_len)
        return replace(self._config, **fields)

    def _add_gradients(
        self,
        batch: StepBatch,
        objective: Objective,
        plan: StepPlan,
        should_stop: Callable[[], bool],
    ) -> tuple[Tensor, dict[str, Tensor], Measures] | None:
        """Compute the gradients of the global batch.

        Return the loss, the mean report of the rows, and what the objective measured; or None if a
        rank wants to stop.
        """
        loss = torch.zeros((), device=self.device)
        stats: dict[str, Tensor] = {}
        measures: Measures = batch.measures_on(self.device)
        self.model.train()
        options = StepOptions(
            plan.parts,
            self.plan.recompute,
            self.plan.compile,
            hardware.torch_dtype(self.plan.residual),
        )
        self._gradients.begin(self.settings.global_batch // batch.length)
        count = len(batch.micro_batches)
        # A rank with fewer micro-batches skips the first round, so that all ranks end together. But
        # the ranks of a sharded model compute together: there, it has its first micro-batch twice.
        for i in range(count - batch.rounds, count):
            if self._ranks.any(should_stop()):
                return None
            counts = i >= 0
            if not counts and self._shards is None:
                continue
            micro_batch, last = batch.micro_batches[max(i, 0)], max(i, 0) == count - 1
            computed = self._gradients.add(
                micro_batch, objective, options, last=last, counts=counts
            )
            if not counts:
                continue
            loss = loss + computed.loss
            share = len(micro_batch.tokens) * batch.length / self.settings.global_batch
            for name, value in computed.stats.items():
                stats[name] = stats.get(name, 0.0) + value * share
            for name, value in computed.measures.items():
                measures[name] = measures.get(name, 0.0) + value
        self._gradients.sum_over_ranks()
        of_all_ranks, measures = (
            {name: self._ranks.sum(value) for name, value in sums.items()}
            for sums in (stats, measures)
        )
        return self._ranks.sum(loss), of_all_ranks, measures

    def _clip_gradients(self, plan: StepPlan) -> Tensor:
        """Scale the gradients down to the norm `settings.clip`; return their norm before that.

        Frozen parameters do not count.
        """
        params, limit = self.optimizer.trained(plan), self.settings.clip
        if self._shards is None:
            grads = [param.grad for param in params if param.grad is not None]
            norm = nn.utils.get_total_norm(grads, foreach=True)
        else:
            norm = self._shards.norm(params)
        if limit > 0:
            nn.utils.clip_grads_with_norm_(params, limit, norm, foreach=True)
        return norm

    # ------------------------------------------------------------ measurements

    def drain_metrics(self) -> list[dict[str, Any]]:
        """Return one dict for each step since the last call. This waits for the device once.

        Keys of a step: step (finished steps, including this one), loss (nats per target token, or
        what else the way of learning minimizes), lr, grad_norm (before clipping), tokens (targets),
        rows ([first, stop)), and the measures of the way (ways.py). Keys of the whole interval:
        tokens_per_second (StepBatch.tokens, of all ranks), mfu and memory (bytes, this rank).

        Raises Trouble once a step has gone wrong: its loss or gradient was not finite, or its loss
        exceeded `settings.max_spike`. The error has the metrics of the good steps before that step.
        Every call raises the error until `load` returns to an earlier state.
        """
        return self._metrics.drain()

    def trouble(self) -> Trouble | None:
        """Return the error that `drain_metrics` would raise, or None. This waits for the device.

        All ranks judge the same numbers, but they see trouble at the same step only if they ask at
        the same step. So a rank that saves alone calls this method, and the next `drain_metrics`
        raises the error on all ranks.
        """
        return self._metrics.trouble()

    def evaluate(
        self,
        stream: Any,
        rows: range,
        micro_batch: int,
        end_of_text: int,
        vocab_size: int | None = None,
        on_batch: Callable[[], None] = lambda: None,
    ) -> Evaluation:
        """Return the held-out loss over `rows` of `stream`, split over ranks.

        `end_of_text` is the id that ends a document. The softmax is over the first `vocab_size`
        ids, the ids that the tokenizer produces; by default over all ids. `on_batch` is called
        after each micro-batch. Other ways of learning have losses of their own (ways.py). Raises
        BadInput if the rows have no target.
        """
        with self.measuring():
            return self._feed.evaluate(stream, rows, micro_batch, end_of_text, vocab_size, on_batch)

    def measuring(self) -> AbstractContextManager[None]:
        """Let the caller compute with `model` in the block, without gradients.

        The ranks of a sharded model compute together: all of them do the same in the block.
        """
        return nullcontext() if self._shards is None else self._shards.measuring()

    # ------------------------------------------------------------ state

    def state(self) -> TrainState:
        """Return the state after the last finished step, as references to live tensors.

        Raises Trouble if a step went wrong, because its weights must not be saved.
        """
        if (trouble := self.trouble()) is not None:
            raise trouble
        model = self._learned()
        for name in model.keys() & dict(self.model.named_buffers()).keys():
            model[name] = model[name].clone()  # a forward pass may change a buffer
        return TrainState(
            model=model,
            optimizer=self.optimizer.state_tensors(),
            meta={
                "step": self.step,
                "next_row": self.next_row,
                "skipped": [list(rows) for rows in self.skipped],
                "recent_losses": self._metrics.recent_losses(),
                "optimizer": self.optimizer.counts(),
                "rng": rng_states(self.device),
                "plan": self.plan.to_dict(),
            },
            side_copy=self.side_copy,
            pieces=self.pieces(),
        )

    def pieces(self) -> Sequence[Piece]:
        """Return what this rank saves of the tensors of a sharded model; nothing of any other.

        The values are live, as those of `state`.
        """
        pieces = [*self.optimizer.pieces(), *self._model_pieces(self._learned())]
        return [piece for piece in pieces if piece.saved]

    def load(self, state: TrainState | None) -> None:
        """Continue from `state`. Every rank gets rank 0's state; the others may pass None.

        Raises BadInput on every rank, with nothing changed, if the state belongs to another model
        or optimizer.
        """
        meta = self._checked(state)
        self.side_copy.before_update()
        model, moments = self._learned(), self.optimizer.state_tensors()
        if self.plan.world_size > 1:
            weights, saved = (state.model, state.optimizer) if state else (None, None)
            hand_out(weights, model, self._model_pieces(model), self.device)
            hand_out(saved, moments, self.optimizer.pieces(), self.device)
        elif state is not None:
            copy_tensors(state.model, model)
            copy_tensors(state.optimizer, moments)
        if self._shards is not None:
            self._shards.release()  # or the next pass would compute with the old values
        self.optimizer.set_counts(meta["optimizer"])
        self.step, self.next_row = meta["step"], meta["next_row"]
        self.skipped = [(first, stop) for first, stop in meta["skipped"]]
        self.model.config = self.config_at(self.next_row)
        set_rng_states(meta["rng"], self.device)
        self._metrics.restart(meta.get("recent_losses", ()))

    def _checked(self, state: TrainState | None) -> dict[str, Any]:
        """Return rank 0's `meta`. Raises BadInput on every rank for the tensors of another model or
        optimizer."""
        refusal = None
        if state is not None:
            try:
                check_tensors(state.model, self._learned(), "checkpoint")
                moments = self.optimizer.state_tensors()
                check_tensors(state.optimizer, moments, "checkpoint's optimizer state")
            except BadInput as error:
                refusal = str(error)
        meta: dict[str, Any]
        meta, refusal = self._ranks.from_rank_0((state.meta if state else {}, refusal))
        if refusal is not None:
            raise BadInput(refusal)
        return meta

    def _learned(self) -> dict[str, Tensor]:
        """Return the model's tensors without LoRA's base, as live references.

        Parameters of a sharded model have no values: their device is `meta`.
        """
        if self._shards is not None:
            return self._shards.tensors(n for n in self._shards.held if n not in self._brought)
        return {n: t for n, t in self.model.state_dict().items() if n not in self._brought}

    def _model_pieces(self, learned: Mapping[str, Tensor]) -> list[Piece]:
        """Return what this rank has of the learned tensors that ranks have in parts."""
        divided = (name for name, tensor in learned.items() if tensor.is_meta)
        return [] if self._shards is None else self._shards.pieces(divided)

    def close(self) -> None:
        """End the background thread."""
        self._feed.close()
        self.side_copy.before_update()  # the memory of the tensors may be used again
