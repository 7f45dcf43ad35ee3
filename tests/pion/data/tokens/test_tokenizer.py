import json
import re
from functools import cache

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from pion.data.tokens.tokenizer import Tokenizer, train_bpe
from pion.errors import BadInput
from tests.support.tokenizer_kinds import (
    KINDS,
    PLAIN,
    added,
    settings_of,
    tokenizer_of,
    without_bytes,
    write_files,
)

CORPUS = [
    "Return the number of items in the list.\n\nRaise ValueError if the key isn't there.\n",
    "def f(x):\n    return x + 1  # naïve café ☕\n",
    "<|user|>\nWhat does len do?\n<|assistant|>\nIt counts the items.\n",
] * 4


@cache
def tokenizer():
    return train_bpe(CORPUS, 400)


def edited(tmp_path, **changes):
    """Return the trained tokenizer's file with some keys replaced."""
    path = tmp_path / "tokenizer.json"
    tokenizer().save(path)
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return path


def test_a_long_word_is_learned_from_in_parts():
    vocabulary = json.loads(train_bpe(["a" * 5000 + " b"], 300)._source)["model"]["vocab"]
    assert max(map(len, vocabulary)) == 1024


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=80)


@settings(max_examples=50, deadline=None)
@given(TEXT)
def test_any_text_comes_back_exactly_and_its_token_bytes_add_up_to_its_bytes(text):
    ids = tokenizer().encode(text)
    assert tokenizer().decode(ids) == text
    assert tokenizer().token_bytes()[ids].sum() == len(text.encode())


@settings(max_examples=50, deadline=None)
@given(st.lists(TEXT, max_size=5))
def test_a_batch_encodes_like_its_texts_one_by_one(texts):
    assert tokenizer().encode_batch(texts) == [tokenizer().encode(text) for text in texts]


@settings(max_examples=50, deadline=None)
@given(TEXT)
def test_offsets_cover_the_text_without_a_gap_whitespace_included(text):
    ids, offsets = tokenizer().encode_with_offsets(text)
    assert ids == tokenizer().encode(text)
    covered = {i for start, end in offsets for i in range(start, end)}
    assert covered == set(range(len(text)))
    assert [start for start, _ in offsets] == sorted(start for start, _ in offsets)


@settings(max_examples=50, deadline=None)
@given(TEXT | st.sampled_from(CORPUS), st.data())
def test_the_tokens_before_a_character_are_counted_as_the_offsets_say(text, data):
    start = data.draw(st.integers(0, len(text)))
    ids, offsets = tokenizer().encode_with_offsets(text)
    before = sum(begin < start for begin, _ in offsets)
    assert tokenizer().encode_batch_from([text], [start]) == [(ids, before)]


def test_special_tokens_are_shown_only_on_request_and_count_no_bytes():
    ids = [*tokenizer().encode("end"), tokenizer().end_of_text]
    assert tokenizer().decode(ids) == "end"
    assert tokenizer().decode(ids, specials=True) == "end<|endoftext|>"
    assert tokenizer().token_bytes()[[tokenizer().end_of_text, tokenizer().pad]].tolist() == [0, 0]


def test_a_lone_surrogate_becomes_a_replacement_character():
    assert tokenizer().decode(tokenizer().encode("a\ud800b")) == "a\ufffdb"
    assert len(tokenizer().encode_with_offsets("a\ud800b")[1]) >= 3
    assert train_bpe(["a\ud800b"], 300).vocab_size >= 258


def test_training_puts_end_of_text_at_0_and_pad_at_1_and_is_repeatable():
    again = train_bpe(iter(CORPUS), 400)
    assert (again.end_of_text, again.pad, again.end_of_text_token) == (0, 1, "<|endoftext|>")
    assert again.specials == ("<|endoftext|>", "<|pad|>")
    assert again.encode(CORPUS[0]) == tokenizer().encode(CORPUS[0])
    assert again.vocab_size <= 400


def test_a_saved_tokenizer_is_the_file_it_was_loaded_from_byte_for_byte(tmp_path):
    path = edited(tmp_path, padding=None)
    Tokenizer.from_file(path).save(tmp_path / "copy.json")
    assert (tmp_path / "copy.json").read_bytes() == path.read_bytes()


def test_the_same_files_are_read_once_and_changed_ones_again(tmp_path):
    path = write_files("gemma", tmp_path) / "tokenizer.json"
    first = Tokenizer.from_file(path)
    assert Tokenizer.from_file(path) is first
    (tmp_path / "tokenizer_config.json").write_text('{"add_bos_token": false}')
    assert (first.first is None, Tokenizer.from_file(path).first is None) == (False, True)


def test_truncation_padding_and_templates_of_a_foreign_tokenizer_change_no_ids(tmp_path):
    path = edited(
        tmp_path,
        truncation={"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0},
        post_processor={"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True},
    )
    foreign = Tokenizer.from_file(path)
    text = "Return the  number"
    assert foreign.encode_with_offsets(text) == tokenizer().encode_with_offsets(text)


def test_a_tokenizer_with_gpt2s_single_special_token_pads_with_it(tmp_path):
    added = json.loads(edited(tmp_path).read_text())["added_tokens"]
    alone = Tokenizer.from_file(edited(tmp_path, added_tokens=added[:1]))
    assert alone.pad == alone.end_of_text == 0


def test_a_tokenizer_without_an_end_of_text_token_is_refused(tmp_path):
    added = json.loads(edited(tmp_path).read_text())["added_tokens"]
    path = edited(tmp_path, added_tokens=added[1:])
    with pytest.raises(BadInput, match=r"no end-of-text token: key added_tokens.*<\|pad\|>"):
        Tokenizer.from_file(path)


def test_a_tokenizer_that_does_not_fit_the_model_is_refused_with_both_numbers():
    size = tokenizer().vocab_size
    tokenizer().fits(size)
    with pytest.raises(BadInput, match=rf"doesn't fit the model.*{size - 1}.*{size - 2}"):
        tokenizer().fits(size - 2)


# ---------------------------------------------------------------- tokenizers of other models


SHORT = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
TOKENIZERS = {kind: tokenizer_of(kind) for kind in KINDS}


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=40, deadline=None)
@given(text=SHORT)
def test_text_has_the_ids_of_the_library_and_comes_back(kind, text):
    library = tokenizers.Tokenizer.from_str(json.dumps(settings_of(kind)))
    normal = library.normalizer.normalize_str(text) if library.normalizer else text
    ids = TOKENIZERS[kind].encode(text)
    assert ids == library.encode(text, add_special_tokens=False).ids
    assert TOKENIZERS[kind].decode(ids) == normal
    assert TOKENIZERS[kind].token_bytes()[ids].sum() == len(normal.encode())


def test_an_empty_list_of_normalizers_is_none():
    assert tokenizer_of("harmony").normalization is None


# A text with characters that have one of the bytes that SmolLM2's vocabulary lacks.
LACKED = st.text(st.sampled_from("a é☕\n\x00\x04\x13\x1d\U0003ffff\U00040000\U000bffff\U000c0000"))


@settings(max_examples=40, deadline=None)
@given(text=LACKED | SHORT, start=st.integers(0, 40))
def test_a_character_that_the_vocabulary_lacks_becomes_a_replacement_character(text, start):
    tokenizer = Tokenizer(json.dumps(without_bytes()), "x")
    ids = tokenizer.encode(text)
    assert not set(ids) & set(tokenizer.special_ids.values())  # the library's unknown token is one
    expected = re.sub("[\x04\x06\x13\x14\x16\x1d\U00040000-\U000bffff]", "\ufffd", text)
    assert tokenizer.decode(ids) == tokenizer.spelled(text) == expected
    assert tokenizer.token_bytes()[ids].sum() == len(expected.encode())
    assert tokenizer.encode_with_offsets(text)[0] == ids
    assert tokenizer.encode_batch_from([text], [start])[0][0] == ids
    assert tokenizer.encode_with_specials([text])[0].ids == ids


def test_replaced_characters_are_counted_with_the_first_places():
    replaced = Tokenizer(json.dumps(without_bytes()), "x").replaced()
    replaced.look("a\x01b", "a.txt")
    assert (replaced.count, replaced.in_words()) == (0, "")
    for line in range(4):
        replaced.look({"tools": ["a\n\x04\x06"], "content": None}, f"a.jsonl:{line}")
    assert replaced.in_words() == (
        "8 characters are not in the model's vocabulary and became U+FFFD: the first: "
        "a.jsonl:0, line 2 of this text (U+0004); a.jsonl:1, line 2 of this text (U+0004); "
        "a.jsonl:2, line 2 of this text (U+0004)"
    )


def test_nfc_is_said_and_bits_per_byte_count_the_normal_text():
    text = "e\u0301" * 3  # three bytes each, two as é
    qwen = TOKENIZERS["qwen"]
    assert (qwen.normalization, TOKENIZERS["llama3"].normalization) == ("NFC", None)
    assert qwen.token_bytes()[qwen.encode(text)].sum() == 6
    assert TOKENIZERS["llama3"].token_bytes()[TOKENIZERS["llama3"].encode(text)].sum() == 9


@pytest.mark.parametrize("token", PLAIN)
def test_an_added_token_that_is_not_special_is_text_with_bytes(token):
    qwen, text = TOKENIZERS["qwen"], f"a {token} b"
    ids = qwen.encode(text)
    assert max(ids) >= qwen.vocab_size - len(PLAIN)
    assert qwen.decode(ids) == text
    assert qwen.token_bytes()[ids].sum() == len(text)


@pytest.mark.parametrize("kind", KINDS)
def test_special_tokens_give_their_ids_only_where_a_template_writes_them(kind):
    tokenizer = TOKENIZERS[kind]
    text = "a\n".join(["", *tokenizer.specials])
    special = {tokenizer.special_ids[token] for token in tokenizer.specials}
    (encoding,) = tokenizer.encode_with_specials([text])
    ids, offsets = encoding.ids, encoding.offsets
    assert special <= set(ids)
    assert not special & set(tokenizer.encode(text))
    assert [text[a:b] for (a, b), i in zip(offsets, ids) if i in special] == [*tokenizer.specials]
    assert "".join(text[a:b] for a, b in offsets) == text  # whitespace is not removed


SEPARATORS = {
    "gpt2": "<|endoftext|>",
    "smollm2": "<|endoftext|>",
    "llama3": "<|end_of_text|>",
    "qwen": "<|endoftext|>",
    "phi4": "<|endoftext|>",
    "tekken": "</s>",
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_separator_is_the_end_of_a_document_not_of_a_turn(kind, tmp_path):
    tokenizer = Tokenizer.from_file(write_files(kind, tmp_path) / "tokenizer.json")
    assert tokenizer.end_of_text_token == SEPARATORS[kind]


def renamed(tmp_path, eos):
    """Write a tokenizer whose only special tokens have unknown names; return its file."""
    tokens = [added("<｜fin｜>", 400), added("<｜pad｜>", 401)]
    folder = write_files("gpt2", tmp_path)
    (folder / "tokenizer.json").write_text(json.dumps(settings_of("gpt2", added_tokens=tokens)))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": eos}))
    (folder / "special_tokens_map.json").unlink()
    return folder / "tokenizer.json"


@pytest.mark.parametrize("eos", ["<｜fin｜>", {"content": "<｜fin｜>", "lstrip": False}])
def test_an_unknown_separator_is_the_eos_token(tmp_path, eos):
    assert Tokenizer.from_file(renamed(tmp_path, eos)).end_of_text == 400


@pytest.mark.parametrize("eos", [None, "<unknown>", "a"])
def test_an_eos_token_that_is_no_special_token_separates_nothing(tmp_path, eos):
    with pytest.raises(BadInput, match=r"no end-of-text token.*or the eos_token"):
        Tokenizer.from_file(renamed(tmp_path, eos))


def test_only_llama_puts_a_first_token_before_a_document():
    firsts = {kind: TOKENIZERS[kind].first for kind in KINDS if TOKENIZERS[kind].first is not None}
    llama = TOKENIZERS["llama3"]
    first = llama.special_ids["<|begin_of_text|>"]
    assert firsts == {"llama3": first}
    assert first not in llama.encode("a")  # only our own code adds tokens
    assert llama.start_document([5]) == [*llama.prompt(""), 5] == [first, 5]
    assert llama.prompt("a") == [first, *llama.encode("a")]
    assert llama.before_document == first


def test_without_a_first_token_a_document_is_as_before():
    gpt2 = TOKENIZERS["gpt2"]
    assert gpt2.start_document([5]) == [5]
    assert gpt2.prompt("") == [gpt2.end_of_text] == [gpt2.before_document]
