"""Files on the Hugging Face Hub: `.npy` shards and tokenizers, and rows of data sets.

Everything is read at a commit that is pinned first, so a run that resumes next week reads the same
bytes. If a person can fix what the Hub refuses, a BadInput says how.
"""

from __future__ import annotations

import contextlib
import fnmatch
import hashlib
from collections.abc import Callable, Container, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pion.data.arrays import NPY_HEADER_BYTES, NpyHeader, parse_rows_header
from pion.data.documents.file_to_documents import Record
from pion.data.records.fields import NOT_READ
from pion.data.shards import Shard
from pion.errors import BadInput, PionError

if TYPE_CHECKING:
    from pipeline.job import HubDataset, HubNpyShards


BROKEN_TRANSFERS = 5
# Of `datasets`: the modules that read plain tables and text.
FORMATS = ("arrow", "csv", "json", "parquet", "text")


@dataclass(frozen=True)
class OnHub:
    """A repository on the Hub, or a file of it, as errors name it."""

    repo: str
    revision: str | None = None
    repo_type: str = "dataset"
    file: str | None = None

    def __str__(self) -> str:
        kind = "data set" if self.repo_type == "dataset" else self.repo_type
        at = f" at {self.revision[:12]}" if self.revision else ""
        return f"Hub {kind} {self.repo}{at}" + (f", file {self.file}" if self.file else "")

    @property
    def page(self) -> str:
        """The address of the repository's page, where its terms are accepted."""
        folder = "datasets/" if self.repo_type == "dataset" else ""
        return f"https://huggingface.co/{folder}{self.repo}"


@contextmanager
def explained(what: OnHub, *, rows: bool = False) -> Iterator[None]:
    """Turn the errors of the Hub's clients into a message that names `what` and what to do.

    Raises BadInput for something that is missing or not accessible, and PionError for a Hub that
    can't be reached. If `rows` are read, any other error is about a data set that can't be read.
    """
    try:
        yield
    except PionError:
        raise
    except Exception as error:
        from pipeline.state.stores.hub.errors import explain_reading

        why = explain_reading(error, str(replace(what, file=None)), what.file, what.page)
        if why is None and not rows:
            raise
        reason = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
        raise why or BadInput(f"{what}: can't be read ({reason})") from None


def pin(repo: str, revision: str | None, repo_type: str = "dataset") -> str:
    """Return the commit that a branch or tag of a repository points to now.

    Without a `revision` this is the main branch.
    """
    from huggingface_hub import HfApi

    with explained(OnHub(repo, revision, repo_type)):
        commit = HfApi().repo_info(repo, repo_type=repo_type, revision=revision).sha
    assert commit is not None
    return commit


def hub_tokenizer(repo: str, revision: str | None, file: str) -> Path:
    """Return a local copy of a repository's tokenizer.json."""
    from huggingface_hub import hf_hub_download

    with explained(OnHub(repo, revision, "model", file)):
        return Path(hf_hub_download(repo, file, revision=revision))


def hub_shards(source: HubNpyShards, commit: str, seq_len: int) -> list[Shard]:
    """Describe the `.npy` shards of a data set repository, by name, without downloading them.

    The header of the first shard gives shape and type, and the file sizes give the rows of the
    other shards. Downloads are checked against the Hub's hashes later. Raises BadInput if no file
    matches, or if the first is not an array of integers whose rows divide into `seq_len`.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile

    with explained(OnHub(source.repo, source.revision)):
        tree = HfApi().list_repo_tree(
            source.repo, repo_type="dataset", revision=commit, recursive=True
        )
        matching = (
            entry
            for entry in tree
            if isinstance(entry, RepoFile) and fnmatch.fnmatch(entry.path, source.pattern)
        )
        files = sorted(matching, key=lambda file: file.path)[: source.max_shards]
        if not files:
            raise BadInput(f"{source.repo}: no file matches pattern {source.pattern!r}")
        header = _header(source.repo, commit, files[0].path, seq_len)
        row_ids, dtype = header.shape[1], header.dtype
        shards = []
        for file in files:
            rows, rest = divmod(file.size - header.offset, seq_len * dtype.itemsize)
            if rest or rows % (row_ids // seq_len):
                raise BadInput(
                    f"{source.repo}/{file.path}: {file.size:,} bytes are not a whole number of "
                    f"rows of {row_ids:,} {dtype} ids, as in {files[0].path}"
                )
            remote = {"repo": source.repo, "revision": commit, "path": file.path}
            sha256 = file.lfs.sha256 if file.lfs else _sha256(source.repo, commit, file.path)
            name = file.path.replace("/", "__")
            shards.append(Shard(name, rows, sha256, file.size, dtype.name, remote=remote))
    return shards


def read_hub_rows(shard: Shard, count: int, seq_len: int) -> np.ndarray:
    """Read the first `count` rows (or all) of a remote shard as ids (rows, seq_len), by ranges."""
    assert shard.remote is not None
    repo, commit, path = (shard.remote[key] for key in ("repo", "revision", "path"))
    with explained(OnHub(repo, commit, file=path)):
        header = _header(repo, commit, path, seq_len)
        row_bytes = seq_len * header.dtype.itemsize
        count = min(count, shard.rows)
        start = header.offset + shard.start * row_bytes
        content = read_range(repo, commit, path, start, start + count * row_bytes)
    return np.frombuffer(content, header.dtype).reshape(count, seq_len)


def read_range(repo: str, commit: str, path: str, start: int, end: int) -> bytes:
    """Read the bytes `start` to `end` of a file in a data set repository."""
    from huggingface_hub import HfFileSystem

    # cache_type none: only this range, without reading megabytes ahead.
    with HfFileSystem().open(f"datasets/{repo}@{commit}/{path}", "rb", cache_type="none") as file:
        file.seek(start)
        return file.read(end - start)


def download_shard(shard: Shard, folder: Path) -> Path:
    """Download a remote shard to somewhere below `folder`; resume an interrupted download."""
    from huggingface_hub import hf_hub_download

    assert shard.remote is not None
    repo, commit, path = (shard.remote[key] for key in ("repo", "revision", "path"))
    with explained(OnHub(repo, commit, file=path)):
        return Path(
            _again_if_broken(
                lambda: hf_hub_download(
                    repo, path, repo_type="dataset", revision=commit, local_dir=folder / repo
                )
            )
        )


def _again_if_broken(download: Callable[[], str]) -> str:
    """Resume a transfer that breaks off; huggingface_hub 1.16 does not do so by itself."""
    import httpx

    for _ in range(BROKEN_TRANSFERS):
        with contextlib.suppress(httpx.RemoteProtocolError, httpx.ReadError):
            return download()
    return download()


def _sha256(repo: str, commit: str, path: str) -> str:
    """Return the hash of a file that is too small for the Hub to keep a hash."""
    from huggingface_hub import HfFileSystem

    content: bytes = HfFileSystem().cat_file(f"datasets/{repo}@{commit}/{path}")
    return hashlib.sha256(content).hexdigest()


def _header(repo: str, commit: str, path: str, seq_len: int) -> NpyHeader:
    """Return the header of a shard on the Hub."""
    beginning = read_range(repo, commit, path, 0, NPY_HEADER_BYTES)
    return parse_rows_header(beginning, f"{repo}/{path}", seq_len)


def hub_records(source: HubDataset, commit: str, columns: Container[str]) -> Iterator[Record]:
    """Stream the rows at `commit`, at most `max_documents`. Only `columns` are read.

    A data set can be of any format, and hold pictures by their URL. Here it has a format without
    code, and nothing that a row names is opened.
    Without any of `columns`, a record has the names of the others. Raises BadInput for a data set
    that can't be read, or not safely, and PionError for a Hub that can't be reached.
    """
    with explained(OnHub(source.repo, source.revision), rows=True):
        for number, row in enumerate(islice(_rows(source, commit, columns), source.max_documents)):
            yield Record(row, f"{source.repo} row {number + 1:,}")


def _rows(source: HubDataset, commit: str, columns: Container[str]) -> Iterator[dict[str, Any]]:
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
    names = list(rows.features or ())
    wanted = [name for name in names if name in columns]
    if rows.features is None:  # such files have no types that `datasets` decodes
        for row in rows:
            yield {n: row[n] if n in columns else NOT_READ for n in row}
    elif not wanted:
        yield dict.fromkeys(rows.features, NOT_READ)
    else:
        rows = rows.select_columns(wanted)
        if any(require_decoding(feature) for feature in rows.features.values()):
            rows = rows.decode(False)
        others = {name: NOT_READ for name in names if name not in columns}
        for row in rows:
            yield others | row
