import json
import tempfile
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from pion.data.chat.conversation import (
    Tokenized,
    Turn,
    chat_template,
    marked_text,
    render,
    tokenize,
    tokenize_batch,
)
from pion.data.chat.messages import turns_of
from pion.data.records.layouts import read_conversation
from pion.data.tokens.tokenizer import Tokenizer, train_bpe
from tests.support.tokenizer_kinds import settings_of, tokenizer_of

CORPUS = [
    "<|system|>\nBe kind.\n<|user|>\nWhat does len do?\n<|assistant|>\nIt counts the items.\n",
    "<|user|>\n\n  indented\n\n\nlines\n<|assistant|>\n'quoted' don't 12 naïve ☕\n",
] * 4


@cache
def tokenizer(style="gpt2"):
    """A trained tokenizer; "llama3" cuts words so that tokens like "|>\\n" can form, and has a
    different end-of-text and one more special token."""
    trained = train_bpe(CORPUS, 450)
    if style == "gpt2":
        return trained
    bpe = tokenizers.Tokenizer(tokenizers.models.BPE())
    words = (
        r"'s|'t|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    bpe.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
        [
            tokenizers.pre_tokenizers.Split(tokenizers.Regex(words), "isolated"),
            tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    bpe.decoder = tokenizers.decoders.ByteLevel()
    bpe.post_processor = tokenizers.processors.ByteLevel(trim_offsets=True)
    bpe.train_from_iterator(
        CORPUS,
        tokenizers.trainers.BpeTrainer(
            vocab_size=450,
            special_tokens=["<|end_of_text|>", "<｜im▁start☕｜>"],
            initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    return Tokenizer(bpe.to_str())


def parsed(record, where):
    return turns_of(read_conversation(record, where, own=True))


STYLES = pytest.mark.parametrize("style", ["gpt2", "llama3"])


@cache
def transformers_tokenizer(style):
    from transformers import PreTrainedTokenizerFast

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tokenizer.json"
        tokenizer(style).save(path)
        return PreTrainedTokenizerFast(
            tokenizer_object=tokenizers.Tokenizer.from_file(str(path)),
            chat_template=chat_template(tokenizer(style)),
        )


TEXTS = st.text(
    st.one_of(
        st.sampled_from(list(" \n\t'|<>a1.\u00a0\u2003\x1c")),
        st.characters(exclude_categories=["Cs"]),
    ),
    max_size=12,
)
PIECES = st.lists(
    st.one_of(
        TEXTS,
        st.sampled_from(
            ["<|endoftext|>", "<|end_of_text|>", "<|endof", "<|pad|>", "<｜im▁start☕｜>", "\n\n"]
        ),
    ),
    max_size=4,
).map("".join)
TURNS = st.lists(
    st.builds(Turn, st.sampled_from(["system", "user", "assistant"]), PIECES), max_size=5
)


def test_a_conversation_is_rendered_as_the_template_says_and_the_answers_are_learned():
    text, spans = render(
        tokenizer(),
        [
            Turn("system", "Be kind. "),
            Turn("user", "\n Hi\n"),
            Turn("assistant", " Hello\n"),
            Turn("user", "  "),
            Turn("user", "Bye"),
            Turn("assistant", "See you"),
        ],
    )
    assert text == (
        "<|system|>\nBe kind.\n<|user|>\nHi\n<|assistant|>\nHello\n<|endoftext|>"
        "<|user|>\nBye\n<|assistant|>\nSee you\n<|endoftext|>"
    )
    learned = [text[start:end] for start, end in spans]
    assert learned == ["Hello\n<|endoftext|>", "See you\n<|endoftext|>"]


@STYLES
@settings(max_examples=40, deadline=None)
@given(turns=TURNS)
def test_the_learned_ids_spell_exactly_the_answers(style, turns):
    tok = tokenizer(style)
    ids, learned = tokenize(tok, turns)
    text, spans = render(tok, turns)
    assert tok.decode(ids.tolist(), specials=True) == text
    expected = "".join(text[start:end] for start, end in spans)
    assert tok.decode(ids[learned].tolist(), specials=True) == expected


@STYLES
@settings(max_examples=40, deadline=None)
@given(turns=TURNS, answer=PIECES)
def test_the_prompt_of_a_chat_has_the_ids_that_training_has_before_the_answer(style, turns, answer):
    prompt, _ = tokenize(tokenizer(style), turns, add_generation_prompt=True)
    ids, learned = tokenize(tokenizer(style), [*turns, Turn("assistant", f"x{answer}")])
    assert ids[: len(prompt)].tolist() == prompt.tolist()
    assert learned[len(prompt) :].all()
    answered, _ = tokenize(tokenizer(style), [*turns, Turn("assistant", answer)])
    if answer.strip():
        assert answered[: len(prompt)].tolist() == prompt.tolist()


@STYLES
@pytest.mark.parametrize("prompt", [False, True])
@settings(max_examples=40, deadline=None)
@given(turns=TURNS.filter(bool))  # transformers refuses to render no message at all
def test_transformers_renders_and_tokenises_a_conversation_to_the_same_ids(style, prompt, turns):
    stock = transformers_tokenizer(style)
    messages = [{"role": turn.role, "content": turn.text} for turn in turns]
    text = stock.apply_chat_template(messages, add_generation_prompt=prompt, tokenize=False)
    assert text == render(tokenizer(style), turns, add_generation_prompt=prompt)[0]
    ids = stock.apply_chat_template(messages, add_generation_prompt=prompt, return_dict=False)
    ours = tokenize(tokenizer(style), turns, add_generation_prompt=prompt).ids
    assert ids == ours.tolist()


def test_transformers_understands_the_same_roles_and_drops_the_others():
    messages = [
        {"role": "human", "content": "a"},
        {"role": "tool", "content": "b"},
        {"role": "gpt", "content": None},
        {"role": "gpt", "content": "c"},
    ]
    turns = parsed({"messages": messages}, "a.jsonl:1")
    text = transformers_tokenizer("gpt2").apply_chat_template(messages, tokenize=False)
    assert text == render(tokenizer(), turns)[0] == "<|user|>\na\n<|assistant|>\nc\n<|endoftext|>"


@settings(max_examples=40, deadline=None)
@given(TURNS, st.data())
def test_answers_that_are_only_seen_leave_the_ids_and_are_not_learned(turns, data):
    tok = tokenizer()
    some = [replace(turn, learned=data.draw(st.booleans())) for turn in turns]
    ids, learned = tokenize(tok, some)
    assert np.array_equal(ids, tokenize(tok, turns).ids)
    text, spans = render(tok, turns)
    answers = [turn for turn in some if turn.role == "assistant" and turn.text.strip()]
    parts = [text[start:end] for (start, end), turn in zip(spans, answers) if turn.learned]
    assert tok.decode(ids[learned].tolist(), specials=True) == "".join(parts)


@STYLES
def test_no_text_can_forge_the_end_of_a_turn(style):
    tok = tokenizer(style)
    forged = f"a{tok.end_of_text_token}b<|endof{tok.end_of_text_token}text|>"
    ids, _ = tokenize(tok, [Turn("user", forged), Turn("assistant", forged)])
    assert (ids == tok.end_of_text).sum() == 1
    assert f"a{tok.end_of_text_token[0]} {tok.end_of_text_token[1:]}b" in tok.decode(ids.tolist())


@settings(max_examples=30, deadline=None)
@given(st.lists(TURNS, max_size=6))
def test_a_batch_tokenises_like_its_conversations_one_by_one(conversations):
    for turns, (ids, learned) in zip(
        conversations, tokenize_batch(tokenizer(), conversations), strict=True
    ):
        alone = tokenize(tokenizer(), turns)
        assert np.array_equal(ids, alone.ids)
        assert np.array_equal(learned, alone.learned)


@pytest.mark.parametrize(
    ("asks", "answers"), [("prompter", "bot"), ("Human", "GPT"), ("instruction", "model")]
)
def test_other_names_of_roles_are_read_in_any_case(asks, answers):
    turns = [{"from": "developer", "value": "s"}, {"from": asks, "value": "u"}]
    record = {"conversations": [*turns, {"from": answers, "value": "a"}]}
    expected = [Turn("system", "s"), Turn("user", "u"), Turn("assistant", "a")]
    assert parsed(record, "a:1") == expected
    roles = [message["role"] for message in read_conversation(record, "a:1").messages]
    assert roles == ["system", "user", "assistant"]


def test_a_first_token_starts_a_conversation_once_and_is_not_learned():
    llama = tokenizer_of("llama3")
    turns = [Turn("user", "a"), Turn("assistant", "b"), Turn("user", "c"), Turn("assistant", "d")]
    found = tokenize(llama, turns)
    without = tokenize(tokenizer_of("llama3", post_processor=None), turns)
    assert found.ids.tolist() == [llama.first, *without.ids.tolist()]
    assert found.learned.tolist() == [False, *without.learned.tolist()]
    from transformers import PreTrainedTokenizerFast

    library = tokenizers.Tokenizer.from_str(json.dumps(settings_of("llama3")))
    stock = PreTrainedTokenizerFast(tokenizer_object=library, chat_template=chat_template(llama))
    messages = [{"role": turn.role, "content": turn.text} for turn in turns]
    assert stock.apply_chat_template(messages)["input_ids"] == found.ids.tolist()


def test_a_first_token_starts_a_prompt_and_an_answer_without_a_prompt():
    llama = tokenizer_of("llama3")
    prompt = tokenize(llama, [Turn("user", "a")], add_generation_prompt=True)
    assert prompt.ids[0] == llama.first
    assert tokenize(llama, []).ids.tolist() == [llama.first]
    alone = tokenize(llama, [Turn("assistant", "b")])
    assert alone.learned.tolist()[:3] == [False] * 3


# ---------------------------------------------------------------- shown to people


GPT2 = tokenizer_of("gpt2")


def test_learned_tokens_are_between_brackets():
    turns = [Turn("user", "Hi"), Turn("assistant", "Yes é"), Turn("user", "a"), Turn("user", "b")]
    expected = "<|user|>\nHi\n<|assistant|>\n⟦Yes é\n<|endoftext|>⟧<|user|>\na\n<|user|>\nb\n"
    assert marked_text(GPT2, tokenize(GPT2, turns)) == expected


def test_what_is_learned_first_last_or_not_at_all_is_marked_so():
    ids = np.array(GPT2.encode("ab"), np.int32)
    assert len(ids) == 2
    masks = [(False, False), (True, False), (False, True), (True, True)]
    texts = [marked_text(GPT2, Tokenized(ids, np.array(mask))) for mask in masks]
    assert texts == ["ab", "⟦a⟧b", "a⟦b⟧", "⟦ab⟧"]
    assert marked_text(GPT2, Tokenized(ids[:0], np.zeros(0, np.bool_))) == ""


def test_a_long_conversation_is_cut_and_can_not_control_the_terminal():
    turns = [Turn("assistant", "\x1b[2J\u202e" + "a\tb " * 500)]
    found = tokenize(GPT2, turns)
    text = marked_text(GPT2, found, most=50)
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert text.endswith(f"⟧\n… ({len(found.ids) - 50:,} more tokens)")
