"""A run in a folder, rows of pairs, and a tiny model that they are compared with."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from pion.config.model_config import ModelConfig
from pion.data.order import RowOrder
from pion.data.stream import RowStream
from pion.model.decoder import Decoder
from pion.train.settings import ComputePlan
from pipeline.state.claim import claim_run
from pipeline.state.owner import Owner
from pipeline.state.stores import FileStore, Store
from pipeline.state.workspace import Workspace
from pipeline.training.context import TrainingContext
from pipeline.training.reference.columns import Reference
from pipeline.training.reference.of_stage import with_reference
from pipeline.training.stage_model import StageModel
from pipeline.training.train_request import Group
from tests.support.jobs import tiny_job, train_request
from tests.support.preference_files import pair_of, read_rows, write_jsonl, write_rows
from tests.support.tiny_config import tiny_config


@dataclass
class World:
    """The rows below `folder`, and the run `tiny` in the store `folder`/runs."""

    folder: Path
    micro_batch: int = 2
    asked: bool = False
    said: list[Any] = field(default_factory=list)

    def streams(self, out: str = "rows") -> dict[str, RowStream]:
        """Return the rows of both splits."""
        return {split: _stream(self.folder, split, out) for split in ("train", "held_out")}

    def start(self, model: Decoder | None = None, **plan: Any) -> StageModel:
        """Return the model that the stage starts from: always the same, unless one is given."""
        settings = {"micro_batch": self.micro_batch, "threads": 1} | plan
        return StageModel(model or model_of_the_world(), ComputePlan(**settings))

    def make(self, name: str = "tiny", model: Decoder | None = None, **plan: Any) -> Reference:
        """Let the stage of a run begin, and return its reference."""
        with self.context(name) as context:
            return begin(context, self.streams(), self.start(model, **plan))

    @contextmanager
    def context(
        self, name: str = "tiny", group: Group | None = None, store: Store | None = None
    ) -> Iterator[TrainingContext]:
        """Yield what a training process has that owns the run `name`, if it is rank 0.

        A process before it in the same `store` may have died.
        """
        group, store = group or Group(), store or FileStore(self.folder / "runs")
        job = tiny_job(sft=None, name=name)
        request = train_request(job, self.folder)
        workspace, said = Workspace(store, name), self.said.append
        context = TrainingContext(request, group, said, lambda: self.asked, workspace)
        if group.rank == 0:
            context.owned = claim_run(context.run, Owner.me(), take_over=True)
        try:
            yield context
        finally:
            context.watchdog.close()
            if context.owned is not None:
                context.owned.heartbeat.stop()
                context.owned.release()


def begin(context: TrainingContext, streams: dict[str, RowStream], start: StageModel) -> Reference:
    """Return the reference of a stage that begins."""
    return with_reference(context, streams, start, None, resumes=False)[0]


class Threads:
    """Ranks that are threads of this process: what `group` returns is a rank's `Group`."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.barrier = threading.Barrier(count)
        self.values: list[Any] = [None] * count

    def group(self, rank: int) -> Group:
        """Return the group that a rank sees."""
        return _ThreadGroup(rank, self.count, True, self)


@dataclass(frozen=True)
class _ThreadGroup(Group):
    threads: Threads = field(default_factory=lambda: Threads(1))

    def from_rank_0(self, value: Any) -> Any:
        return self.of_all_ranks(value)[0]

    def of_all_ranks(self, value: Any) -> list[Any]:
        self.threads.values[self.rank] = value
        self.threads.barrier.wait(60)
        values = list(self.threads.values)
        self.threads.barrier.wait(60)
        return values

    def wait_for_all(self) -> None:
        self.of_all_ranks(None)


def model_of_the_world(seed: int = 0) -> Decoder:
    torch.manual_seed(seed)
    return Decoder(config_of_the_world())


def config_of_the_world() -> ModelConfig:
    return tiny_config(vocab_size=512, seq_len=128, init_std=0.3)


def make_world(folder: Path, pairs: int = 30) -> World:
    """Write the rows of so many pairs below `folder`."""
    write_jsonl(folder / "prefs.jsonl", map(pair_of, range(pairs)))
    write_rows(folder, held_out=0.25)
    return World(folder)


def _stream(folder: Path, split: str, out: str) -> RowStream:
    rows = read_rows(folder, split, out)
    manifest = rows.manifest
    return RowStream([(rows, RowOrder(manifest.shard_rows, manifest.fingerprint, 0, 2))])


def numbers_of(stream: RowStream) -> list[list[float]]:
    """Return the numbers of each row, in the order of the shards; zeros if there are none."""
    rows = []
    for source, number, shard in stream.shards():
        for row in range(shard.rows):
            sequences = stream.batch_at([(source, number, row)]).sequences
            assert sequences is not None
            rows.append(sequences.reference[0][sequences.side[0] != 0].tolist())
    return rows
