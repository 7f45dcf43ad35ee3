"""Opens the data that `prepare` wrote, for training and evaluation. The files of a data folder:

tokenizer.json
dataset.json                  written last: a folder without it is unfinished
<k>/train/, <k>/held_out/     manifest.json and shards of source number k
choices.jsonl                 "true continuation" questions from the held-out text
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pion.data.shards import Manifest, Rows, Shard
from pion.errors import BadInput

if TYPE_CHECKING:
    from pion.data.stream import RowStream
    from pipeline.data.shard_cache import ShardCache

DATASET = "dataset.json"
SPLITS = ("train", "held_out")


@dataclass(frozen=True)
class PreparedSource:
    """One source of the mixture; `folder` is its name inside the data folder."""

    kind: str
    weight: float
    folder: str


@dataclass(frozen=True)
class PreparedData:
    """A finished data folder. `part` is "pretrain" or "sft"; `report` is what prepare measured."""

    folder: Path
    part: str
    sources: tuple[PreparedSource, ...]
    report: dict[str, Any]

    @property
    def tokenizer_path(self) -> Path:
        return self.folder / "tokenizer.json"

    def manifest(self, source: PreparedSource, split: str) -> Manifest:
        """Return the shards of a source's "train" or "held_out" split."""
        return Manifest.read(self.folder / source.folder / split / "manifest.json")

    def stream(
        self,
        split: str,
        seed: int,
        window: int,
        cache: Callable[[], ShardCache] | None = None,
        documents: bool = False,
    ) -> RowStream:
        """Return the rows of "train" or "held_out", all sources mixed by weight.

        With `documents`, each end-of-text in a row of text begins a new document.
        `cache` makes the cache for remote shards. It is only called, and only needed, if there are
        such shards; held-out rows are always local. Raises BadInput for a changed manifest and for
        a cache that is too small for one window.
        """
        from pion.data.order import RowOrder
        from pion.data.stream import RowStream
        from pion.data.tokenizer import Tokenizer

        begins = Tokenizer.from_file(self.tokenizer_path).end_of_text if documents else None
        manifests = [self.manifest(source, split) for source in self.sources]
        orders = [RowOrder(m.shard_rows, m.fingerprint, seed, window) for m in manifests]
        weights = [source.weight for source in self.sources]
        folders = [self.folder / source.folder / split for source in self.sources]
        if not any(shard.remote for m in manifests for shard in m.shards):
            rows = [Rows(m, partial(_local, folder)) for m, folder in zip(manifests, folders)]
            return RowStream(list(zip(rows, orders)), weights, seed, begins)

        from pipeline.data.shard_cache import CachedStream

        assert cache is not None, "remote shards need a cache"
        store = cache()

        def path_of(folder: Path, shard: Shard) -> Path:
            return store.path_of(shard) if shard.remote else folder / shard.name

        rows = [Rows(m, partial(path_of, folder)) for m, folder in zip(manifests, folders)]
        return CachedStream(list(zip(rows, orders)), weights, seed, store, begins)


def open_data(folder: Path) -> PreparedData:
    """Return the prepared data in `folder`. Raises BadInput if it is missing or unfinished."""
    try:
        described = json.loads((folder / DATASET).read_text(encoding="utf-8"))
        sources = tuple(PreparedSource(**source) for source in described["sources"])
        data = PreparedData(folder, described["part"], sources, described["report"])
    except FileNotFoundError:
        raise BadInput(
            f"{folder}: there is no prepared data here. To prepare data, use `pion run`"
        ) from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadInput(f"{folder / DATASET}: can't be read ({error!r})") from None
    if not data.tokenizer_path.is_file():
        raise BadInput(
            f"{data.tokenizer_path} is missing. Restore this file, or prepare the data again"
        )
    return data


def _local(folder: Path, shard: Shard) -> Path:
    return folder / shard.name
