"""Read the rows of parquet files: only the columns asked for, and one row in Python at a time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pion.errors import BadInput

if TYPE_CHECKING:
    import pyarrow

# Few, because a small file can say that all of its rows have the same long text.
ROWS_AT_ONCE = 16


def parquet_rows(file: Path, columns: tuple[str, ...], longest: int) -> Iterator[dict[str, Any]]:
    """Yield each row with those of `columns` that are there, or else one row of all names.

    Raises BadInput for a file that is not parquet, and for a row of more than `longest` bytes.
    """
    import pyarrow
    import pyarrow.parquet

    row = 0
    try:
        with pyarrow.parquet.ParquetFile(file) as table:
            there = table.schema_arrow.names
            wanted = [name for name in there if name in columns]
            if not wanted:
                yield dict.fromkeys(there)
                return
            for batch in table.iter_batches(batch_size=ROWS_AT_ONCE, columns=wanted):
                arrays = {name: batch.column(name) for name in wanted}
                for name, array in arrays.items():
                    if isinstance(array, pyarrow.DictionaryArray):
                        arrays[name] = array.dictionary_decode()
                large = _size(arrays) > longest
                for n in range(batch.num_rows):
                    row += 1
                    if large and _size(arrays, n) > longest:
                        raise BadInput(
                            f"{file} row {row}: {', '.join(wanted)} has more than {longest:,} "
                            "bytes. If the row is meant to be so long, raise data.max_line_mb"
                        )
                    yield {name: array[n].as_py() for name, array in arrays.items()}
    except (pyarrow.ArrowException, OSError, ValueError, KeyError, OverflowError) as error:
        raise BadInput(f"{file}: not a readable parquet file: {error}") from None


def _size(arrays: dict[str, pyarrow.Array], row: int | None = None) -> int:
    """Return the bytes of one row, or of all rows."""
    parts = arrays.values() if row is None else (a.slice(row, 1) for a in arrays.values())
    return sum(array.nbytes for array in parts)
