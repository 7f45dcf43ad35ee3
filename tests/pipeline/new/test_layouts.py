"""What columns mean. Where they could mean two things, nothing is guessed."""

import pytest

from pion.data.records.layouts import read_conversation
from pion.errors import BadInput
from pipeline.new.layouts import (
    PairColumns,
    TextColumn,
    TurnsColumn,
    Undecided,
    Wishes,
    layout_of,
    option_of,
    read_by_jobs,
    unused,
)

PROSE = "a text of several words, which goes on"
TURNS = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]


def of(record, **wishes):
    return layout_of([record], Wishes(**wishes), "data.jsonl")


@pytest.mark.parametrize(
    ("record", "layout"),
    [
        ({"text": "short"}, TextColumn("text")),
        ({"id": 3, "body": PROSE, "url": "http://x/y"}, TextColumn("body")),
        ({"text": PROSE, "title": PROSE}, TextColumn("text")),
        ({"Unnamed: 0": PROSE, "__index_level_0__": PROSE, "body": PROSE}, TextColumn("body")),
        ({"messages": TURNS, "prompt": PROSE}, TurnsColumn("messages", "role", "content")),
        ({"dialog": [{"speaker": "A", "text": "Hi"}]}, TurnsColumn("dialog", "speaker", "text")),
        (
            {"instruction": "a", "input": "b", "output": "c"},
            PairColumns("instruction", "output", "input"),
        ),
        ({"input": "a", "output": "c"}, PairColumns("input", "output")),
        ({"Question": "a", "Answer": "c", "n": 1}, PairColumns("Question", "Answer")),
        (
            {"system": "s", "prompt": "a", "response": "c"},
            PairColumns("prompt", "response", None, "system"),
        ),
        (
            {"question": "q", "context": "c", "answer": "a"},
            PairColumns("question", "answer", "context"),
        ),
        # Alpaca's text repeats the other columns.
        (
            {"instruction": "a", "output": "c", "text": "### a ### c"},
            PairColumns("instruction", "output"),
        ),
    ],
)
def test_columns_are_known_by_their_names_and_texts(record, layout):
    assert of(record) == layout


@pytest.mark.parametrize(
    ("record", "option", "answers"),
    [
        ({"title": PROSE, "body": PROSE}, "--text-column", ("title", "body")),
        ({"a1": "x", "b1": "y"}, "--text-column", ("a1", "b1")),
        (
            {"messages": TURNS, "conversations": TURNS},
            "--turns-column",
            ("messages", "conversations"),
        ),
        ({"prompt": "a", "query": "b", "answer": "c"}, "--question-column", ("prompt", "query")),
        (
            {"prompt": "a", "output": "b", "response": "c"},
            "--answer-column",
            ("output", "response"),
        ),
        ({"question": "Why?", "answer": "So.", "text": PROSE}, "--use", ("chats", "text")),
    ],
)
def test_what_could_be_two_things_is_asked(record, option, answers):
    found = of(record)
    assert isinstance(found, Undecided)
    assert (option_of(found.name), found.answers) == (option, answers)


def test_an_option_decides():
    assert of({"title": PROSE, "body": PROSE}, text_column="body") == TextColumn("body")
    assert of({"chosen": TURNS, "rejected": TURNS}, turns_column="chosen") == TurnsColumn(
        "chosen", "role", "content"
    )
    assert of({"x": "a", "y": "b"}, question_column="x", answer_column="y") == PairColumns("x", "y")
    record = {"question": "Why?", "answer": "So.", "text": PROSE}
    assert of(record, use="text") == TextColumn("text")
    assert of(record, use="chats") == PairColumns("question", "answer")


def test_a_column_that_is_not_there_is_refused_with_the_nearest():
    with pytest.raises(
        BadInput, match=r"--text-column bdy: data\.jsonl has no such column; did you"
    ):
        of({"title": PROSE, "body": PROSE}, text_column="bdy")


def test_records_without_text_are_refused_with_their_columns():
    with pytest.raises(BadInput, match=r"no column has text. Its columns: a \(int\), b \(list\)"):
        of({"a": 1, "b": [2]})


def test_columns_that_are_not_read_are_known():
    pair = {"id": 1, "q": "Why?", "a": "So.", "why": None, "input": "x", "history": [["a", "b"]]}
    assert unused(PairColumns("q", "a"), pair) == ("id", "input")
    turns = {"messages": TURNS, "tools": [1], "system": "s", "id": 1}
    assert unused(TurnsColumn("messages", "role", "content"), turns) == ("id",)


# test_layouts_of_peers.py has the layouts that jobs read.
@pytest.mark.parametrize(
    ("record", "layout", "direct"),
    [
        (
            {"conversations": None, "messages": TURNS},
            TurnsColumn("messages", "role", "content"),
            True,
        ),
        ({"dialog": TURNS}, TurnsColumn("dialog", "role", "content"), False),
        ({"Question": "a", "Answer": "b"}, PairColumns("Question", "Answer"), False),
    ],
)
def test_a_copy_is_written_only_of_what_jobs_do_not_read(record, layout, direct):
    assert of(record) == layout
    assert read_by_jobs(layout, [record]) is direct
    if direct:
        assert read_conversation(record, "here").messages[-1]["content"]
