"""Tokenizers that make the library panic, or a short text very long."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from pion.data.tokens.tokenizer import MOST_IDS, Tokenizer
from pion.data.tokens.tokenizer_json import MOST_STEPS, check_steps
from pion.errors import BadInput
from pion.untrusted import LARGEST_TOKENIZER
from tests.hostile.in_process import pion, refused
from tests.hostile.model_folders import DEEP, edit_tokenizer, model_folder
from tests.support.finished_run import tiny_tokenizer
from tests.support.tokenizer_kinds import ALL_BYTES, BYTES, DIGITS, added, sequence, split

TEXT = "Return " + "a" * 60 + "!"
ENDLESS = "(a+)+$"
Settings = dict[str, Any]


@pytest.fixture(autouse=True)
def no_rust_backtraces(monkeypatch):
    """Save the quarter of a second that each backtrace takes."""
    monkeypatch.setenv("RUST_BACKTRACE", "0")


@pytest.fixture(scope="module")
def honest(tmp_path_factory):
    path = tmp_path_factory.mktemp("honest") / "tokenizer.json"
    tiny_tokenizer().save(path)
    return json.loads(path.read_text())


def before(*steps):
    return {"pre_tokenizer": sequence(*steps)}


def normal(*steps):
    return {"normalizer": {"type": "Sequence", "normalizers": list(steps)}}


def after(*steps):
    return {"decoder": {"type": "Sequence", "decoders": list(steps)}}


def replace(pattern, content):
    return {"type": "Replace", "pattern": pattern, "content": content}


METASPACE = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}
DOUBLED = replace({"String": "a"}, "aa")

# ---------------------------------------------------------------- steps that multiply

MULTIPLYING = {
    "nothing by much": {"normalizer": replace({"String": ""}, "a" * 1000)},
    "any place by much": {"normalizer": replace({"Regex": ""}, "a" * 1000)},
    "a letter by much": {"normalizer": replace({"String": "a"}, "a" * 10_000)},
    "a letter by two, often": normal(*[DOUBLED] * 20),
    "steps in steps": normal(*[{"type": "Sequence", "normalizers": [DOUBLED] * 5}] * 4),
    "a long beginning": {"normalizer": {"type": "Prepend", "prepend": "a" * 10**6}},
    "many beginnings": normal(*[{"type": "Prepend", "prepend": "a" * 20}] * 20),
    "bytes of bytes": before(*[BYTES] * 16),
    "bytes of bytes, as normalizer": normal(*[{"type": "ByteLevel"}] * 16),
    "a space before each piece": before(*[METASPACE] * 12, BYTES),
    "a table": {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "BAAAAAAAAAAA"}},
    "too many steps": before(*[DIGITS] * 65, BYTES),
    "when decoding": after(BYTES, *[DOUBLED] * 25),
    "when decoding, anywhere": after(BYTES, replace({"Regex": "x?"}, "a" * 5000)),
}
ADDED = ("continuing_subword_prefix", "end_of_word_suffix")  # to each letter


@pytest.mark.parametrize("steps", MULTIPLYING)
def test_steps_that_multiply_a_text_are_refused(honest, steps):
    with pytest.raises(BadInput, match=r"^x: .*a short text very long|^x: the tokenizers library"):
        Tokenizer(json.dumps(honest | MULTIPLYING[steps]), "x")
    if steps != "a table":
        with pytest.raises(BadInput, match="very long, so it is not used"):
            check_steps(honest | MULTIPLYING[steps], "x")


@pytest.mark.parametrize("key", ADDED)
def test_what_is_added_to_each_letter_is_short(honest, key):
    long = {"model": honest["model"] | {key: "#" * 10**6}}
    with pytest.raises(BadInput, match=rf"key model\.{key} has 1,000,000 characters"):
        check_steps(honest | long, "x")


# Those of KINDS are used in tests/pion/data/tokens/test_tokenizer.py.
HONEST = {
    "Falcon": before(
        {"type": "Punctuation", "behavior": "Contiguous"},
        BYTES,
        {"type": "Digits", "individual_digits": False},
        split("[0-9][0-9][0-9]"),
    ),
    "DeepSeek": before(
        split("[\r\n]"),
        split(r"\s?[A-Za-z]+"),
        split(r"\s?[!-/:-~]+"),
        split(r"\s+$"),
        DIGITS,
        ALL_BYTES,
    ),
    "BERT's and Unicode's": normal(
        {"type": "NFKC"}, {"type": "Lowercase"}, {"type": "StripAccents"}, {"type": "ByteLevel"}
    ),
    "half of the steps": before(*[DIGITS] * (MOST_STEPS // 2 - 1), BYTES),
    "half of the growth": {"normalizer": replace({"String": "a"}, "a" * 125)},
    "half of the beginning": {"normalizer": {"type": "Prepend", "prepend": "a" * 128}},
}


@pytest.mark.parametrize("name", HONEST)
def test_an_honest_tokenizer_is_used(honest, name):
    tokenizer = Tokenizer(json.dumps(honest | HONEST[name]), name)
    ids = tokenizer.encode(TEXT)
    assert "eturn" in tokenizer.decode(ids).lower()


# ---------------------------------------------------------------- panics

PANICS = {
    "a regular expression without end": before(split(ENDLESS), ALL_BYTES),
    "pieces of no length": before({"type": "FixedLength", "length": 0}, BYTES),
    "a table that is none": {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}},
    "a decoder that removes more than there is": after(
        BYTES, {"type": "Strip", "content": "a", "start": 10**9, "stop": 10**9}
    ),
}


@pytest.mark.parametrize("panic", [*PANICS, "a long prefix"])
def test_a_panic_of_the_library_is_bad_input(honest, panic):
    prefix = {"model": honest["model"] | {ADDED[0]: "#" * 1000}}

    def use():
        settings = honest | PANICS.get(panic, prefix)
        tokenizer = Tokenizer(json.dumps(settings), "its/tokenizer.json")
        ids = tokenizer.encode_batch([TEXT])[0]
        tokenizer.decode(ids)
        for number in range(300):
            tokenizer.decode([number])

    with pytest.raises(BadInput, match=r"its/tokenizer\.json: the tokenizers library can't use"):
        use()


@pytest.mark.parametrize("command", ["generate", "eval"])
def test_a_panic_ends_a_command_with_one_line(tmp_path, command):
    folder = model_folder(tmp_path / "model")
    edit_tokenizer(folder, **PANICS["pieces of no length"])
    (tmp_path / "text.txt").write_text(TEXT)
    rest = {"generate": ["--prompt", TEXT], "eval": [tmp_path / "text.txt"]}[command]
    message = refused(command, folder, *rest)
    assert f"{folder / 'tokenizer.json'}: the tokenizers library can't use" in message


def test_a_panic_does_not_end_a_chat(tmp_path):
    folder = model_folder(tmp_path)
    edit_tokenizer(folder, **PANICS["a regular expression without end"])
    talk = pion("chat", folder, "--max-tokens", "2", typed=f"{TEXT}\nReturn\n")
    assert talk.code == 0, talk
    assert "the tokenizers library can't use" in talk.out
    assert "Traceback" not in talk.out + talk.err


# ---------------------------------------------------------------- other lies


def words(**more) -> Callable[[Settings], Settings]:
    """Return a change that adds to the vocabulary."""
    return lambda honest: {"model": honest["model"] | {"vocab": honest["model"]["vocab"] | more}}


def model(**changes) -> Callable[[Settings], Settings]:
    return lambda honest: {"model": honest["model"] | changes}


def tokens(*more) -> Callable[[Settings], Settings]:
    return lambda honest: {"added_tokens": [*honest["added_tokens"], *more]}


# By what is wrong, how an honest tokenizer is changed.
CHANGES = {
    "a vocabulary in a list": model(vocab=[["a", 1]]),
    "a vocabulary of lists": model(vocab=[[["a"]]]),
    "an id below 0": words(zz=-1),
    "an id of 32 bits": words(zz=2**32 - 1),
    "an id above the bound": words(zz=MOST_IDS),
    "an id that is a text": words(zz="1"),
    "merges of nothing": model(merges=[["q", "zz"]]),
    "an unknown model": model(type="\x1b[2J" * 1000),
    "added tokens in an object": lambda honest: {"added_tokens": {"a": 1}},
    "an added token without flags": tokens({"id": 2, "content": "x"}),
    "an added token below 0": tokens(added("zz", -1, special=False)),
    "escapes for special tokens": lambda _: {"added_tokens": [added("\x1b[2J", 0)]},
    "a step of no type": lambda _: {"normalizer": {"type": "Nonsense"}},
    "a step that is a list": lambda _: {"pre_tokenizer": []},
    "a broken expression": lambda _: before(split("(")),
    "a deep expression": lambda _: before(split("(" * 50_000 + "a" + ")" * 50_000)),
}
# By what is wrong, how the honest text ends.
ENDINGS = {
    "depth": f', "x": {DEEP}}}',
    "NaN": ', "x": NaN}',
    "half a character": r', "x": "\ud800"}',
}
CONTENTS = {"no text": b"\xff\xfe", "nothing": b"", "a number": b"3", "a list": b"[]"}


@pytest.mark.parametrize("damage", [*CHANGES, *ENDINGS, *CONTENTS])
def test_a_damaged_tokenizer_is_refused(tmp_path, honest, damage):
    path = tmp_path / "tokenizer.json"
    if damage in CHANGES:
        path.write_text(json.dumps(honest | CHANGES[damage](honest)))
    elif damage in ENDINGS:
        path.write_text(json.dumps(honest)[:-1] + ENDINGS[damage])
    else:
        path.write_bytes(CONTENTS[damage])
    with pytest.raises(BadInput) as error:
        Tokenizer.from_file(path)
    assert str(path) in str(error.value)
    assert len(str(error.value)) < 1000


def test_a_tokenizer_that_is_no_file_or_too_large_is_refused(tmp_path, monkeypatch):
    assert LARGEST_TOKENIZER == 128 << 20
    monkeypatch.setattr("pion.data.tokens.tokenizer.LARGEST_TOKENIZER", 1 << 20)
    folder = model_folder(tmp_path)
    path = folder / "tokenizer.json"
    text = path.read_text()
    with path.open("w") as file:
        file.truncate((1 << 20) + 1)
    assert "has more than 1,048,576 bytes" in refused("generate", folder, "--prompt", "a")
    path.unlink()
    path.symlink_to("/dev/zero")
    with pytest.raises(BadInput, match="not a regular file"):
        Tokenizer.from_file(path)
    path.unlink()
    path.write_text(text.ljust(1 << 19))
    assert Tokenizer.from_file(path).vocab_size == tiny_tokenizer().vocab_size
