from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pion.data.tokens.tokenizer import Tokenizer
from pipeline.data.splits import RowFormat
from pipeline.data.text_to_rows import write_document_rows
from tests.support.tokenizer_kinds import tokenizer_of


def rows_of(folder: Path, tokenizer: Tokenizer, texts: list[str]) -> list[int]:
    """Return the ids of the training rows, in order."""
    documents = [(False, text) for text in texts]
    rows = RowFormat(seq_len=1, shard_rows=1000, key="k")
    write_document_rows(documents, tokenizer, folder, rows, ("a test", lambda _: None))
    (shard,) = (folder / "train").glob("shard*.npy")
    return np.load(shard).ravel().tolist()


@pytest.mark.parametrize("kind", ["llama3", "gpt2"])
def test_a_first_token_starts_every_document_and_the_separator_ends_it(
    tmp_path: Path, kind: str
) -> None:
    tokenizer = tokenizer_of(kind)
    first = [] if tokenizer.first is None else [tokenizer.first]
    expected = []
    for text in ("a b", "c"):
        expected += [*first, *tokenizer.encode(text), tokenizer.end_of_text]
    assert rows_of(tmp_path, tokenizer, ["a b", "", "c"]) == expected
