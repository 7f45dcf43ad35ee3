"""Compare the speed of encoding text with the tokenizers library's `encode_batch`.

Both encode the same documents with the same tokenizer, on all cores: the prose and the source of
Python's standard library, from one line to whole modules. The ids must be equal.
"""

from __future__ import annotations

from collections.abc import Iterator
from pydoc_data.topics import topics

import tokenizers

from benchmarks.comparison import Comparison, Work, alternate, at_least, compare, speed_of
from benchmarks.exported import TOKENIZER
from pion.data.documents.python_docs import documents
from pion.data.tokens.tokenizer import Tokenizer

ROUNDS, WARMUP = 9, 1


def run(quick: bool) -> Iterator[Comparison]:
    """Yield the comparison."""
    texts = some_texts(quick)
    size = sum(len(text.encode()) for text in texts) / 1e6
    ours, theirs = Tokenizer.from_file(TOKENIZER), tokenizers.Tokenizer.from_file(str(TOKENIZER))
    if ours.encode_batch(texts) != [encoding.ids for encoding in theirs.encode_batch(texts)]:
        raise SystemExit("the two sides don't give the same ids")

    def our_work(number: int) -> float:
        ours.encode_batch(texts)
        return size

    def their_work(number: int) -> float:
        # A user keeps the ids, as our side returns them.
        [encoding.ids for encoding in theirs.encode_batch(texts)]
        return size

    works: dict[str, Work] = {"pion": our_work, "library": their_work}
    measures = {name: speed_of(work) for name, work in works.items()}
    speeds = alternate(measures, *((2, 1) if quick else (ROUNDS, WARMUP)))
    what = ("tokenizing", "tokenizers encode_batch", "MB/s")
    details = {"megabytes": round(size, 2), "documents": len(texts)}
    yield compare(what, speeds["pion"], speeds["library"], at_least(1.0), details)


def some_texts(quick: bool) -> list[str]:
    """Return the documents; with `quick` only `pydoc`'s topics."""
    if quick:
        return list(topics.values())
    return [document.text for document in documents(code=True)]
