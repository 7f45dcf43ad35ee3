"""Train a step as each of two ranks, on a pretended card, and print what the rank did.

Torch's fake group answers for the other rank, and nothing is sent. So each rank is rehearsed alone,
and the test compares what the two would send. The ranks have different numbers of micro-batches.

environment.py starts this program: `python -m tests.cuda_rehearsal.two_ranks suite`, or `all`, or
`sharded`: all families, of which each rank keeps a part.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from pion.config.lora import Lora
from pion.config.model_config import ModelConfig
from pion.model.attention.rope import rotary_table
from pion.model.decoder import Decoder
from pion.model.lora_projections import add_lora
from pion.train.optimizer.optimizer import Optimizer
from pion.train.settings import ComputePlan, TrainSettings
from pion.train.trainer import Trainer
from pipeline.state.checkpoints import other_ranks
from pipeline.state.checkpoints.memory_file import MemoryFile
from pipeline.state.checkpoints.other_ranks import CopiesForRankZero
from pipeline.state.checkpoints.snapshot import Snapshot
from tests.cuda_rehearsal.fake_group import fake_group
from tests.cuda_rehearsal.our_code import where
from tests.cuda_rehearsal.pretended_card import insert_card, pretended_card
from tests.cuda_rehearsal.report import hand_back, handed_back
from tests.cuda_rehearsal.scenarios import DRAFT, Zeros, flex_attention_without_compiler, refuse
from tests.cuda_rehearsal.watch import COLLECTIVES, Operation, Watch

WORLD_SIZE = 2
# Rank 0 has one row, and rank 1 has two. One row at a time, all micro-batches have one shape.
GLOBAL_BATCH, MICRO_BATCHES = 3, (1, 2)

# Models of real widths, so that a block has more bytes than a bucket. With few ids, the loss is
# quick. One has the parts of several families.
_SMALL: dict[str, Any] = {"n_layers": 2, "vocab_size": 4096, "seq_len": 2048}
_DAISY: dict[str, Any] = _SMALL | {
    "n_layers": 4,
    "wiring": {"attention_layers": [0, 1, 3], "skips": [[3, 0]]},
    "values": {"layers": [0, 3]},
}
_PRIMITIVES: dict[str, Any] = _SMALL | {"primitives": {"bands": [[0, 1]]}}
_EXPERTS = {"n": 4, "top_k": 2, "shared": 1, "d_shared": 704}
_DENSE = ModelConfig.preset("pion-small", n_layers=2, vocab_size=4096)
FAMILIES = {
    "dense": ModelConfig.preset("pion-xl", **_SMALL),
    "tachyon": ModelConfig.preset("tachyon-large", **_SMALL),
    "daisy": ModelConfig.preset("daisy-280m", **_DAISY),
    "mixed": ModelConfig.preset("daisy-pico", **_DAISY, experts=_EXPERTS),
    "pilon": ModelConfig.preset("pilon-360m", **_PRIMITIVES),
    "lepton": ModelConfig.preset("lepton-xxl", **_SMALL),
    "draft": replace(_DENSE, draft=DRAFT),
    "lora": _DENSE,
}
# This is in every run of the tests; soak has all.
SUITE = ("dense",)
# Muon updates their matrices. AdamW updates all else.
BY_MUON = ("dense", "tachyon", "daisy", "pilon")


@dataclass(frozen=True)
class Sent:
    """A communication with the other rank."""

    operation: str  # such as "allreduce_"
    bytes: int
    device: str  # "cuda" or "cpu"
    where: str  # the line of our code, such as `pion/train/gradients.py:80 in sum`
    in_backward: bool  # whether a backward pass still computes


@dataclass
class Rank:
    """What a rank did in a step.

    `storages` has, after each micro-batch, the bytes of each storage that gradients are in, by its
    address. `gradients` are the bytes of the gradients alone, and `updates` those of what Muon
    updates, in bf16. Of a sharded model, `moments` are the bytes that this rank saves of the
    optimizer's state, and `all_moments` those of all ranks.
    """

    sent: list[Sent] = field(default_factory=list)
    storages: list[dict[str, int]] = field(default_factory=list)
    gradients: int = 0
    updates: int = 0
    moments: int = 0
    all_moments: int = 0
    findings: list[str] = field(default_factory=list)

    def of_gradients(self) -> list[Sent]:
        """Return the communications of gradients, as opposed to those of small numbers."""
        return self.sent_from("pion/train/buckets.py")

    def of_updates(self) -> list[Sent]:
        """Return the exchanges of what Muon has orthogonalized."""
        return self.sent_from("pion/train/optimizer/divided_muon.py")

    def sent_from(self, module: str) -> list[Sent]:
        """Return the communications that this module began."""
        return [sent for sent in self.sent if module in sent.where]


def rehearse(watch: Watch, family: str, number: int) -> Rank:
    """Train a step as this rank."""
    rank = Rank()
    insert_card("A40")
    rotary_table.cache_clear()
    with trainer_of(family, number) as trainer:
        add = trainer._gradients.add

        def add_and_look(*arguments: Any, **settings: Any) -> Any:
            result = add(*arguments, **settings)
            rank.storages.append(_storages(trainer.optimizer.params))
            return result

        trainer._gradients.add = add_and_look  # type: ignore[method-assign]
        with seen_in(watch, rank):
            trainer.train_step()
        _count(rank, trainer.optimizer)
    return rank


def rehearse_sharded(watch: Watch, family: str, number: int) -> Rank:
    """Train a step as this rank, which keeps a part of the model."""
    rank = Rank()
    insert_card("A40")
    rotary_table.cache_clear()
    with (
        trainer_of(family, number, sharded=True) as trainer,
        _saving(trainer) as begin_to_save,
    ):
        with seen_in(watch, rank):
            begin_to_save()
            trainer.train_step()
        state = trainer.state()
    moments = [piece for piece in state.pieces if piece.name in state.optimizer]
    rank.moments = sum(piece.values.nbytes for piece in moments)
    rank.all_moments = sum(tensor.nbytes for tensor in state.optimizer.values())
    return rank


@contextlib.contextmanager
def seen_in(watch: Watch, rank: Rank) -> Iterator[None]:
    """Note in `rank` what is sent in the block, and what is found there."""

    def see(operation: Operation) -> None:
        if operation.func.namespace == COLLECTIVES:
            rank.sent.append(_sent(operation))

    watch.start()
    watch.seen = see
    try:
        yield
    finally:
        watch.seen = None
    rank.findings = [str(finding) for finding in watch.findings]


@contextlib.contextmanager
def _saving(trainer: Trainer) -> Iterator[Callable[[], None]]:
    """Yield what begins the copies of this rank's pieces into the memory of rank 0's snapshot.

    Here, one process is both. What the two say to each other is left out.
    """
    state = trainer.state()
    with (
        mock.patch.multiple(
            other_ranks._Channel,
            __init__=lambda _: None,
            of_all_ranks=mock.Mock(),
            close=mock.Mock(),
        ),
        mock.patch.object(CopiesForRankZero, "_tell"),
        contextlib.closing(Snapshot()) as memory,
        contextlib.closing(CopiesForRankZero(state.pieces, trainer.side_copy)) as copies,
    ):
        memory.reserve(state.model, state.optimizer)
        copies._use(MemoryFile.of(memory.fd), memory.places)
        assert copies.in_rank_0
        yield copies._copy


def _count(rank: Rank, optimizer: Optimizer) -> None:
    """Count the bytes of what is learned, and of the optimizer's state."""
    state = optimizer.state_tensors()
    by_muon = [t.numel() for name, t in state.items() if name.endswith(".momentum")]
    rank.gradients = sum(4 * param.numel() for param in optimizer.params)
    rank.updates = 2 * sum(by_muon)


@contextlib.contextmanager
def trainer_of(family: str, number: int, *, sharded: bool = False) -> Iterator[Trainer]:
    """Yield the trainer of this rank. Its model is made on the card."""
    config = FAMILIES[family]
    settings = TrainSettings(
        steps=10,
        global_batch=GLOBAL_BATCH,
        lr=1e-3,
        optimizer="muon" if family in BY_MUON else "adamw",
    )
    plan = ComputePlan("cuda", "bfloat16", 1, world_size=WORLD_SIZE, sharded=sharded)
    with torch.device("cuda"):  # drawing weights on the host would take gigabytes and seconds
        model = Decoder(config)
        if family == "lora":
            add_lora(model, Lora(), seed=0)
    rows: Any = Zeros(config.seq_len)
    with (
        mock.patch.object(Decoder, "to", lambda self, device: self),  # it is already there
        flex_attention_without_compiler(),
        contextlib.closing(Trainer(model, rows, settings, plan, rank=number)) as trainer,
    ):
        trainer.on_step_down = refuse
        yield trainer


def _sent(operation: Operation) -> Sent:
    tensors = [leaf for leaf in tree_leaves(operation.args) if isinstance(leaf, Tensor)]
    return Sent(
        operation.func.overloadpacket.__name__,
        sum(tensor.nbytes for tensor in tensors),
        tensors[0].device.type,
        where(),
        torch._C._current_graph_task_id() != -1,
    )


def _storages(params: Iterable[Tensor]) -> dict[str, int]:
    storages = [param.grad.untyped_storage() for param in params if param.grad is not None]
    return {str(storage._cdata): storage.nbytes() for storage in storages}


def named(name: str) -> list[str]:
    """Return the families that are rehearsed: those of the suite, or all."""
    return list(SUITE if name == "suite" else FAMILIES)


def main(name: str) -> None:
    """Rehearse each family as both ranks, and print what they did."""
    rehearsed = rehearse_sharded if name == "sharded" else rehearse
    with fake_group(WORLD_SIZE), pretended_card() as watch:
        hand_back(
            {
                family: [asdict(rehearsed(watch, family, number)) for number in range(WORLD_SIZE)]
                for family in named(name)
            }
        )


def read_ranks(output: str) -> dict[str, list[Rank]]:
    """Return what the program printed: both ranks of each family."""
    return {
        family: [Rank(**each | {"sent": [Sent(**sent) for sent in each["sent"]]}) for each in ranks]
        for family, ranks in handed_back(output).items()
    }


if __name__ == "__main__":
    main(sys.argv[1])
