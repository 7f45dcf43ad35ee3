import json
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pion.data.tokens.safe_cuts import PIECE_CHARS
from pion.data.tokens.tokenizer import Tokenizer, train_bpe
from pion.errors import BadInput

CORPUS = [
    "Return the number of items in the list.\n\nRaise ValueError if the key isn't there.\n",
    "def f(x):\n    return x + 1  # naïve café ☕\n",
    "<|user|>\nWhat does len do?\n<|assistant|>\nIt counts the items.\n",
] * 4


@cache
def tokenizer() -> Tokenizer:
    return train_bpe(CORPUS, 400)


def edited(tmp_path: Path, **changes: object) -> Path:
    """Return the trained tokenizer's file with some keys replaced."""
    path = tmp_path / "tokenizer.json"
    tokenizer().save(path)
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return path


def test_a_long_word_is_learned_from_in_parts() -> None:
    vocabulary = json.loads(train_bpe(["a" * 5000 + " b"], 300)._source)["model"]["vocab"]
    assert max(map(len, vocabulary)) == 1024


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=80)


@settings(max_examples=100, deadline=None)
@given(TEXT)
def test_any_text_comes_back_exactly_and_its_token_bytes_add_up_to_its_bytes(text: str) -> None:
    ids = tokenizer().encode(text)
    assert tokenizer().decode(ids) == text
    assert tokenizer().token_bytes()[ids].sum() == len(text.encode())


@settings(max_examples=100, deadline=None)
@given(st.lists(TEXT, max_size=5))
def test_a_batch_encodes_like_its_texts_one_by_one(texts: list[str]) -> None:
    assert tokenizer().encode_batch(texts) == [tokenizer().encode(text) for text in texts]


@settings(max_examples=100, deadline=None)
@given(TEXT)
def test_offsets_cover_the_text_without_a_gap_whitespace_included(text: str) -> None:
    ids, offsets = tokenizer().encode_with_offsets(text)
    assert ids == tokenizer().encode(text)
    covered = {i for start, end in offsets for i in range(start, end)}
    assert covered == set(range(len(text)))
    assert [start for start, _ in offsets] == sorted(start for start, _ in offsets)


@settings(max_examples=100, deadline=None)
@given(TEXT | st.sampled_from(CORPUS), st.data())
def test_the_tokens_before_a_character_are_counted_as_the_offsets_say(
    text: str, data: st.DataObject
) -> None:
    start = data.draw(st.integers(0, len(text)))
    ids, offsets = tokenizer().encode_with_offsets(text)
    before = sum(begin < start for begin, _ in offsets)
    assert tokenizer().encode_batch_from([text], [start]) == [(ids, before)]


@settings(max_examples=20, deadline=None)
@given(st.lists(st.sampled_from([*CORPUS, " ", "\n", "\n\n \n", "don't", "  x", "é☕", "1 2"])))
def test_a_document_cut_into_pieces_for_speed_has_the_ids_of_the_whole(parts: list[str]) -> None:
    text = "".join(parts)
    assert_same_ids_in_pieces(text)


@pytest.mark.parametrize("gap", [" ", "\n", " \n"])
def test_a_document_is_never_cut_within_whitespace(gap: str) -> None:
    for length in range(60, 70):
        assert_same_ids_in_pieces("word" + gap * length)


def assert_same_ids_in_pieces(text: str) -> None:
    text *= 4 * PIECE_CHARS // max(1, len(text))
    whole, _ = tokenizer().encode_with_offsets(text)  # this one never cuts
    assert tokenizer().encode(text) == whole


def test_a_document_that_spells_out_special_tokens_never_yields_their_ids() -> None:
    text = "a<|endoftext|>b<|pad|>"
    ids = tokenizer().encode(text)
    assert tokenizer().end_of_text not in ids
    assert tokenizer().pad not in ids
    assert tokenizer().decode(ids) == text
    assert tokenizer().encode_with_offsets(text)[0] == ids


def test_special_tokens_are_shown_only_on_request_and_count_no_bytes() -> None:
    ids = [*tokenizer().encode("end"), tokenizer().end_of_text]
    assert tokenizer().decode(ids) == "end"
    assert tokenizer().decode(ids, specials=True) == "end<|endoftext|>"
    assert tokenizer().token_bytes()[[tokenizer().end_of_text, tokenizer().pad]].tolist() == [0, 0]


def test_a_lone_surrogate_becomes_a_replacement_character() -> None:
    assert tokenizer().decode(tokenizer().encode("a\ud800b")) == "a\ufffdb"
    assert len(tokenizer().encode_with_offsets("a\ud800b")[1]) >= 3
    assert train_bpe(["a\ud800b"], 300).vocab_size >= 258


def test_training_puts_end_of_text_at_0_and_pad_at_1_and_is_repeatable() -> None:
    again = train_bpe(iter(CORPUS), 400)
    assert (again.end_of_text, again.pad, again.end_of_text_token) == (0, 1, "<|endoftext|>")
    assert again.specials == ("<|endoftext|>", "<|pad|>")
    assert again.encode(CORPUS[0]) == tokenizer().encode(CORPUS[0])
    assert again.vocab_size <= 400


def test_a_saved_tokenizer_is_the_file_it_was_loaded_from_byte_for_byte(tmp_path: Path) -> None:
    path = edited(tmp_path, padding=None)
    Tokenizer.from_file(path).save(tmp_path / "copy.json")
    assert (tmp_path / "copy.json").read_bytes() == path.read_bytes()


def test_truncation_padding_and_templates_of_a_foreign_tokenizer_change_no_ids(
    tmp_path: Path,
) -> None:
    path = edited(
        tmp_path,
        truncation={"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0},
        post_processor={"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True},
    )
    foreign = Tokenizer.from_file(path)
    text = "Return the  number"
    assert foreign.encode_with_offsets(text) == tokenizer().encode_with_offsets(text)


def test_a_tokenizer_with_gpt2s_single_special_token_pads_with_it(tmp_path: Path) -> None:
    added = json.loads(edited(tmp_path).read_text())["added_tokens"]
    alone = Tokenizer.from_file(edited(tmp_path, added_tokens=added[:1]))
    assert alone.pad == alone.end_of_text == 0


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"nowhere\.json"):
        Tokenizer.from_file(tmp_path / "nowhere.json")


@pytest.mark.parametrize("content", ["", "{}", "[1, 2]", "not json", '{"model": {"type": "BPE"}}'])
def test_a_file_that_is_no_tokenizer_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(content)
    with pytest.raises(BadInput, match=r"tokenizer\.json: not a tokenizer"):
        Tokenizer.from_file(path)


def test_a_tokenizer_without_an_end_of_text_token_is_refused(tmp_path: Path) -> None:
    added = json.loads(edited(tmp_path).read_text())["added_tokens"]
    path = edited(tmp_path, added_tokens=added[1:])
    with pytest.raises(BadInput, match=r"no end-of-text token: key added_tokens.*<\|pad\|>"):
        Tokenizer.from_file(path)


def test_a_tokenizer_that_does_not_fit_the_model_is_refused_with_both_numbers() -> None:
    size = tokenizer().vocab_size
    tokenizer().fits(size)
    with pytest.raises(BadInput, match=rf"doesn't fit the model.*{size - 1}.*{size - 2}"):
        tokenizer().fits(size - 2)


@pytest.mark.parametrize("texts", [[], [""], ["", ""]])
def test_training_on_an_empty_corpus_is_refused(texts: list[str]) -> None:
    with pytest.raises(BadInput, match="corpus is empty"):
        train_bpe(texts, 300)


def test_training_a_vocabulary_too_small_for_all_bytes_is_refused() -> None:
    with pytest.raises(BadInput, match="258 or more"):
        train_bpe(CORPUS, 257)
