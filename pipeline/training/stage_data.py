"""The prepared data of a training stage, opened."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.job import Job
from pipeline.job.mixes import source_names

if TYPE_CHECKING:
    from pion.data.chat.chat_format import ChatFormat
    from pion.data.stream import RowStream
    from pion.data.tokens.tokenizer import Tokenizer
    from pion.train.rollout_feed import Prompts
    from pipeline.data.shard_cache import Fetch, ShardCache


@dataclass(frozen=True)
class StageData:
    """The prepared data of a stage, opened. `close` stops fetching shards.

    `prompts` are those of a stage of rewards, by their split. `sources` has the numbers of each
    source's held-out rows, if the phases of pretraining mix the sources.
    """

    train: RowStream
    held_out: RowStream
    tokenizer: Tokenizer
    chat_format: ChatFormat
    folder: Path
    close: Callable[[], None]
    prompts: Mapping[str, Prompts] | None = None
    sources: Mapping[str, range] = field(default_factory=dict)

    @property
    def fed(self) -> Mapping[str, RowStream | Prompts]:
        """What the trainer learns on and is measured on, by its split."""
        return self.prompts or {"train": self.train, "held_out": self.held_out}


def open_stage_data(job: Job, stage: str, folder: Path, fetch: Fetch) -> StageData:
    """Open the prepared data of a stage in `folder`, and tell the job what they are. `fetch` brings
    shards that are not there.

    Raises BadInput if the stage can't learn from them.
    """
    from pion.data.chat.chat_format import ChatFormat
    from pion.data.tokens.tokenizer import Tokenizer
    from pipeline.data.prepared import held_out_rows, open_data

    data, closing = open_data(folder), ExitStack()
    job.section(stage).know_data(data.kind, data.most_sequences, str(folder))
    stream = partial(
        data.stream, seed=job.seed, window=job.data.window, documents=job.within_documents
    )

    def shard_cache() -> ShardCache:  # called only if shards are fetched while training
        from pipeline.data.shard_cache import ShardCache, default_folder

        cache = ShardCache(default_folder(), int(job.hardware.shard_cache_gb * 1e9), fetch)
        closing.callback(cache.close)
        return cache

    mixes = job.mix_phases if stage == "pretrain" else []
    held_out, sources = held_out_rows(job, data, job.evaluate.rows)
    tokenizer = Tokenizer.from_file(data.tokenizer_path)
    chat_format = ChatFormat(data.tokenizer_path, tokenizer)
    closing.callback(chat_format.close)
    return StageData(
        train=stream("train", cache=shard_cache, phases=(source_names(job.data), mixes)),
        held_out=held_out,
        tokenizer=tokenizer,
        chat_format=chat_format,
        folder=folder,
        close=closing.close,
        sources=sources,
    )
