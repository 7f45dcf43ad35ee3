"""The pieces of a text are whole characters, end before stop strings, and hold each token once."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pion.generation.text_stream import TextStream
from tests.support.finished_run import tiny_tokenizer
from tests.support.tokenizer_kinds import KINDS, tokenizer_of

TOKENIZER = tiny_tokenizer()


def streamed(ids, stops, tokenizer=TOKENIZER):
    """Stream the text of `ids`, and check what holds for any ids and stop strings."""
    stream = TextStream(tokenizer, stops)
    pieces = []
    for token in ids:
        pieces.append(stream.push(token))
        if stream.stopped:
            break
    pieces.append(stream.end())
    text = "".join(piece.text for piece in pieces)
    whole = tokenizer.decode(ids)
    found = [whole.find(stop) for stop in stops if stop in whole]
    assert text == (whole[: min(found)] if found else whole)
    assert stream.stopped == bool(found)
    tokens = [number for piece in pieces for number in piece.tokens]
    assert tokens == list(range(len(tokens)))
    if not found:
        assert len(tokens) == len(ids)
    return stream


@given(
    st.lists(st.integers(0, TOKENIZER.vocab_size - 1), max_size=40),
    st.lists(st.text(min_size=1, max_size=4), max_size=3),
)
@example(TOKENIZER.encode("a 🦊 and é, then STOP and more"), ["STOP", "TOP"])
@example(TOKENIZER.encode("aaab"), ["aab"])
@example([TOKENIZER.encode("🦊")[0]], [])  # a part of a character
def test_the_pieces_add_up_to_the_text_before_the_first_stop_string(ids, stops):
    streamed(ids, stops)


@pytest.mark.parametrize("kind", KINDS)
def test_bytes_of_tokens_are_the_text_of_every_tokenizer(kind):
    tokenizer = tokenizer_of(kind)
    streamed(tokenizer.encode("Zwei Füchse: 🦊🦊\n\n\t1234567 don't <think> x"), [], tokenizer)
    assert tokenizer.bytes_of(next(iter(tokenizer.special_ids.values()))) == b""


def test_no_part_of_a_stop_string_is_sent_while_it_may_continue():
    stream = TextStream(TOKENIZER, ["fox!"])
    assert "".join(stream.push(token).text for token in TOKENIZER.encode("a fox")) == "a "
    (period,) = TOKENIZER.encode(".")
    assert stream.push(period).text == "fox."
    assert not stream.stopped


def test_half_a_character_waits_for_its_other_half():
    stream = TextStream(TOKENIZER)
    assert [stream.push(token).text for token in TOKENIZER.encode("é")] == ["", "é"]
    stream = TextStream(TOKENIZER)
    stream.push(TOKENIZER.encode("é")[0])
    assert stream.end().text == "\ufffd"
