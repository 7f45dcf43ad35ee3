"""The job file: the data, the kinds of sources that it comes from, and which documents
are left out before training (`data.clean`).

A changed default or a new field moves digests: see train_sections.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal, TypeGuard

from pydantic import Field, field_validator, model_validator

from pion.config.part_fields import SEQ_LEN
from pion.data.documents.languages import LANGUAGES
from pion.later_fields import closest, shown
from pipeline.job.section import (
    MOST_OF_A_NAME,
    NAME,
    ROWS,
    Section,
    identity,
    made,
    refuse,
    runtime,
)

# In data.clean.decontaminate, this word stands for the sets that the section `evaluate` names.
OF_EVALUATE = "evaluate"
# No document has more words.
WORDS = 10**9


class Clean(Section):
    """Which documents of `data.sources` are left out."""

    exact: bool = identity(
        True,
        "leave out a document with the same text as an earlier document of any source. Case and "
        "the amount of white space don't count. Without the section `clean`, which may be `{}`, "
        "no document is left out (`pion help clean-data`)",
    )
    near: float | None = identity(
        0.6,
        "leave out a document whose similarity to an earlier document of any source is at least "
        "this number. Similarity compares pairs of neighbouring words: it is the number of pairs "
        "that both documents have, divided by the number of pairs that at least one of them has. "
        "1: both have the same pairs. Documents of fewer than 8 words are not compared; null: keep "
        "near-copies",
        ge=0.3,
        le=1,
    )
    min_words: int | None = identity(
        None, "leave out a document of fewer words; unset: no limit", gt=0, most=WORDS
    )
    max_words: int | None = identity(
        None, "leave out a document of more words; unset: no limit", gt=0, most=WORDS
    )
    max_repetition: float | None = identity(
        None,
        "leave out a document if more than this share of its runs of 13 words occur earlier in the "
        "same document; unset: no limit",
        ge=0,
        lt=1,
    )
    languages: list[str] = identity(
        [],
        "keep only documents in these languages, such as English. They are guessed from letters "
        "and frequent words, so short documents and code are often of no language; empty: keep all",
    )
    decontaminate: list[str] = identity(
        [],
        "leave out a document that holds at least half of the 13-word runs of an item (question "
        "and right answer) of an evaluation set. Give paths of question packs and the archive "
        "of CORE, or `evaluate` for all sets that the section `evaluate` names",
    )

    @field_validator("languages")
    @classmethod
    def _known(cls, languages: list[str]) -> list[str]:
        return refuse(
            languages,
            [
                f"{shown(name)} is none of {', '.join(LANGUAGES)}{closest(name, LANGUAGES)}"
                for name in languages
                if name not in LANGUAGES
            ],
        )

    @model_validator(mode="after")
    def _makes_sense(self) -> Clean:
        least, most = self.min_words, self.max_words
        rules = (self.exact, self.near, least, most, self.max_repetition is not None)
        mistakes = {
            f"max_words: {most} is less than min_words, {least}": (
                least is not None and most is not None and most < least
            ),
            "exact: no rule is left, so nothing would be cleaned. Remove `clean`, or name a rule": (
                not any((*rules, self.languages, self.decontaminate))
            ),
            "decontaminate: a set is named twice": (
                len(set(self.decontaminate)) < len(self.decontaminate)
            ),
        }
        return refuse(self, made(mistakes))


class Source(Section):
    weight: float = identity(
        1.0,
        "how many rows come from this source, relative to the other sources: weight 2 gives twice "
        "as many rows as weight 1. If no source of sft, prefer or reinforce has a weight, each "
        "gives as many rows as it has",
        gt=0,
        most=10**9,
    )


def in_bucket(source: Source) -> TypeGuard[TextFiles | JsonlFiles | ParquetFiles]:
    """Return whether a source is read from a bucket."""
    return isinstance(source, TextFiles | JsonlFiles | ParquetFiles) and source.path.startswith(
        "s3://"
    )


def share_rows(stage: str, sources: Sequence[Source]) -> bool:
    """Return whether each source of a stage gives as many rows as it has: none has a weight.

    The field does not say it, so that the digests of runs from before stay.
    """
    unset = all("weight" not in source.model_fields_set for source in sources)
    return stage != "pretrain" and len(sources) > 1 and unset


class TextSource(Source):
    name: str | None = runtime(
        None, "how pretrain.phases call this source", pattern=NAME, max_length=MOST_OF_A_NAME
    )


class PythonDocs(TextSource):
    """Docstrings, comments and pydoc topics of Python's standard library."""

    kind: Literal["python-docs"]
    code: bool = identity(False, "also read the source code")
    questions: bool = identity(
        False, "read only the questions and answers of python-docs-qa, as text", before=False
    )


class TextFiles(TextSource):
    """Plain text files. Each file, or each paragraph, is a document (see `split`)."""

    kind: Literal["text"]
    path: str = identity(
        ...,
        "a file, a folder (its *.txt and *.md, also .gz and .zst) or a glob, also s3://bucket/…",
    )
    split: Literal["file", "paragraph"] = identity(
        "file", "what counts as a document; paragraphs are separated by blank lines"
    )


class JsonlFiles(Source):
    """JSON Lines (.gz and .zst too). Each line is a conversation; in `prefer`, a preference."""

    kind: Literal["jsonl"]
    path: str = identity(..., "a file, a folder or a glob, also s3://bucket/…")


class JsonlTexts(JsonlFiles, TextSource):
    """JSON Lines (.gz and .zst too). Each line is a document."""

    field: str = identity("text", "key that contains the text")


class ParquetFiles(Source):
    """Parquet files. Each row is a conversation; in `prefer`, a preference."""

    kind: Literal["parquet"]
    path: str = identity(..., "a file, a folder or a glob, also s3://bucket/…")


class ParquetTexts(ParquetFiles, TextSource):
    """Parquet files. Each row is a document."""

    field: str = identity("text", "column that contains the text")


class NpyShards(TextSource):
    """Tokenized `.npy` arrays (rows, seq_len) of integers. The last 1 % of the rows is held out."""

    kind: Literal["npy"]
    path: str = identity(..., "a folder or a glob")


class BinShards(TextSource):
    """Tokenized `.bin` files of the project Daisy-Wee: magic 20240520, version 1, uint16 tokens."""

    kind: Literal["bin"]
    path: str = identity(..., "a folder or a glob")


class HubDataset(Source):
    """A Hub data set, streamed. Each row is a conversation; in `prefer`, a preference."""

    kind: Literal["hub"]
    repo: str = identity(..., "the data set on the Hub, user/name")
    subset: str | None = identity(None, "configuration of the data set; unset: its default")
    split: str = identity("train", "split of the data set")
    revision: str | None = identity(None, "commit, branch or tag; unset: the main branch")
    max_documents: int | None = identity(
        None, "maximum number of rows to read; unset: all", gt=0, most=10**12
    )


class HubTexts(HubDataset, TextSource):
    """A Hub data set, streamed through `datasets`. Each row is a document."""

    field: str = identity("text", "column that contains the text")


class HubNpyShards(TextSource):
    """Tokenized `.npy` arrays in a Hub data set, downloaded before use and deleted after use."""

    kind: Literal["hub-npy"]
    repo: str = identity(..., "the data set on the Hub, user/name")
    revision: str | None = identity(
        None, "commit, branch or tag; unset: the main branch. `prepare` records the commit"
    )
    pattern: str = identity("shard_*.npy", "glob of the files to use")
    max_shards: int | None = identity(
        None,
        "maximum number of files to use, in the order of their names; unset: all",
        gt=0,
        most=10**6,
    )


class PythonDocsQA(Source):
    """Questions about the standard library's functions, answered by their docstrings."""

    kind: Literal["python-docs-qa"]


class PythonDocsPrefer(Source):
    """Pairs of answers to questions about the standard library, held out by `data.held_out`."""

    kind: Literal["python-docs-prefer"]
    better: Literal["short", "right"] = identity(
        "short",
        "which answer is chosen. short: a docstring's first sentence, not its first paragraphs; "
        "right: this sentence, not the first sentence of another definition in the module",
    )


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
PreferenceSource = Annotated[
    PythonDocsPrefer | JsonlFiles | ParquetFiles | HubDataset, Field(discriminator="kind")
]


class Data(Section):
    seq_len: int = identity(2048, "tokens in a training row", ge=8, most=SEQ_LEN)
    sources: list[DataSource] = identity([], "where the pretraining text comes from")
    held_out: float = identity(
        0.02,
        "share of the documents (for python-docs: of the files) reserved for evaluation. From a "
        "tokenized source (npy, bin, hub-npy), Pion always reserves the last 1 % of the rows",
        gt=0,
        lt=0.5,
    )
    shard_rows: int = identity(
        10_000, "rows in one file of prepared data (a shard)", gt=0, most=ROWS
    )
    window: int = identity(8, "number of shards whose rows are shuffled together", gt=0, most=10**6)
    max_line_mb: float = runtime(
        16.0,
        "longest line of a text, JSON Lines or conversation file, and longest row of a table, in "
        "MB. A longer line is refused before it fills the memory",
        gt=0,
        most=2000,
    )
    documents: bool | None = identity(
        None,
        "let tokens of text attend only within their own document, in pretraining and in "
        "evaluation. An end-of-text begins a new document. Conversations never see each other; "
        "unset: true if the model has windows or slots, else false. If false, a row is one "
        "document, and the segments of slots count from its start",
        before=False,
    )
    clean: Clean | None = identity(
        None,
        "leave out copies and bad documents before anything is learned from them "
        "(`pion help clean-data`); unset: every document is kept",
        before=None,
    )

    @model_validator(mode="after")
    def _can_be_cleaned(self) -> Data:
        if self.clean is None:
            return self
        mistakes: dict[str, object] = {
            "clean: there are no data.sources to clean": not self.sources,
        }
        mistakes |= {
            f"clean: data.sources.{number} (kind {source.kind}) is tokenized already, so its "
            "documents can't be cleaned. Use its text, or remove `clean`": isinstance(
                source, NpyShards | BinShards | HubNpyShards
            )
            for number, source in enumerate(self.sources)
        }
        return refuse(self, made(mistakes))
