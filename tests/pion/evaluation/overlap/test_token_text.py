import numpy as np
import pytest

from pion.errors import BadInput
from pion.evaluation.overlap.token_text import TokenTexts, row_texts, token_texts
from tests.support.odd_texts import odd_texts
from tests.support.tokenizer_kinds import KINDS, tokenizer_of


def table(*texts: bytes) -> TokenTexts:
    sizes = np.array([len(text) for text in texts])
    return TokenTexts(np.frombuffer(b"".join(texts), np.uint8), np.cumsum(sizes) - sizes, sizes)


@pytest.mark.parametrize("kind", KINDS)
def test_each_id_has_the_bytes_that_the_tokenizer_counts(kind: str) -> None:
    tokenizer = tokenizer_of(kind)
    texts = token_texts(tokenizer)
    counted = tokenizer.token_bytes()
    assert texts.sizes.tolist() == np.where(counted == 0, 1, counted).tolist()
    specials = np.array([list(tokenizer.special_ids.values())])
    assert list(row_texts(specials, texts)) == [b"\n" * len(tokenizer.specials)]


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "qwen"])
def test_a_row_gives_back_the_bytes_of_its_text(kind: str) -> None:
    tokenizer = tokenizer_of(kind)
    texts = token_texts(tokenizer)
    for text in odd_texts(tokenizer.specials, count=100):
        (row,) = row_texts(np.array([tokenizer.encode(text)], dtype=np.uint16), texts)
        assert row == text.encode()


def test_the_words_of_two_documents_stay_apart() -> None:
    tokenizer = tokenizer_of("gpt2")
    ids = [*tokenizer.encode("the end"), tokenizer.end_of_text, *tokenizer.encode("Begin")]
    assert list(row_texts(np.array([ids, ids]), token_texts(tokenizer))) == [b"the end\nBegin"] * 2


@pytest.mark.parametrize("length", [1, 7, 2**15 - 1, 2**15, 2**15 + 1])
def test_rows_of_any_length_come_back_in_order(length: int) -> None:
    ids = np.random.default_rng(0).integers(0, 3, (100_000 // length + 2, length), dtype=np.uint16)
    expected = [b"".join([b"a", b"bc", b"\n"][token] for token in row) for row in ids]
    assert list(row_texts(ids, table(b"a", b"bc", b"\n"))) == expected


def test_no_rows_have_no_text() -> None:
    assert list(row_texts(np.zeros((0, 8), dtype=np.uint16), table(b"a"))) == []
    assert list(row_texts(np.zeros((2, 0), dtype=np.uint16), table(b"a"))) == [b"", b""]


@pytest.mark.parametrize("bad", [-1, 2])
def test_an_id_that_the_tokenizer_lacks_is_named(bad: int) -> None:
    rows = np.zeros((2, 20_000), dtype=np.int64)  # one is read at a time
    rows[1, 7] = bad
    texts = row_texts(rows, table(b"a", b"b"), "shard-00001.npy")
    assert next(texts) == b"a" * 20_000
    with pytest.raises(BadInput, match=r"shard-00001\.npy: rows from 1 have ids from"):
        next(texts)
