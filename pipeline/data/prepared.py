"""Opens the data that `prepare` wrote, for training and evaluation. The files of a data folder:

tokenizer.json                with the files next to it, if it came with a model to start from
dataset.json                  written last: a folder without it is unfinished
<k>/train/, <k>/held_out/     manifest.json and shards of source number k
choices.jsonl                 "true continuation" questions from the held-out text
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pion.data.arrays import read_array
from pion.data.order import RowOrder
from pion.data.phased_order import MixPhase, PhasedOrder
from pion.data.row_flags import SEQUENCES
from pion.data.shards import Manifest, Rows, Shard
from pion.errors import BadInput, told
from pion.untrusted import parse_object, read_file
from pipeline.job.mixes import source_names
from pipeline.job.stages import TRAINING
from pipeline.state.stores.base import check_key

if TYPE_CHECKING:
    from pion.data.phased_order import Mixes
    from pion.data.stream import RowStream
    from pipeline.data.shard_cache import ShardCache
    from pipeline.job import Job

DATASET, CHOICES = "dataset.json", "choices.jsonl"
# No weight of a source is larger.
HEAVIEST = 1e100
SPLITS = ("train", "held_out")


@dataclass(frozen=True)
class PreparedSource:
    """One source of the mixture; `folder` is its name inside the data folder."""

    kind: str
    weight: float
    folder: str

    def __post_init__(self) -> None:
        if not isinstance(self.kind, str):
            raise ValueError(f"kind is {self.kind!r:.200}; it must be text")
        number = isinstance(self.weight, int | float) and not isinstance(self.weight, bool)
        if not number or not 0 < self.weight < HEAVIEST:
            raise ValueError(f"weight is {self.weight!r:.200}; it must be a number above 0")
        if not isinstance(self.folder, str) or not _is_name(self.folder):
            raise ValueError(f"folder is {self.folder!r:.200}; it must be a name")


@dataclass(frozen=True)
class PreparedData:
    """A finished data folder. `part` is the training stage that it is for; `report` is what prepare
    measured."""

    folder: Path
    part: str
    sources: tuple[PreparedSource, ...]
    report: dict[str, Any]

    def __post_init__(self) -> None:
        if self.part not in TRAINING:
            stages = ", ".join(TRAINING)
            raise ValueError(f"part is {self.part!r:.200}; it must be one of {stages}")
        if not isinstance(self.report, dict):
            raise ValueError(f"report is {self.report!r:.200}; it must be an object")
        sources = self.report.get("sources", [])
        if not isinstance(sources, list) or not all(isinstance(source, dict) for source in sources):
            raise ValueError(f"report.sources is {sources!r:.200}; it must be a list of objects")

    @property
    def tokenizer_path(self) -> Path:
        return self.folder / "tokenizer.json"

    @property
    def kind(self) -> str:
        """Which kind of rows it has; of a mixture, the kind of the first source."""
        return self.manifest(self.sources[0], "train").kind

    def most_sequences(self) -> int:
        """Return how many answers the fullest row of preferences has. Raises BadInput."""
        most = 0
        for source, split in itertools.product(self.sources, SPLITS):
            path = self.folder / source.folder / split / SEQUENCES
            with told(after=". Prepare the data again: --redo prepare"):
                starts = read_array(path, np.int32, (self.manifest(source, split).rows + 1,))
            most = max(most, int(np.diff(starts).max(initial=0)))
        return most

    def manifest(self, source: PreparedSource, split: str) -> Manifest:
        """Return the shards of a source's "train" or "held_out" split.

        A shard whose file is not here is still in the store of its run, and has a `remote` that
        names no repository.
        """
        subfolder = f"{source.folder}/{split}"
        manifest = Manifest.read(self.folder / subfolder / "manifest.json")
        shards = tuple(
            replace(shard, remote={"repo": "", "revision": "", "path": f"{subfolder}/{shard.name}"})
            if shard.remote is None and not (self.folder / subfolder / shard.name).exists()
            else shard
            for shard in manifest.shards
        )
        return replace(manifest, shards=shards)

    def orders(self, split: str, seed: int, window: int) -> list[RowOrder]:
        """Return the order of the rows of each source. Raises BadInput for a changed manifest."""
        manifests = [self.manifest(source, split) for source in self.sources]
        return [RowOrder(m.shard_rows, m.fingerprint, seed, window) for m in manifests]

    def stream(
        self,
        split: str,
        seed: int,
        window: int,
        cache: Callable[[], ShardCache] | None = None,
        documents: bool = False,
        phases: Mixes = ((), ()),
    ) -> RowStream:
        """Return the rows of "train" or "held_out", all sources mixed by weight, or as in `phases`,
        which have the names of the sources.

        With `documents`, each end-of-text in a row of text begins a new document.
        `cache` makes the cache for remote shards. It is only called, and only needed, if there are
        such shards; held-out rows are always local. Raises BadInput for a changed manifest and for
        a cache that is too small for one window.
        """
        from pion.data.stream import RowStream
        from pion.data.tokens.tokenizer import Tokenizer

        begins = Tokenizer.from_file(self.tokenizer_path).end_of_text if documents else None
        manifests = [self.manifest(source, split) for source in self.sources]
        orders = self.orders(split, seed, window)
        weights: list[float] | PhasedOrder = [source.weight for source in self.sources]
        names, mixes = phases
        if mixes:
            weights = PhasedOrder(dict(zip(names, orders, strict=True)), mixes, seed)
        remote = any(shard.remote for m in manifests for shard in m.shards)
        assert cache is not None or not remote, "remote shards need a cache"
        store = cache() if remote and cache else None

        def path_of(source: PreparedSource, shard: Shard) -> Path:
            local = self.folder / source.folder / split / shard.name
            return store.path_of(shard) if store and shard.remote else local

        rows = [Rows(m, partial(path_of, source)) for m, source in zip(manifests, self.sources)]
        if store is None:
            return RowStream(list(zip(rows, orders)), weights, seed, begins)

        from pipeline.data.shard_cache import CachedStream

        return CachedStream(list(zip(rows, orders)), weights, seed, store, begins)


def held_out_rows(
    job: Job, data: PreparedData, most: int, length: int = 1
) -> tuple[RowStream, dict[str, range]]:
    """Return the held-out rows of a stage of `job`, and where those of each source are.

    Where phases mix the sources, or rows are read as longer ones of `length` rows, the rows of one
    source follow those of another: its first `most`, which do not depend on other sources, or all.
    Else the sources are mixed, and the ranges are {}.
    """
    stream = partial(data.stream, "held_out", job.seed, job.data.window)
    if data.part != "pretrain" or not (job.mixes or length > 1):
        return stream(documents=job.within_documents), {}
    rows: dict[str, range] = {}
    first, names = 0, source_names(job.data)
    for name, source in zip(names, data.sources, strict=True):
        shards = data.manifest(source, "held_out").shard_rows
        count = length * min(most // length, sum(n // length for n in shards))
        rows[name] = range(first, first + count, length)
        first += count
    phases = [MixPhase(i.start, i.stop - i.start, {n: 1}, length) for n, i in rows.items() if i]
    return stream(documents=job.within_documents, phases=(names, phases)), rows


def check_mixes(job: Job, folder: Path) -> None:
    """Raise BadInput if the rows in `folder` can't give what the phases of pretraining read."""
    if job.mix_phases:
        orders = open_data(folder).orders("train", job.seed, job.data.window)
        with told(after=". Nothing was trained."):
            PhasedOrder(dict(zip(source_names(job.data), orders)), job.mix_phases, job.seed)


def counts_of(split: str, manifest: Manifest) -> dict[str, int]:
    """Return the rows and tokens of a split, as reports name them."""
    return {
        f"{split}_rows": manifest.rows,
        f"{split}_tokens": manifest.rows * manifest.seq_len,
    }


def open_data(folder: Path) -> PreparedData:
    """Return the prepared data in `folder`. Raises BadInput if it is missing or unfinished."""
    try:
        described = parse_object(read_file(folder / DATASET), str(folder / DATASET))
        if not isinstance(described["sources"], list):
            raise ValueError(f"sources is {described['sources']!r:.200}; it must be a list")
        sources = tuple(PreparedSource(**source) for source in described["sources"])
        data = PreparedData(folder, described["part"], sources, described["report"])
    except FileNotFoundError:
        raise BadInput(
            f"{folder}: there is no prepared data here. To prepare data, use `pion run`; for a run "
            "that has lost its data, with --redo prepare"
        ) from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadInput(f"{folder / DATASET}: can't be read ({error!r})") from None
    if not data.tokenizer_path.is_file():
        raise BadInput(
            f"{data.tokenizer_path} is missing. Restore this file, or prepare the data again"
        )
    return data


def _is_name(text: str) -> bool:
    """Return whether a text is one part of a key of a store, as the names of checkpoints are."""
    try:
        return "/" not in check_key(text)
    except BadInput:
        return False
