"""Where a job's data comes from: the kinds of sources, and the fields of each."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from pipeline.job.section import Section, identity


class Source(Section):
    weight: float = identity(1.0, "share of the rows relative to the other sources", gt=0)


class PythonDocs(Source):
    """Docstrings, comments and pydoc topics of the installed standard library."""

    kind: Literal["python-docs"]
    code: bool = identity(False, "the source code too")


class TextFiles(Source):
    """Plain text files, one document each (or one per blank-line-separated part)."""

    kind: Literal["text"]
    path: str = identity(..., "file, folder (its *.txt and *.md) or glob")
    split: Literal["file", "paragraph"] = identity("file", "what is one document")


class JsonlFiles(Source):
    """JSON Lines, one conversation a line (.gz too)."""

    kind: Literal["jsonl"]
    path: str = identity(..., "file, folder or glob")


class JsonlTexts(JsonlFiles):
    """JSON Lines, one document a line (.gz too)."""

    field: str = identity("text", "key holding the text")


class ParquetFiles(Source):
    """Parquet files, one conversation a row."""

    kind: Literal["parquet"]
    path: str = identity(..., "file, folder or glob")


class ParquetTexts(ParquetFiles):
    """Parquet files, one document a row."""

    field: str = identity("text", "column holding the text")


class NpyShards(Source):
    """Tokenised `.npy` shards (rows, seq_len) of integer ids; the last 1 % of rows is held out."""

    kind: Literal["npy"]
    path: str = identity(..., "folder or glob")


class BinShards(Source):
    """Tokenised `.bin` shards with Daisy's header (magic 20240520, version 1, uint16 ids)."""

    kind: Literal["bin"]
    path: str = identity(..., "folder or glob")


class HubDataset(Source):
    """A Hub data set read through `datasets`, streamed: one conversation a row."""

    kind: Literal["hub"]
    repo: str = identity(..., "user/name")
    subset: str | None = identity(None, "configuration of the data set")
    split: str = identity("train", "split to read")
    revision: str | None = identity(None, "commit, branch or tag")
    max_documents: int | None = identity(None, "read at most so many", gt=0)


class HubTexts(HubDataset):
    """A Hub data set read through `datasets`, streamed: one document a row."""

    field: str = identity("text", "column holding the text")


class HubNpyShards(Source):
    """Tokenised `.npy` shards in a Hub data set repository, fetched ahead and evicted."""

    kind: Literal["hub-npy"]
    repo: str = identity(..., "user/name")
    revision: str | None = identity(None, "commit, branch or tag; pinned to a commit by prepare")
    pattern: str = identity("shard_*.npy", "which files")
    max_shards: int | None = identity(None, "use at most so many, in name order", gt=0)


class PythonDocsQA(Source):
    """Questions about the standard library's functions, answered by their docstrings."""

    kind: Literal["python-docs-qa"]


DataSource = Annotated[
    PythonDocs
    | TextFiles
    | JsonlTexts
    | ParquetTexts
    | NpyShards
    | BinShards
    | HubTexts
    | HubNpyShards,
    Field(discriminator="kind"),
]
ConversationSource = Annotated[
    PythonDocsQA | JsonlFiles | ParquetFiles | HubDataset, Field(discriminator="kind")
]
