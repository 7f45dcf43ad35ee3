"""The training loop of every stage, one optimizer step at a time.

The trainer owns weights, optimizer and data position; its caller decides when to log, evaluate,
save and stop. One process per rank; with several, torch.distributed is initialised beforehand.
"""

from __future__ import annotations

import base64
import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from pion.data.stream import Batch, RowStream, to_device
from pion.errors import BadInput, Trouble
from pion.evaluate import Scorer
from pion.model.decoder import Decoder
from pion.train import hardware
from pion.train.feed import BatchFeed, RowRange
from pion.train.heldout import Evaluation, evaluate
from pion.train.metrics import StepMetrics, StepRecord
from pion.train.optimizer import Optimizer, check_tensors, copy_tensors
from pion.train.schedule import lr_at
from pion.train.settings import Plan, TrainSettings

__all__ = ["Evaluation", "Plan", "TrainSettings", "TrainState", "Trainer"]


@dataclass(frozen=True)
class TrainState:
    """Everything a stage resumes from, as references to live tensors: snapshot before stepping on.

    `meta` is JSON: step, next_row, skipped, the recent losses that a spike is measured against,
    optimizer counters, RNG states and the execution plan.
    """

    model: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    meta: dict[str, Any]


class _ScaledLoss(nn.Module):
    """The decoder's summed loss times a factor, as a module because DDP wraps a forward."""

    def __init__(self, model: Decoder) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Batch, scale: Tensor) -> Tensor:
        loss = self.model.loss(
            batch.tokens,
            batch.targets,
            positions=batch.positions,
            documents=batch.documents,
            reduction="sum",
        )
        return loss * scale


def _never() -> bool:
    return False


class Trainer:
    """Trains `model` on `stream` as `settings` say, executed as `plan` says.

    `step` counts finished optimizer steps, `next_row` is the first row not yet trained on and
    `skipped` the [first, stop) row ranges to leave out. All ranks construct it and call its methods
    alike. `clock` (seconds) times throughput.

    `train_step` raises BadInput for a global batch smaller than the world size.
    """

    def __init__(
        self,
        model: Decoder,
        stream: RowStream,
        settings: TrainSettings,
        plan: Plan,
        *,
        rank: int = 0,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        hardware.configure(plan)
        self.settings, self.plan, self.rank = settings, plan, rank
        self.device = torch.device(plan.device)
        self.dtype = torch.bfloat16 if plan.dtype == "bfloat16" else torch.float32
        self.model = model.to(self.device)
        self.model.recompute = plan.recompute
        self.optimizer = Optimizer(self.model, settings, self.dtype)
        self.step = 0
        self.next_row = 0
        self.skipped: list[RowRange] = []
        self._feed = BatchFeed(
            stream,
            global_batch=settings.global_batch,
            micro_batch=plan.micro_batch,
            rank=rank,
            world_size=plan.world_size,
            pin=self.device.type == "cuda",
        )
        self._metrics = StepMetrics(model.config, plan, clock, settings.max_spike)
        if plan.compile:
            for block in self.model.blocks:
                block.compile()
        self._loss: nn.Module = _ScaledLoss(self.model)
        self._control: Any = None  # process group
        self._ddp: DistributedDataParallel | None = None
        if plan.world_size > 1:
            # Ranks agree on stopping over gloo, which never waits for the GPU.
            gloo = dist.get_backend() == "gloo"
            self._control = dist.group.WORLD if gloo else dist.new_group(backend="gloo")
            self._ddp = DistributedDataParallel(self._loss, gradient_as_bucket_view=True)
            self._loss = self._ddp
            self._primed = False

    @property
    def grad_accum(self) -> int:
        """Micro-batches in an optimizer step, on the rank that has most."""
        rows = math.ceil(self.settings.global_batch / self.plan.world_size)
        return math.ceil(rows / self.plan.micro_batch)

    # ------------------------------------------------------------ one step

    def train_step(self, should_stop: Callable[[], bool] = _never) -> bool:
        """Train on the next `global_batch` rows; False if abandoned, with nothing changed.

        `should_stop` is asked before each micro-batch; the step is abandoned on all ranks as soon
        as one of them says so. Nothing here waits for the device: loss and gradient norm stay
        there until `drain_metrics`.
        """
        self._metrics.begin_step()
        batch = self._feed.take(self.next_row, self.skipped)
        if self.step + 1 < self.settings.steps:
            self._feed.prepare(batch.rows[1], self.skipped)

        targets = self._summed(torch.full((), float(batch.targets), device=self.device))
        # DDP averages over ranks; the gradient of the global batch is the sum.
        scale = self.plan.world_size / targets.clamp(min=1.0)
        loss = torch.zeros((), device=self.device)
        self.model.train()
        if self._ddp is not None and not self._primed:
            self._prime(batch.micro_batches[0])
        # A rank with fewer micro-batches sits out the first, so that all end with their last.
        for i in range(len(batch.micro_batches) - self.grad_accum, len(batch.micro_batches)):
            if self._any_rank(should_stop()):
                self.optimizer.zero_grad()
                return False
            if i >= 0:
                last = i == len(batch.micro_batches) - 1
                loss += self._backward(batch.micro_batches[i], scale, synchronise=last)
        loss = self._summed(loss) / self.plan.world_size

        grads = [p.grad for p in self.optimizer.params if p.grad is not None]
        grad_norm = nn.utils.get_total_norm(grads, foreach=True)
        if self.settings.clip > 0:
            nn.utils.clip_grads_with_norm_(
                self.optimizer.params, self.settings.clip, grad_norm, foreach=True
            )
        lr_scale = lr_at(self.settings, self.step)
        self.optimizer.step(lr_scale)
        self.optimizer.zero_grad()
        self.step += 1
        self.next_row = batch.rows[1]
        self._metrics.add(
            StepRecord(
                step=self.step,
                rows=batch.rows,
                lr=self.settings.lr * lr_scale,
                loss=loss,
                grad_norm=grad_norm,
                targets=targets,
                global_batch=self.settings.global_batch,
                seq_len=batch.micro_batches[0].tokens.shape[1],
            )
        )
        return True

    def _backward(self, batch: Batch, scale: Tensor, *, synchronise: bool) -> Tensor:
        """Add one micro-batch's gradient; with `synchronise`, sum gradients over ranks."""
        alone = nullcontext() if self._ddp is None or synchronise else self._ddp.no_sync()
        with alone:
            loss = self._forward(batch, scale)
            loss.backward()
        return loss.detach()

    def _forward(self, batch: Batch, scale: Tensor) -> Tensor:
        batch = to_device(batch, self.device)
        bf16 = self.dtype == torch.bfloat16
        with torch.autocast(self.device.type, torch.bfloat16, enabled=bf16):
            loss: Tensor = self._loss(batch, scale)
        return loss

    def _prime(self, batch: Batch) -> None:
        """Let DDP rearrange its buckets, which it does once: in the forward pass that follows the
        first synchronised backward.

        The arrangement decides the order in which three or more ranks' gradients are added. Done
        before the first step, it is the same in a run resumed here and in one that never stopped;
        and all ranks do it at once, though not all have a micro-batch to begin a step with.
        """
        assert self._ddp is not None
        nothing = torch.zeros((), device=self.device)
        self._forward(batch, nothing).backward()
        with self._ddp.no_sync():
            self._forward(batch, nothing)
        self.optimizer.zero_grad()
        self._primed = True

    def _summed(self, value: Tensor) -> Tensor:
        """A scalar summed over ranks, on the device, in place."""
        if self.plan.world_size > 1:
            dist.all_reduce(value)
        return value

    def _any_rank(self, flag: bool) -> bool:
        if self._control is None:
            return flag
        asked = torch.tensor(int(flag))
        dist.all_reduce(asked, op=dist.ReduceOp.MAX, group=self._control)
        return bool(asked)

    # ------------------------------------------------------------ measurements

    def drain_metrics(self) -> list[dict[str, Any]]:
        """Metrics of the steps since the last call, one dict each, waiting for the device once.

        Keys: step (finished steps, this one included), loss (nats per target token), lr,
        grad_norm (before clipping), tokens (targets), rows ([first, stop)), and over the whole
        interval tokens_per_second (input tokens, all ranks), mfu and memory (bytes, this rank).

        Raises Trouble once a step has gone wrong: its loss or gradient was not finite, or its loss
        above `settings.max_spike`. The metrics of the steps before it, and of no later one, are the
        error's. Every call raises it until `load` goes back to a state from before.
        """
        return self._metrics.drain()

    def trouble(self) -> Trouble | None:
        """What `drain_metrics` would raise, waiting for the device.

        All ranks judge the same numbers, but only on those that ask at the same step does it come
        at the same step: a rank that saves alone looks here and leaves raising to the next drain.
        """
        return self._metrics.trouble()

    def evaluate(
        self,
        stream: RowStream,
        rows: range,
        micro_batch: int,
        vocab_size: int | None = None,
        on_batch: Callable[[], None] = lambda: None,
    ) -> Evaluation:
        """Return the held-out loss over `rows` of `stream`, shared out over ranks.

        The softmax is over the first `vocab_size` ids, those that the tokenizer produces; by
        default over all ids. `on_batch` is called after each micro-batch. Raises BadInput if the
        rows hold no target.
        """
        ids = vocab_size or self.model.config.vocab_size
        scorer = Scorer(self.model, ids, micro_batch, self.dtype, on_batch)
        world_size = self.plan.world_size
        return evaluate(scorer, stream, rows, rank=self.rank, world_size=world_size)

    # ------------------------------------------------------------ state

    def state(self) -> TrainState:
        """The state after the last finished step, as references to live tensors.

        Raises Trouble instead of handing out weights that a step gone wrong has ruined.
        """
        trouble = self.trouble()
        if trouble is not None:
            raise trouble
        return TrainState(
            model=self.model.state_dict(),
            optimizer=self.optimizer.state_tensors(),
            meta={
                "step": self.step,
                "next_row": self.next_row,
                "skipped": [list(rows) for rows in self.skipped],
                "recent_losses": self._metrics.recent_losses(),
                "optimizer": {"steps": self.optimizer.steps},
                "rng": _rng_states(self.device),
                "plan": self.plan.to_dict(),
            },
        )

    def load(self, state: TrainState | None) -> None:
        """Go on from `state`. With several ranks rank 0's is sent to all; others may pass None.

        Raises BadInput on every rank, with nothing changed, if the state is another model's or
        optimizer's.
        """
        refusal = None
        if state is not None:
            try:
                check_tensors(state.model, self.model.state_dict(), "checkpoint")
                check_tensors(
                    state.optimizer, self.optimizer.state_tensors(), "checkpoint's optimizer state"
                )
            except BadInput as error:
                refusal = str(error)
        meta, refusal = self._from_rank_0((state.meta if state else {}, refusal))
        if refusal is not None:
            raise BadInput(refusal)
        if state is not None:
            copy_tensors(state.model, self.model.state_dict())
            copy_tensors(state.optimizer, self.optimizer.state_tensors())
        if self.plan.world_size > 1:
            for tensors in (self.model.state_dict(), self.optimizer.state_tensors()):
                for tensor in tensors.values():
                    dist.broadcast(tensor, src=0)
        self.optimizer.set_steps(meta["optimizer"]["steps"])
        self.step, self.next_row = meta["step"], meta["next_row"]
        self.skipped = [(first, stop) for first, stop in meta["skipped"]]
        _set_rng_states(meta["rng"], self.device)
        self._metrics.restart(meta.get("recent_losses", ()))

    def _from_rank_0(self, value: Any) -> Any:
        if self.plan.world_size == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0, group=self._control)
        return values[0]

    def close(self) -> None:
        """End the background thread."""
        self._feed.close()


def _rng_states(device: torch.device) -> dict[str, str]:
    """States of torch's generators, as base64."""
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return {
        name: base64.b64encode(state.numpy().tobytes()).decode() for name, state in states.items()
    }


def _set_rng_states(states: dict[str, str], device: torch.device) -> None:
    """Restore what `_rng_states` returned, as far as this machine has such generators."""
    for name, text in states.items():
        state = torch.frombuffer(bytearray(base64.b64decode(text)), dtype=torch.uint8)
        if name == "cpu":
            torch.set_rng_state(state)
        elif name == "cuda" and device.type == "cuda":
            torch.cuda.set_rng_state(state, device)
