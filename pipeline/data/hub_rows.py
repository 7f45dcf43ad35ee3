"""Rows of a data set on the Hub, streamed by `datasets`: only the columns that Pion needs.

A data set can be of any format, and hold pictures by their URL. Here it has a format without code,
and nothing that a row names is opened.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any

from pion.data.corpus import Record
from pion.errors import BadInput, PionError
from pipeline.data.hub import OnHub, explain

if TYPE_CHECKING:
    from pipeline.job import HubDataset

# Of `datasets`: the modules that read plain tables and text.
FORMATS = ("arrow", "csv", "json", "parquet", "text")


def hub_records(source: HubDataset, commit: str, columns: tuple[str, ...]) -> Iterator[Record]:
    """Stream the rows at `commit`, at most `max_documents`, with those of `columns` that are there.

    Without any of `columns`, a record has the names of the others. Raises BadInput for a data set
    that can't be read, or not safely, and PionError for a Hub that can't be reached.
    """
    what = OnHub(source.repo, source.revision)
    try:
        for number, row in enumerate(islice(_rows(source, commit, columns), source.max_documents)):
            yield Record(row, f"{source.repo} row {number + 1:,}")
    except PionError:
        raise
    except Exception as error:  # whatever a data set can make `datasets` raise
        reason = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
        raise explain(error, what) or BadInput(f"{what}: can't be read ({reason})") from None


def _rows(source: HubDataset, commit: str, columns: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    import datasets
    from datasets.features.features import require_decoding

    # Raises if the data set names files outside of its repository, and never runs its code.
    builder = datasets.load_dataset_builder(source.repo, source.subset, revision=commit)
    kind = type(builder).__module__.rpartition(".")[2]
    if kind not in FORMATS:
        raise BadInput(
            f"{OnHub(source.repo, source.revision)}: its files are of the kind {kind!r}, which "
            f"Pion does not read. The kinds are {', '.join(FORMATS)}"
        )
    rows: Any = builder.as_streaming_dataset(split=source.split)
    if rows.features is None:  # such files have no types that `datasets` decodes
        for row in rows:
            yield {name: row[name] for name in columns if name in row} or dict.fromkeys(row)
        return
    wanted = [name for name in rows.features if name in columns]
    if not wanted:
        yield dict.fromkeys(rows.features)
        return
    rows = rows.select_columns(wanted)
    if any(require_decoding(feature) for feature in rows.features.values()):
        rows = rows.decode(False)
    yield from rows
